"""Entries for tests that are about how they are recorded, not about what they say."""

from dataclasses import replace

from kms.ledger.entries import REFUSED, DecisionEntry
from kms.policy.decision import Ask
from tests.world import NOW


def refusal(name: str, **changes: object) -> DecisionEntry:
    """Give a refusal of this release id in which nobody proved anything and no challenge was spent."""
    made = DecisionEntry(
        release_id=name,
        decided_at=NOW,
        outcome=REFUSED,
        code="policy-denied",
        reasons=(),
        checks=(),
        boot_info=None,
        document=None,
        ask=Ask(keys=()),
        epochs=(),
        policy_revision=None,
        challenge=None,
        client="192.0.2.1",
        development=False,
        salt=bytes(16),
    )
    return replace(made, **changes)  # type: ignore[arg-type]
