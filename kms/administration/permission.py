"""May this operator do that, and the record of what they did."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from kms.errors import Forbidden
from kms.ledger.actions import OperatorAction
from kms.ledger.budget import StrangerBudget
from kms.operator_ports import Actions
from kms.operators import Actor, Permission
from kms.ports import Clock
from kms.strict_json import JsonValue

DONE: Final = "done"
ATTEMPTS_PER_MINUTE: Final = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """Checks permissions and writes down what was done. `new_id` gives ids that sort by time."""

    actions: Actions
    clock: Clock
    new_id: Callable[[], str]
    # Some 500 bytes each: nobody with a token, of whatever role, shall fill the disk with attempts.
    attempts: StrangerBudget = field(default_factory=lambda: StrangerBudget(ATTEMPTS_PER_MINUTE))

    def entry(
        self,
        actor: Actor,
        action: str,
        target: str | None = None,
        *,
        outcome: str = DONE,
        details: Mapping[str, JsonValue] | None = None,
    ) -> OperatorAction:
        """Make an entry, for whoever stores it in a transaction of its own."""
        return OperatorAction(
            action_id=self.new_id(),
            at=self.clock(),
            actor=actor,
            action=action,
            target=target,
            outcome=outcome,
            details=dict(details or {}),
        )

    async def record(
        self,
        actor: Actor,
        action: str,
        target: str | None = None,
        *,
        outcome: str = DONE,
        details: Mapping[str, JsonValue] | None = None,
    ) -> None:
        """Write an entry down.

        Raises:
            LedgerUnavailable: it could not be made durable.

        """
        await self.actions.record(self.entry(actor, action, target, outcome=outcome, details=details))

    async def require(
        self, actor: Actor, permission: Permission, action: str, target: str | None = None
    ) -> None:
        """Go on only if the actor's role includes the permission.

        An attempt without it is recorded, up to so many a minute.

        Raises:
            Forbidden: it does not.

        """
        if not actor.may(permission):
            if self.attempts.take(self.clock()):
                await self.record(actor, action, target, outcome=Forbidden.code)
            raise Forbidden(
                f"the role {actor.role} of {actor.name} does not include {permission}",
                reason=f"role-may-not-{permission}",
            )
