"""HTTPS to the server as a guest speaks it: one CA, bounded answers, and problems as values.

What a server sends is a stranger's until the envelope inside is verified, so every answer is bounded in
size and time, and parsed strictly.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import httpx2

from kms.guest.errors import AnswerRejected, Problem, ServerUntrusted
from kms.guest.sockets import DeadlineTransport
from kms.https_client import certificate_fault, client_context, https_url
from kms.strict_json import JsonError, JsonValue, parse

MAX_ANSWER: Final = 2 << 20  # bytes; 32 sealed keys with their statements are far below
_MAX_WORD: Final = 128
_MAX_REASONS: Final = 64


class NoAnswer(Exception):
    """The network failed before the answer was whole; what the server did with the request is unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A whole answer. `retry_after` is in seconds, None when the server gave no whole number of them."""

    status: int
    body: bytes
    retry_after: int | None

    def json(self) -> dict[str, JsonValue]:
        """Give the body as a JSON object. Raises `AnswerRejected`."""
        try:
            value = parse(self.body)
        except JsonError as error:
            raise AnswerRejected(f"the answer is {error}", reason="answer-malformed") from None
        if not isinstance(value, dict):
            raise AnswerRejected("the answer is not a JSON object", reason="answer-malformed")
        return value

    def problem(self) -> Problem:
        """Read a problem document; one that is none still has its status."""
        try:
            body = self.json()
        except AnswerRejected:
            body = {}
        reasons = body.get("reasons")
        listed = reasons[:_MAX_REASONS] if isinstance(reasons, list) else []
        return Problem(
            status=self.status,
            code=_word(body.get("code")) or "unknown",
            reasons=tuple(word for word in map(_word, listed) if word),
            request_id=_word(body.get("request_id")),
            retry_after=self.retry_after,
        )


class Connection:
    """A connection to one server, for one exchange at a time. `ca_file` (PEM) is the only CA that is trusted.

    None trusts the system's CAs. `timeout`, in seconds, is for a whole exchange, connecting included.
    """

    def __init__(
        self,
        server_url: str,
        *,
        ca_file: Path | None,
        timeout: float,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self._timeout = timeout
        self._left: Callable[[], float] = lambda: 0.0
        context = client_context(ca_file)
        self._client = httpx2.Client(
            base_url=https_url(server_url),
            transport=transport or DeadlineTransport(context, self._time_left),
            # What a measured guest does must not depend on its environment's proxies and certificates.
            trust_env=False,
            follow_redirects=False,
            headers={
                "Accept": "application/json",
                "Accept-Encoding": "identity",
                "User-Agent": "attested-kms-guest",
            },
        )

    def __enter__(self) -> Self:
        self._client.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._client.__exit__(kind, value, traceback)

    def get(self, path: str, *, remaining: Callable[[], float]) -> Answer:
        """Get what is published. `remaining` and the errors are those of `post`."""
        return self._exchange("GET", path, None, remaining)

    def post(self, path: str, document: Mapping[str, JsonValue], *, remaining: Callable[[], float]) -> Answer:
        """Post a JSON document. `remaining` gives the seconds left for all of it.

        Raises:
            NoAnswer: the network failed, the exchange took longer than the timeout, or no time remains.
            ServerUntrusted: the TLS certificate does not verify.
            AnswerRejected: the answer is larger than `MAX_ANSWER`.

        """
        return self._exchange("POST", path, document, remaining)

    def _time_left(self) -> float:
        return self._left()

    def _exchange(
        self, method: str, path: str, document: Mapping[str, JsonValue] | None, remaining: Callable[[], float]
    ) -> Answer:
        # Every wait below looks at what is left of this exchange, not at how long one read is silent.
        later = max(remaining() - self._timeout, 0.0)
        self._left = lambda: remaining() - later
        timeout = self._left()
        if timeout <= 0:
            raise NoAnswer("no time remains")
        try:
            with self._client.stream(method, path, json=document, timeout=timeout) as response:
                body = bytearray()
                for part in response.iter_raw():
                    body += part
                    if len(body) > MAX_ANSWER:
                        raise AnswerRejected("the answer is too large", reason="answer-malformed")
        except httpx2.TransportError as error:
            reason = certificate_fault(error)
            if reason is not None:
                raise ServerUntrusted(f"the server's TLS certificate was refused: {reason}") from error
            raise NoAnswer(str(error) or type(error).__name__) from error
        wait = response.headers.get("Retry-After", "")
        return Answer(
            status=response.status_code,
            body=bytes(body),
            retry_after=int(wait) if wait.isascii() and wait.isdigit() and len(wait) < 10 else None,
        )


def _word(value: JsonValue) -> str | None:
    """Give a stranger's word if it is short and plain: it will be printed."""
    if isinstance(value, str) and 0 < len(value) <= _MAX_WORD and value.isascii() and value.isprintable():
        return value
    return None
