"""What can go wrong for a guest, as types. None of them holds a key.

::

    KmsError
    ├── EvidenceError         the hardware, or the kernel before it, did not give evidence
    ├── RefusedHere           this machine's own "no", to what its host hands it
    │   └── AppDocumentRefused    a document that HOST_DATA does not stand for
    ├── ServerUntrusted       TLS: not a server of the CA that we were given
    ├── ServerUnreachable     no usable answer before the deadline
    ├── Refused               the server's stated "no"; asking again changes nothing
    └── AnswerRejected        an answer that must not be used: an impostor, or another guest's keys
"""

from dataclasses import dataclass

from kms.errors import KmsError


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A server's problem document (RFC 9457): the status, stable codes, and the id that operators ask for.

    `retry_after` is in seconds, None where the server named no time.
    """

    status: int
    code: str
    reasons: tuple[str, ...] = ()
    request_id: str | None = None
    retry_after: int | None = None


class EvidenceError(KmsError):
    """No evidence. `reason` is stable; the detail says what to do in this guest."""

    code = "evidence-unavailable"


class RefusedHere(KmsError):
    """The machine itself refuses what its host hands it; trying again changes nothing."""


class AppDocumentRefused(RefusedHere):
    """The app document is not the one that this machine was launched for, so nothing was asked."""

    code = "app-document-refused"


class ServerUntrusted(KmsError):
    """The server's TLS certificate is not of the given CA, or not for this name."""

    code = "server-untrusted"


class ServerUnreachable(KmsError):
    """The deadline passed without a usable answer. `problem` is the last one that a server stated."""

    code = "server-unreachable"

    def __init__(self, detail: str, *, problem: Problem | None = None) -> None:
        super().__init__(detail)
        self.problem = problem


class Refused(KmsError):
    """The server said no. `problem` holds its status, code, reasons and request id."""

    code = "refused"

    def __init__(self, problem: Problem) -> None:
        reasons = f" ({', '.join(problem.reasons)})" if problem.reasons else ""
        asked = f"; request {problem.request_id}" if problem.request_id else ""
        super().__init__(f"the server refused: {problem.status} {problem.code}{reasons}{asked}")
        self.problem = problem


class AnswerRejected(KmsError):
    """The answer must not be used, whatever it holds.

    Reasons: those of `kms.keys.envelope.EnvelopeRejected`, ``cannot-open``, ``answer-malformed``,
    ``suite-mismatch``, ``release-mismatch``, ``app-mismatch``, ``keys-mismatch``.
    """

    code = "answer-rejected"
