"""Explaining what is recorded, where a part of it is missing or damaged."""

import json
from dataclasses import dataclass, replace
from typing import Any

import pytest

from kms.administration.explaining import explain_recorded
from kms.administration.records import RecordAdministration
from kms.checks import Check, failures
from kms.errors import LedgerUnavailable
from kms.ledger.entries import REFUSED, DecisionEntry
from kms.ledger.recorded import RecordDamaged, RecordedDecision
from kms.policy.findings import Finding, PolicyInvalid, Severity
from kms.policy.places import Written
from kms.policy.revision import Revision
from kms.policy.rules import Rules
from tests.unit.operator_samples import MemoryActions, actor, journal
from tests.unit.policy.samples import BOOT_INFO, NOW, VALID
from tests.unit.policy.test_decision import case

REVISION = Revision.from_files(VALID, development=False)
RULES = Rules(Written(REVISION, VALID))


def recorded(**changes: Any) -> dict[str, Any]:
    """Give the entry of a guest that was refused at VMPL 1, with changes to it."""
    refused = case().guest(vmpl=1)
    checks = refused.decide().checks
    entry = DecisionEntry(
        release_id="0a" * 16,
        decided_at=NOW,
        outcome=REFUSED,
        code="policy-denied",
        reasons=failures(checks),
        checks=checks,
        boot_info=refused.boot_info,
        document=None,
        ask=refused.ask,
        epochs=(),
        policy_revision=REVISION.digest,
        challenge=None,
        client="192.0.2.1",
        development=False,
        salt=bytes(16),
    )
    value: dict[str, Any] = json.loads(replace(entry, **changes).canonical)
    return value


def explained(rules: Rules | None, **changes: Any) -> dict[str, Any]:
    return explain_recorded(RecordedDecision.from_json(recorded(**changes)), rules)


def test_the_shape_of_an_explanation() -> None:
    told = explained(RULES)
    entry = recorded()
    assert set(told) == {
        *("release_id", "decided_at", "decision", "code", "policy_revision", "checks", "nearest", "boot_info")
    }
    assert told["decided_at"] == entry["decided_at"]
    assert told["boot_info"] == entry["boot_info"]
    [vmpl] = [each for each in told["checks"] if each["name"] == "vmpl"]
    line = VALID["valid/platform.yml"].splitlines().index(b"vmpl: [0]") + 1
    assert vmpl == {
        "name": "vmpl",
        "passed": False,
        "detail": "VMPL 1",
        "reason": "vmpl-not-allowed",
        "wanted": "[0]",
        "says": {
            "document": "guest standard",
            "member": "vmpl",
            "file": "valid/platform.yml",
            "line": line,
            "column": 1,
        },
    }
    assert json.loads(json.dumps(told)) == told


def test_without_the_revision_the_checks_are_told_as_they_were() -> None:
    told = explained(None)
    assert [(each["name"], each["passed"]) for each in told["checks"]] == [
        (each["name"], each["passed"]) for each in recorded()["checks"]
    ]
    assert {each["wanted"] for each in told["checks"]} == {None}
    assert {each["says"] for each in told["checks"]} == {None}
    assert told["policy_revision"] is None


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (None, "there is no image to compare it with"),
        (RULES, "the nearest known image is demo-os-1; "),
    ],
    ids=["no policy", "policy"],
)
def test_a_claimed_measurement_is_explained_by_its_words(rules: Rules | None, words: str) -> None:
    shown = BOOT_INFO.measurement.hex()
    claimed = Check("measurement-known", False, f"claimed {shown}: no allowed image", "measurement-unknown")
    told = explained(rules, boot_info=None, checks=(claimed,), code="measurement-unknown")
    assert told["nearest"].startswith(words)
    assert told["boot_info"] is None


@dataclass
class Stored:
    """The parts of records and history that an explanation reads."""

    value: dict[str, Any]
    revision: Revision | PolicyInvalid | None

    async def entry(self, release_id: str) -> dict[str, Any] | None:
        return self.value if release_id == self.value["release_id"] else None

    async def load(self, digest: str) -> Revision | None:
        if isinstance(self.revision, PolicyInvalid):
            raise self.revision
        return self.revision

    async def files(self, digest: str) -> None:
        return None


async def explain(stored: Stored) -> dict[str, Any]:
    async def at_once(work: Any, /) -> Any:
        return work()

    unused: Any = None
    database: Any = stored  # no more of it is asked
    work = RecordAdministration(
        records=database,
        history=database,
        policies=unused,
        authenticator=unused,
        advisories=unused,
        journal=journal(MemoryActions()),
        clock=lambda: NOW,
        beside=at_once,
        epochs=unused,
        identities=unused,
        development=False,
    )
    return await work.explain(actor(), "0a" * 16)


async def test_a_revision_that_is_damaged_explains_nothing() -> None:
    """Nobody who writes the database may make an explanation name rules that did not judge."""
    damaged = PolicyInvalid((Finding("(stored revision)", 1, 1, Severity.ERROR, "other bytes"),))
    with pytest.raises(LedgerUnavailable, match="is damaged"):
        await explain(Stored(recorded(), damaged))


async def test_a_revision_that_is_gone_leaves_the_checks() -> None:
    told = await explain(Stored(recorded(), None))
    assert (told["decision"], told["checks"][0]["wanted"]) == ("deny", None)


async def test_a_record_that_is_damaged() -> None:
    with pytest.raises(RecordDamaged):
        await explain(Stored({**recorded(), "checks": "none"}, REVISION))
