"""What an operator did, as it is written down for ever: who, from where, what, and how it ended."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

import rfc8785

from kms.ledger.entries import timestamp
from kms.operators import Actor
from kms.strict_json import JsonValue

ACTION: Final = "action"


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorAction:
    """One action. `action` is a word such as ``policy-apply``; `target` what it was done to.

    `outcome` is ``done`` or the code of the refusal. `details` hold values for auditors, never a secret.
    """

    action_id: str
    at: datetime
    actor: Actor
    action: str
    target: str | None
    outcome: str
    details: dict[str, JsonValue]

    def to_json(self) -> dict[str, JsonValue]:
        """Give the entry."""
        return {
            "kind": ACTION,
            "action_id": self.action_id,
            "at": timestamp(self.at),
            "operator": self.actor.name,
            "role": self.actor.role.value,
            "proof": self.actor.proof.value,
            "proof_id": self.actor.proof_id,
            "client": self.actor.client,
            "action": self.action,
            "target": self.target,
            "outcome": self.outcome,
            "details": self.details,
        }

    @property
    def canonical(self) -> bytes:
        """The RFC 8785 bytes of the entry."""
        return rfc8785.dumps(self.to_json())
