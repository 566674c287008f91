"""A server's problem documents, back as the errors that they were made of; and what else can go wrong."""

import re
from collections.abc import Mapping
from typing import Final

from kms.errors import (
    CollateralUnavailable,
    EpochInUse,
    Forbidden,
    KeysConflict,
    KmsError,
    LedgerUnavailable,
    MalformedEvidence,
    MalformedRequest,
    NotFound,
    OperatorExists,
    OperatorRefusal,
    PolicyConflict,
    PolicyGated,
    PolicyRefused,
    RateLimited,
    RootKeyUnavailable,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from kms.strict_json import JsonValue

_MOST_DETAIL: Final = 4096  # characters
_MOST_WAIT: Final = 86_400  # seconds
_WORD: Final = re.compile(r"[a-z0-9-]{1,128}")


class ServerUntrusted(KmsError):
    """The server's TLS certificate is not of the given CA, or not for this name. Nothing was sent."""

    code = "server-untrusted"


class ServerUnreachable(Unavailable):
    """No connection, or no whole answer: the sentence says whether the server may have done it."""

    code = "server-unreachable"


class ServerBusy(Unavailable):
    """The server does not look at this request now."""

    code = "server-busy"


class ServerFailed(KmsError):
    """The server could not do it, and says why if it knows."""

    code = "server-failed"


class AnswerRejected(KmsError):
    """The answer is none of an attested KMS, or larger than any."""

    code = "answer-rejected"


_REFUSALS: Final[Mapping[str, type[OperatorRefusal]]] = {
    kind.code: kind
    for kind in (
        Unauthenticated,
        Forbidden,
        NotFound,
        PolicyConflict,
        PolicyGated,
        PolicyRefused,
        OperatorExists,
        KeysConflict,
        EpochInUse,
    )
}
_UNAVAILABLE: Final[Mapping[str, type[Unavailable]]] = {
    kind.code: kind
    for kind in (CollateralUnavailable, RootKeyUnavailable, LedgerUnavailable, RateLimited, ServerBusy)
}
_OTHERS: Final[Mapping[str, type[KmsError]]] = {
    kind.code: kind for kind in (MalformedRequest, MalformedEvidence, TooLarge)
}


def error_of(status: int, document: Mapping[str, JsonValue], retry_after: str) -> KmsError:
    """Make the error of a problem document, with its words, values and reason.

    `retry_after` is the header's text. What no operator's route refuses with is `ServerFailed`.
    """
    code = _word(document.get("code")) or ""
    reasons = document.get("reasons")
    reason = _word(reasons[0]) if isinstance(reasons, list) and reasons else None
    detail = (
        _sentence(document.get("detail"))
        or _sentence(document.get("title"))
        or "the server says nothing more"
    )
    if code in _REFUSALS:
        details = document.get("details")
        return _REFUSALS[code](detail, reason=reason, details=details if isinstance(details, dict) else None)
    if code in _UNAVAILABLE:
        wait = int(retry_after[:9]) if retry_after.isascii() and retry_after.isdigit() else 1
        return _UNAVAILABLE[code](detail, reason=reason, retry_after=min(wait, _MOST_WAIT))
    if code in _OTHERS:
        return _OTHERS[code](detail, reason=reason)
    asked = _word(document.get("request_id"))
    return ServerFailed(f"{detail} ({status} {code}{f', request {asked}' if asked else ''})")


def _word(value: JsonValue) -> str | None:
    return value if isinstance(value, str) and _WORD.fullmatch(value) else None


def _sentence(value: JsonValue) -> str | None:
    """Give a server's words if they may be printed: on a terminal, other characters are commands."""
    if not isinstance(value, str) or not 0 < len(value) <= _MOST_DETAIL:
        return None
    return value if all(each.isprintable() or each in "\n\t" for each in value) else None
