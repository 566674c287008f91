"""Registers and journals in memory, for tests of what stands on them."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import count

from kms.administration.permission import Journal
from kms.administration.register import Entry, LastAdmin, Operator, Standing
from kms.errors import OperatorExists
from kms.ledger.actions import OperatorAction
from kms.operators import Actor, Proof, Role
from kms.strict_json import JsonValue
from tests.world import NOW


def actor(role: Role = Role.ADMIN, proof: Proof = Proof.TOKEN) -> Actor:
    return Actor(name=f"the {role}", role=role, proof=proof)


@dataclass
class MemoryActions:
    """Implements `kms.operator_ports.Actions`."""

    recorded: list[OperatorAction] = field(default_factory=list)

    async def record(self, action: OperatorAction) -> None:
        self.recorded.append(action)

    async def actions(self, *, before: str | None, limit: int) -> tuple[dict[str, JsonValue], ...]:
        newest = [each for each in reversed(self.recorded) if before is None or each.action_id < before]
        return tuple(each.to_json() for each in newest[:limit])


def journal(actions: MemoryActions, clock: Callable[[], datetime] = lambda: NOW) -> Journal:
    numbers = count(1)
    return Journal(actions=actions, clock=clock, new_id=lambda: f"{next(numbers):032x}")


@dataclass
class MemoryRegister:
    """Implements `kms.administration.register.Register`; what it does in a database is tested there."""

    actions: MemoryActions = field(default_factory=MemoryActions)
    operators: dict[str, Operator] = field(default_factory=dict)
    touched: list[str] = field(default_factory=list)

    async def add(self, operator: Operator, action: OperatorAction) -> None:
        found = self.operators.get(operator.name)
        if found is not None and found.standing(operator.created_at) is Standing.ACTIVE:
            raise OperatorExists("there is one")
        self.operators[operator.name] = operator
        await self.actions.record(action)

    async def revoke(
        self, name: str, at: datetime, action: OperatorAction, *, keep_an_admin: bool
    ) -> Operator | None:
        found = self.operators.get(name)
        if found is None:
            return None
        admins = [each.name for each in self.operators.values() if each.role is Role.ADMIN]
        if keep_an_admin and admins == [name]:
            raise LastAdmin
        self.operators[name] = replace(found, revoked_at=at)
        await self.actions.record(action)
        return self.operators[name]

    async def entries(self, *, after: str | None, limit: int) -> tuple[Entry, ...]:
        names = [name for name in sorted(self.operators) if after is None or name > after]
        return tuple(self.operators[name] for name in names[:limit])

    async def by_token_id(self, token_id: str) -> Operator | None:
        return next((each for each in self.operators.values() if each.token_id == token_id), None)

    async def by_subject(self, subject: str) -> Operator | None:
        return next((each for each in self.operators.values() if each.subject == subject), None)

    async def touch(self, operator: Operator) -> None:
        self.touched.append(operator.name)
