"""An office that does nothing but remember: for tests of what stands before one (commands, routes)."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from kms.administration.office import Files, Json, Office
from kms.operator_ports import RecordFilter
from kms.operators import Actor, Role
from kms.policy.history import PolicySignature
from kms.strict_json import JsonValue


@dataclass(frozen=True)
class Call:
    """What was asked of the office: `arguments` by name, without the actor."""

    method: str
    actor: Actor
    arguments: dict[str, Any]


@dataclass
class FakeOffice:
    """Implements every part of an `Office`; `office` is one whose parts are all this object.

    An answer is looked up by method name: an exception is raised, a function is called with the arguments,
    and anything else is given as it is. Policies and operators both have a `revoke`: that name answers for
    policies, `revoke_operator` for operators.
    """

    answers: dict[str, Json | Exception | Callable[..., Json]] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)

    @property
    def office(self) -> Office:
        return Office(
            policies=self, records=self, images=self, operators=_Operators(self), keys=self, ledger=self
        )

    def asked(self, method: str) -> list[dict[str, Any]]:
        """Give the arguments of every call of a method."""
        return [call.arguments for call in self.calls if call.method == method]

    def answer(self, method: str, actor: Actor, **arguments: Any) -> Json:
        self.calls.append(Call(method, actor, arguments))
        answer = self.answers[method]
        if isinstance(answer, Exception):
            raise answer
        return answer(**arguments) if callable(answer) else answer

    async def status(self, actor: Actor) -> Json:
        return self.answer("status", actor)

    async def history(self, actor: Actor, *, before: int | None, limit: int) -> Json:
        return self.answer("history", actor, before=before, limit=limit)

    async def revision(self, actor: Actor, revision: str) -> Json:
        return self.answer("revision", actor, revision=revision)

    async def diff(self, actor: Actor, *, old: str | None, new: str | Files) -> Json:
        return self.answer("diff", actor, old=old, new=new)

    async def lint(self, actor: Actor, files: Files) -> Json:
        return self.answer("lint", actor, files=files)

    async def what_if(self, actor: Actor, new: str | Files, *, since: timedelta) -> Json:
        return self.answer("what_if", actor, new=new, since=since)

    async def apply(
        self,
        actor: Actor,
        new: str | Files,
        *,
        message: str,
        expect: str | None,
        gate: timedelta | None = None,
        lift_revocations: bool = False,
    ) -> Json:
        return self.answer(
            "apply",
            actor,
            new=new,
            message=message,
            expect=expect,
            gate=gate,
            lift_revocations=lift_revocations,
        )

    async def rollback(self, actor: Actor, revision: str, *, message: str, expect: str | None) -> Json:
        return self.answer("rollback", actor, revision=revision, message=message, expect=expect)

    async def revoke(self, actor: Actor, kind: str, value: str, *, reason: str) -> Json:
        return self.answer("revoke", actor, kind=kind, value=value, reason=reason)

    async def proposals(self, actor: Actor) -> Json:
        return self.answer("proposals", actor)

    async def proposal(self, actor: Actor, revision: str) -> Json:
        return self.answer("proposal", actor, revision=revision)

    async def propose(
        self, actor: Actor, new: str | Files, *, message: str, lift_revocations: bool = False
    ) -> Json:
        return self.answer("propose", actor, new=new, message=message, lift_revocations=lift_revocations)

    async def sign(self, actor: Actor, revision: str, signature: PolicySignature) -> Json:
        return self.answer("sign", actor, revision=revision, signature=signature)

    async def releases(self, actor: Actor, wanted: RecordFilter, *, limit: int) -> Json:
        return self.answer("releases", actor, wanted=wanted, limit=limit)

    async def release(self, actor: Actor, release_id: str) -> Json:
        return self.answer("release", actor, release_id=release_id)

    async def explain(self, actor: Actor, release_id: str) -> Json:
        return self.answer("explain", actor, release_id=release_id)

    async def verify(
        self, actor: Actor, evidence: JsonValue, *, request: bytes | None, at: datetime | None
    ) -> Json:
        return self.answer("verify", actor, evidence=evidence, request=request, at=at)

    async def images(self, actor: Actor, *, after: str | None, limit: int) -> Json:
        return self.answer("images", actor, after=after, limit=limit)

    async def measurements(self, actor: Actor, name: str, *, after: str | None, limit: int) -> Json:
        return self.answer("measurements", actor, name=name, after=after, limit=limit)

    async def keys(self, actor: Actor) -> Json:
        return self.answer("keys", actor)

    async def rotate(self, actor: Actor, *, at: datetime | None) -> Json:
        return self.answer("rotate", actor, at=at)

    async def retire(self, actor: Actor, epoch: int, *, seen_within: timedelta, force: bool) -> Json:
        return self.answer("retire", actor, epoch=epoch, seen_within=seen_within, force=force)

    async def rotation(self, actor: Actor, *, app: str | None, since: timedelta) -> Json:
        return self.answer("rotation", actor, app=app, since=since)

    async def rotate_identity(self, actor: Actor) -> Json:
        return self.answer("rotate_identity", actor)

    async def entries(self, actor: Actor, *, start: int, limit: int, kind: str | None) -> Json:
        return self.answer("entries", actor, start=start, limit=limit, kind=kind)

    async def entry(self, actor: Actor, which: int | str) -> Json:
        return self.answer("entry", actor, which=which)

    async def statement(self, actor: Actor) -> Json:
        return self.answer("statement", actor)

    async def checkpoint(self, actor: Actor) -> str:
        return json.dumps(self.answer("checkpoint", actor))

    async def proof(self, actor: Actor, release_id: str) -> Json:
        return self.answer("proof", actor, release_id=release_id)


@dataclass
class _Operators:
    fake: FakeOffice

    async def operators(self, actor: Actor, *, after: str | None, limit: int) -> Json:
        return self.fake.answer("operators", actor, after=after, limit=limit)

    async def add(
        self, actor: Actor, name: str, role: Role, *, life: timedelta | None, subject: str | None
    ) -> Json:
        return self.fake.answer("add", actor, name=name, role=role, life=life, subject=subject)

    async def revoke(self, actor: Actor, name: str) -> Json:
        return self.fake.answer("revoke_operator", actor, name=name)

    async def actions(self, actor: Actor, *, before: str | None, limit: int) -> Json:
        return self.fake.answer("actions", actor, before=before, limit=limit)
