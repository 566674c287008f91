"""HTTPS to a server as an operator: the token goes there and nowhere else, and every answer is bounded."""

import asyncio
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import httpx2

from kms import __version__
from kms.administration.office import Json
from kms.errors import ConfigurationError
from kms.https_client import certificate_fault, client_context, https_url
from kms.remote_office.errors import AnswerRejected, ServerUnreachable, ServerUntrusted, error_of
from kms.strict_json import JsonError, JsonValue, parse

MAX_ANSWER: Final = 128 << 20  # bytes; the largest is a revision's documents and files, some 20 MB each
_MOST_VALUES: Final = 8_000_000
_DEADLINE: Final = 600.0  # seconds, for a whole exchange: what-if judges a month of records
_CONNECT_WITHIN: Final = 10.0
# Raised before a byte of the request is sent: TCP or TLS failed, or no connection was free.
_NOT_SENT: Final = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
_TOKEN: Final = re.compile(r"[\x21-\x7e]{1,16384}")


class Connection:
    """A connection to one server. `ca` (PEM) is the only CA that is trusted; None: the system's.

    The token goes into the header of requests to this server and nowhere else.

    Raises:
        ConfigurationError: the address, the CA file or the token cannot be used.

    """

    def __init__(
        self, url: str, *, token: str, ca: Path | None, transport: httpx2.AsyncBaseTransport | None = None
    ) -> None:
        if not _TOKEN.fullmatch(token):
            # Nothing of it is said, for it may be most of a secret.
            raise ConfigurationError(
                "the token is not one word of ASCII characters", remedy="write it alone into its file"
            )
        base = https_url(url)
        netloc = base.netloc.decode("ascii")
        self._place = netloc if base.port is not None else f"{netloc}:443"
        self._client = httpx2.AsyncClient(
            base_url=base,
            verify=client_context(ca),
            transport=transport,
            timeout=httpx2.Timeout(_DEADLINE, connect=_CONNECT_WITHIN),
            # A proxy, a `.netrc` or another CA of the environment is not what the operator named.
            trust_env=False,
            # A redirect would take the token to another server.
            follow_redirects=False,
            headers={
                "Authorization": f"Bearer {token}",
                "Accept": "application/json",
                "Accept-Encoding": "identity",
                "User-Agent": f"attested-kms/{__version__}",
            },
        )

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._client.__aexit__(kind, value, traceback)

    async def get(self, path: str, query: Mapping[str, object | None] | None = None) -> Json:
        """Ask; members of the query that are None are left out. Raises as `ask`."""
        given = {name: str(value) for name, value in (query or {}).items() if value is not None}
        return await self.ask("GET", str(httpx2.URL(path, params=given)) if given else path)

    async def post(self, path: str, document: Mapping[str, JsonValue]) -> Json:
        """Post a JSON object; members that are None are left out. Raises as `ask`."""
        given = {name: value for name, value in document.items() if value is not None}
        return await self.ask("POST", path, json.dumps(given, allow_nan=False).encode("ascii"))

    async def ask(self, method: str, path: str, body: bytes | None = None) -> Json:
        """Ask, and give the answer's JSON object. Raises as `ask_bytes`."""
        return _object(*await self._exchange(method, path, body))

    async def ask_bytes(self, method: str, path: str) -> bytes:
        """Ask, and give the answer as it is.

        Raises:
            OperatorRefusal, Malformed, TooLarge, Unavailable: what the server says.
            ServerUnreachable: the network failed, or the answer did not come within ten minutes; the
                sentence says whether anything was sent.
            ServerUntrusted: the TLS certificate does not verify.
            ServerFailed: the server could not do it.
            AnswerRejected: no answer of an attested KMS.

        """
        return (await self._exchange(method, path, None))[1]

    async def _exchange(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        """Give the status and body of a success."""
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            async with (
                asyncio.timeout(_DEADLINE),
                self._client.stream(method, path, content=body, headers=headers) as response,
            ):
                answer = await _read(response)
        except (httpx2.TransportError, TimeoutError) as error:
            # `from None`: the library's errors hold the request, and that holds the token.
            fault = certificate_fault(error)
            if fault is not None:
                raise ServerUntrusted(f"the server's TLS certificate was refused: {fault}") from None
            late = isinstance(error, TimeoutError | httpx2.TimeoutException)
            why = "no answer in time" if late else str(error) or type(error).__name__
            if isinstance(error, _NOT_SENT):
                raise ServerUnreachable(
                    f"could not connect to {self._place}: {why}; nothing was done"
                ) from None
            raise ServerUnreachable(f"{why}; whether the server did it is not known") from None
        status = response.status_code
        if response.is_success:
            return status, answer
        raise error_of(status, _object(status, answer), response.headers.get("Retry-After", ""))


async def _read(response: httpx2.Response) -> bytes:
    body = bytearray()
    async for part in response.aiter_raw():
        body += part
        if len(body) > MAX_ANSWER:
            raise AnswerRejected(f"the answer is longer than {MAX_ANSWER >> 20} MiB")
    return bytes(body)


def _object(status: int, body: bytes) -> Json:
    try:
        value = parse(body, most_values=_MOST_VALUES)
    except JsonError as error:
        raise AnswerRejected(f"the answer ({status}) is {error}") from None
    if not isinstance(value, dict):
        raise AnswerRejected(f"the answer ({status}) is not a JSON object")
    return value
