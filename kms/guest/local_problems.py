"""What the sidecar says when it gives no key: problem documents (RFC 9457), which repeat no request."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from kms.errors import KmsError
from kms.guest.errors import Problem, Refused, ServerUnreachable

_TYPE_BASE: Final = "urn:attested-kms:problem:"
_REFUSED: Final = 403
_RETRY_AFTER: Final = 5  # seconds, where nobody else named a time


@dataclass(frozen=True, slots=True)
class _Kind:
    status: int
    title: str


_KINDS: Final[Mapping[str, _Kind]] = {
    "malformed-request": _Kind(400, "The request is not of its format"),
    "key-not-served": _Kind(403, "No such key is served to this user"),
    "app-document-refused": _Kind(403, "This machine was not launched for its app document"),
    "workload-refused": _Kind(403, "This machine was not launched for its workload"),
    "not-found": _Kind(404, "There is nothing here"),
    "method-not-allowed": _Kind(405, "This method is not served here"),
    "request-timeout": _Kind(408, "The request did not come in time"),
    "head-too-large": _Kind(431, "The request's line and headers are too large"),
    "internal": _Kind(500, "The sidecar failed; its log says why"),
    "server-untrusted": _Kind(502, "The KMS did not prove who it is"),
    "answer-rejected": _Kind(502, "The KMS's answer must not be used"),
    "evidence-unavailable": _Kind(503, "This machine's hardware gave no evidence"),
    "server-unreachable": _Kind(503, "The KMS cannot be reached now"),
    "server-busy": _Kind(503, "Too many requests of this user at once"),
}
_UPSTREAM: Final = {
    403: _Kind(403, "The KMS refused"),
    502: _Kind(502, "The KMS takes no such request"),
    503: _Kind(503, "The KMS cannot answer now"),
}


class LocalProblem(Exception):
    """A request that gets a problem document; `upstream` is the KMS's own, with the status to pass on."""

    def __init__(
        self, code: str, *, upstream: tuple[int, Problem] | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(code)
        self.code = code
        self._kind = _KINDS[code] if upstream is None else _UPSTREAM[upstream[0]]
        self._problem = None if upstream is None else upstream[1]
        self._retry_after = retry_after

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self._kind.status

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """The headers that go with it."""
        found = [("Content-Type", "application/problem+json")]
        if self.status == 405:
            found.append(("Allow", "GET, HEAD"))
        if self._retry_after is not None:
            found.append(("Retry-After", str(self._retry_after)))
        return tuple(found)

    def body(self) -> bytes:
        """Give the document."""
        document: dict[str, object] = {
            "type": _TYPE_BASE + self.code,
            "title": self._kind.title,
            "status": self.status,
            "code": self.code,
        }
        if self._problem is not None:
            told = {"reasons": self._problem.reasons, "request_id": self._problem.request_id}
            document |= {name: value for name, value in told.items() if value}
        return (json.dumps(document) + "\n").encode("ascii")


def problem_of(error: KmsError) -> LocalProblem:
    """Give what a process is told of a key that could not be had; the sentence (`detail`) is for the log."""
    if isinstance(error, Refused):
        problem = error.problem
        return LocalProblem(problem.code, upstream=(403 if problem.status == _REFUSED else 502, problem))
    if isinstance(error, ServerUnreachable) and error.problem is not None:
        problem = error.problem
        wait = _RETRY_AFTER if problem.retry_after is None else problem.retry_after
        return LocalProblem(problem.code, upstream=(503, problem), retry_after=wait)
    code = error.code if error.code in _KINDS else "internal"
    return LocalProblem(code, retry_after=_RETRY_AFTER if _KINDS[code].status == 503 else None)
