"""What the server says of itself, judged: which KMS it is, whether it serves, and what time it has."""

from typing import Final

from kms.encoding import b64url
from kms.errors import KmsError
from kms.findings import Finding, failed, ok, unknown, warning
from kms.guest.transport import Answer
from kms.https_client import seconds_ahead
from kms.keys.hand_over import MAX_HAND_OVERS, leads
from kms.keys.identity import PUBLIC_KEY_LENGTH
from kms.keys.signed import Signed
from kms.strict_json import Fields, JsonError

_SKEW: Final = 60.0  # seconds; challenges and certificates are judged by the clock


def identity(pinned: bytes | None, answer: Answer) -> Finding:
    """Compare what `GET /v1/identity` shows with the pin (32 bytes; None: any KMS is trusted).

    It is only what the server says: each answer with keys proves it by a signature. This finds a wrong pin
    before a disk stays shut.
    """
    name = "server-identity"
    if answer.status != 200:
        problem = answer.problem()
        return failed(name, f"GET /v1/identity: {problem.status} {problem.code}", "is it a KMS?")
    try:
        fields = Fields(answer.json(), "identity")
        shown = fields.base64("identity", at_most=PUBLIC_KEY_LENGTH)
        items = fields.array("previous", at_most=MAX_HAND_OVERS)
        hand_overs = [Signed.read(Fields(item, "hand-over")) for item in items]
    except (JsonError, KmsError) as error:
        return failed(name, f"GET /v1/identity: {error}", "is it a KMS, of a version that fits?")
    if pinned is None:
        remedy = "pin it in the measured image: an impostor's keys are not told from yours"
        return warning(name, f"it shows {b64url(shown)}, and this machine takes keys from any KMS", remedy)
    if shown == pinned:
        return ok(name, "it shows the pinned identity")
    if leads(pinned, hand_overs, shown):
        seen = f"the pinned identity handed over to {b64url(shown)}"
        return warning(name, seen, "pin that one in the next image")
    return failed(
        name,
        f"it shows {b64url(shown)}, which is not the pinned one, and no hand-over leads there",
        "another KMS or an impostor, whose keys this machine does not take; or a wrong pin: ask the operator",
    )


def readiness(answer: Answer) -> Finding:
    """Say what `GET /readyz` answers, with the server's own reasons."""
    name = "server-ready"
    if answer.status != 200:
        problem = answer.problem()
        reasons = f" ({', '.join(problem.reasons)})" if problem.reasons else ""
        remedy = "its operator finds more with `kms doctor`; the guest tries again until its deadline"
        return failed(name, f"GET /readyz: {problem.status} {problem.code}{reasons}", remedy)
    try:
        development = answer.json().get("development") is True
    except KmsError as error:
        return failed(name, f"GET /readyz: {error}", "is it a KMS?")
    if development:
        return warning(name, "it is in development mode: it believes SIMULATED guests", "not for real keys")
    return ok(name, "it is ready")


def clock(date: str | None, now: float) -> Finding:
    """Compare the `Date` of an answer with our clock, `now` (seconds since 1970)."""
    name = "server-clock"
    ahead = seconds_ahead(date, now)
    if ahead is None:
        return unknown(name, "the server says no time")
    if abs(ahead) > _SKEW:
        return warning(
            name,
            f"the server's clock and ours differ: {ahead:+.0f} s",
            "set the clock that is wrong: challenges and certificates are judged by it",
        )
    return ok(name, f"within {_SKEW:g} seconds of the server's")
