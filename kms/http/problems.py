"""Errors as RFC 9457 problem documents: one table from what went wrong to what a stranger is told.

A problem document never repeats input, and holds no value, trace or path (field lesson 34). Operators, once
they are known, are told more.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from starlette.responses import Response

from kms.errors import KmsError, OperatorRefusal, Unauthenticated, Unavailable

_TYPE_BASE: Final = "urn:attested-kms:problem:"
MEDIA_TYPE: Final = "application/problem+json"


@dataclass(frozen=True, slots=True)
class Kind:
    """A status and the words that go with a code."""

    status: int
    title: str


KINDS: Final[Mapping[str, Kind]] = {
    "malformed-request": Kind(400, "The request is not of its format"),
    "malformed-evidence": Kind(400, "The evidence is not of its format"),
    "challenge-invalid": Kind(400, "The challenge was not issued by this server"),
    "unauthenticated": Kind(401, "Only operators that this server knows may ask this"),
    "forbidden": Kind(403, "The operator's role does not include this"),
    "evidence-untrusted": Kind(403, "The evidence does not prove what it must"),
    "measurement-unknown": Kind(403, "No allowed image shows this measurement"),
    "policy-denied": Kind(403, "The policy does not allow this release"),
    "epoch-unavailable": Kind(403, "No such key epoch is available"),
    "not-found": Kind(404, "There is nothing here"),
    "method-not-allowed": Kind(405, "This method is not served here"),
    "challenge-used": Kind(409, "The challenge was already used"),
    "policy-conflict": Kind(409, "Another policy is in force than was expected"),
    "policy-gated": Kind(409, "Guests that were seen lately would newly be refused"),
    "operator-exists": Kind(409, "There is such an operator already"),
    "keys-conflict": Kind(409, "The epochs are not as the operator thought"),
    "epoch-in-use": Kind(409, "Guests that were seen lately did not move on to a newer epoch"),
    "challenge-expired": Kind(410, "The challenge has expired"),
    "too-large": Kind(413, "The body is too large"),
    "unsupported-media-type": Kind(415, "The body must be JSON without content encoding"),
    "policy-invalid": Kind(422, "The policy has errors, or the change cannot be made"),
    "rate-limited": Kind(429, "Too many requests"),
    "internal": Kind(500, "The server failed; the operator can find this request by its id"),
    "collateral-unavailable": Kind(503, "A certificate that is needed cannot be had now"),
    "root-key-unavailable": Kind(503, "The root key cannot be used now"),
    "oidc-unavailable": Kind(503, "The identity provider of operators cannot be asked now"),
    "ledger-unavailable": Kind(503, "The decision cannot be recorded now"),
    "server-busy": Kind(503, "The server works on as much as it can"),
    "not-ready": Kind(503, "The server is not ready"),
}
_BY_STATUS: Final = {
    404: "not-found",
    405: "method-not-allowed",
    413: "too-large",
    415: "unsupported-media-type",
}


def problem_members(code: str, request_id: str) -> dict[str, object]:
    """Give what every problem document of a code says."""
    kind = KINDS[code]
    return {
        "type": _TYPE_BASE + code,
        "title": kind.title,
        "status": kind.status,
        "code": code,
        "request_id": request_id,
    }


def problem(
    code: str,
    request_id: str,
    *,
    reasons: Iterable[str] = (),
    headers: Mapping[str, str] | None = None,
    for_operator: Mapping[str, object] | None = None,
) -> Response:
    """Make the response for a code of `KINDS`. `for_operator` are members that no stranger may read."""
    body = problem_members(code, request_id)
    listed = list(reasons)
    if listed:
        body["reasons"] = listed
    body.update(for_operator or {})
    return Response(
        json.dumps(body),
        KINDS[code].status,
        media_type=MEDIA_TYPE,
        headers={"Cache-Control": "no-store", **(headers or {})},
    )


def problem_of(error: KmsError, request_id: str, *, to_operator: bool = False) -> Response:
    """Make the response for one of our own errors. Codes that are no stranger's business are `internal`.

    An authenticated operator is also told the sentence (`detail`) and the values of a refusal (`details`).
    """
    for_operator: dict[str, object] = {}
    if to_operator:
        for_operator["detail"] = error.detail
        if isinstance(error, OperatorRefusal) and error.details:
            for_operator["details"] = error.details
    if error.code not in KINDS:
        return problem("internal", request_id, for_operator=for_operator)
    headers = {}
    if isinstance(error, Unavailable):
        headers["Retry-After"] = str(error.retry_after)
    elif isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"  # RFC 9110 section 15.5.2
    reasons = () if error.reason == error.code else (error.reason,)
    return problem(error.code, request_id, reasons=reasons, headers=headers, for_operator=for_operator)


def problem_of_status(status: int, request_id: str) -> Response:
    """Make the response for a status that the framework chose."""
    code = _BY_STATUS.get(status, "internal" if status >= 500 else "malformed-request")
    return problem(code, request_id)
