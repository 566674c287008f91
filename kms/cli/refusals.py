"""How an operator is told no: the sentence, then what of the details helps, a line each."""

from collections.abc import Iterator
from typing import Final, cast

from kms.cli.keys_words import left_behind_lines
from kms.cli.output import print_json
from kms.cli.policy_words import change_lines, diff_lines, finding_lines, rehearsal_lines
from kms.cli.saying import AnswerUnreadable, Line, fields, say
from kms.errors import EpochInUse, OperatorRefusal
from kms.strict_json import Fields, JsonValue

# What to do about it, for reasons that have an option or a command as their answer.
_REMEDIES: Final = {
    "policy-conflict": "look at what changed, take it into yours, and apply again",
    "policy-gated": "if it is meant: --allow-refusals",
    "epoch-in-use": "nobody could open any more what only its keys open; if it is meant: --force",
    "policy-untrusted": "that is: kms policy apply DIR --lift-revocations",
    "revocations-lifted": "take them into the folder, as `kms policy show REV --files DIR` writes them;"
    " if it is meant: --lift-revocations",
}


def report_refusal(command: str, refusal: OperatorRefusal, *, as_json: bool) -> None:
    """Say it on standard error, or as one JSON document on standard output."""
    if as_json:
        body = {"code": refusal.code, "reason": refusal.reason, "detail": refusal.detail}
        print_json({"error": {**body, "details": refusal.details}})
        return
    lines = [Line(f"{command}: {refusal.code}: {refusal.detail}", "red"), *_details(refusal)]
    # Whatever stands against ending an epoch, there is one answer.
    reason = refusal.code if isinstance(refusal, EpochInUse) else refusal.reason
    if (remedy := _REMEDIES.get(reason)) is not None:
        lines.append(Line(f"  {remedy}"))
    say(lines, error=True)


def _details(refusal: OperatorRefusal) -> list[Line]:
    # Through the same reader as any answer: a server's details are a server's.
    details = fields(cast("JsonValue", refusal.details), "details")
    try:
        return list(_lines(details, refusal.detail))
    except AnswerUnreadable:
        # The sentence above says what happened; details of a form that is not known add nothing for people.
        return []


def _lines(details: Fields, said: str) -> Iterator[Line]:
    if details.has("findings"):
        yield from finding_lines(details, said=said)
    if (active := _given(details, "active")) is not None:
        yield Line("in force is:")
        yield from change_lines(active)
    if (diff := _given(details, "diff")) is not None:
        yield Line("what changed meanwhile:")
        yield from diff_lines(diff)
    if (what_if := _given(details, "what_if")) is not None:
        yield from rehearsal_lines(what_if)
    if details.has("guests"):
        yield from left_behind_lines(details)


def _given(details: Fields, name: str) -> Fields | None:
    value = details.take(name) if details.has(name) else None
    return None if value is None else fields(value, name)
