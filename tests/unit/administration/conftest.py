"""Policy work on a database of its own: two keys of three widen, one narrows, where there is a trust file."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy.ext.asyncio import AsyncEngine

from kms.administration.changing import PolicyChanger
from kms.administration.office import Json
from kms.administration.permission import Journal
from kms.administration.policies import PolicyAdministration
from kms.database.actions import ActionStore
from kms.database.engine import open_engine, sqlite_url
from kms.database.migrate import migrate
from kms.operators import Actor, Proof, Role
from kms.packaged import load_advisories, packaged_folder
from kms.policy.revision import Revision
from kms.policy.trust import PolicyTrust
from tests.changer import open_changer
from tests.recording import recorder
from tests.world import NOW

KEYS = {
    name: Ed25519PrivateKey.from_private_bytes(name.encode().ljust(32)) for name in ("alice", "bob", "carol")
}
TRUST = PolicyTrust(
    keys={name: key.public_key().public_bytes_raw() for name, key in KEYS.items()}, widen=2, narrow=1
)
OPERATOR = Actor(name="olga", role=Role.OPERATOR, proof=Proof.TOKEN, proof_id="07", client="192.0.2.7")
VIEWER = Actor(name="vera", role=Role.VIEWER, proof=Proof.TOKEN, client="192.0.2.8")


@dataclass
class Rehearsed:
    """What what-if says; `asked` are the candidates."""

    newly_refused: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    complete: bool = True

    async def __call__(self, candidate: Revision, since: timedelta) -> Json:
        self.asked.append(candidate.digest)
        return {"newly_refused": [*self.newly_refused], "complete": self.complete, "since": since.days}


@dataclass(frozen=True)
class PolicyRoom:
    """Policy work, and what is behind it."""

    work: Any  # a `PolicyAdministration`: its answers are JSON
    changer: PolicyChanger
    actions: ActionStore
    rehearsed: Rehearsed
    engine: AsyncEngine
    folder: Path

    async def recorded(self) -> list[tuple[object, object, object]]:
        """Give who did what with which outcome, oldest first."""
        found = await self.actions.actions(before=None, limit=500)
        return [(each["operator"], each["action"], each["outcome"]) for each in reversed(found)]


async def open_room(folder: Path, trust: PolicyTrust | None) -> PolicyRoom:
    engine = open_engine(sqlite_url(folder))
    await migrate(engine, packaged_folder("migrations"))
    changer = await open_changer(engine, folder, lambda: NOW, trust)
    actions, ids, rehearsed = ActionStore(engine, recorder()), count(1), Rehearsed()
    new_id: Callable[[], str] = lambda: f"{next(ids):032x}"  # noqa: E731
    work = PolicyAdministration(
        changer=changer,
        journal=Journal(actions=actions, clock=lambda: NOW, new_id=new_id),
        clock=lambda: NOW,
        beside=changer.beside,
        advisories=load_advisories(),
        development=False,
        rehearse=rehearsed,
    )
    return PolicyRoom(work, changer, actions, rehearsed, engine, folder)


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[PolicyRoom]:
    made = await open_room(tmp_path, None)
    yield made
    await made.engine.dispose()


@pytest.fixture
async def signed_room(tmp_path: Path) -> AsyncIterator[PolicyRoom]:
    made = await open_room(tmp_path, TRUST)
    yield made
    await made.engine.dispose()
