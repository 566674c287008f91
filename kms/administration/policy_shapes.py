"""The JSON shapes of policy work: changes, differences, proposals, findings."""

from collections.abc import Iterable

from kms.administration.changing import Prepared
from kms.administration.office import Json
from kms.encoding import b64url
from kms.ledger.entries import timestamp
from kms.policy.diff import Difference, intent_of
from kms.policy.findings import Finding
from kms.policy.history import PolicyChange
from kms.policy.statement import Statement
from kms.policy.trust import verify_policy_signature
from kms.policy_authority import PolicyAuthority
from kms.strict_json import JsonValue


def change_json(change: PolicyChange, authority: PolicyAuthority) -> Json:
    """Give a change with who signed it."""
    return {
        "sequence": change.sequence,
        "revision": change.revision,
        "previous": change.previous,
        "intent": change.intent.value,
        "kind": change.kind.value,
        "author": change.author,
        "message": change.message,
        "made_at": timestamp(change.made_at),
        "signatures": signatures_json(change, authority),
    }


def signatures_json(change: PolicyChange, authority: PolicyAuthority) -> list[JsonValue]:
    """Give the signatures over a change's statement, and whether each is one."""
    statement, trust = Statement.of(change, authority.kms_identity), authority.trust
    return [
        {
            "key": None if trust is None else trust.name_of(each.public_key),
            "format": each.format.value,
            "public_key": b64url(each.public_key),
            "valid": verify_policy_signature(statement, each),
        }
        for each in change.signatures
    ]


def diff_json(old: str | None, new: str, found: Iterable[Difference]) -> Json:
    """Give what one revision changes of another."""
    listed = tuple(found)
    changes: list[JsonValue] = [each.to_json() for each in listed]
    return {
        "from": old,
        "to": new,
        "intent": intent_of(listed).value if listed else None,
        "changes": changes,
    }


def prepared_diff(prepared: Prepared) -> Json:
    """Give what a prepared change changes."""
    return diff_json(prepared.change.previous, prepared.change.revision, prepared.differences)


def proposal_json(
    change: PolicyChange, authority: PolicyAuthority, *, stale: bool, diff: Json | None
) -> Json:
    """Give a change that waits for signatures. `stale`: another came into force since."""
    return {
        "statement": Statement.of(change, authority.kms_identity).to_json(),
        "kind": change.kind.value,
        "author": change.author,
        "message": change.message,
        "made_at": timestamp(change.made_at),
        "signatures": signatures_json(change, authority),
        "needed": authority.needed(change),
        "ready": not stale and authority.has_quorum(change),
        "stale": stale,
        "diff": diff,
    }


def findings_json(findings: Iterable[Finding]) -> list[JsonValue]:
    """Give findings, each with its place."""
    return [
        {
            "file": each.file,
            "line": each.line,
            "column": each.column,
            "severity": each.severity.value,
            "message": each.message,
        }
        for each in findings
    ]
