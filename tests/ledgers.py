"""A world's ledger: sequenced when a test says so, and read by what imports nothing of the project."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import httpx2
from sqlalchemy.ext.asyncio import AsyncEngine

from kms.anchor import FileAnchor
from kms.database.engine import writing
from kms.database.ledger import LedgerStore
from kms.keys.root_messages import ledger_message, root_prf
from kms.ledger.actions import OperatorAction
from kms.ledger.checkpoint import CheckpointKey
from kms.ledger.ledger_key import derive_checkpoint_key
from kms.operators import Actor, Proof, Role
from kms.sequencing import Sequencer
from tests.recording import entry_seal, recorder
from tests.roots import ROOT_SECRET
from tests.world import NOW, World

ADMIN = Actor(name="root", role=Role.ADMIN, proof=Proof.COMMAND_LINE)


def checkpoint_key(world: World) -> CheckpointKey:
    return derive_checkpoint_key(root_prf(ROOT_SECRET, ledger_message()), world.desk.identity.public_key)


def sequencer(world: World, folder: Path) -> Sequencer:
    """Give who sequences the world's ledger; its anchor is a file in `folder`."""
    return Sequencer(
        LedgerStore(world.engine),
        entry_seal(),
        checkpoint_key(world),
        FileAnchor(folder / "ledger-anchor.json"),
        world.desk.clock,
        pause=partial(asyncio.sleep, 0),
    )


async def record_actions(engine: AsyncEngine, count: int, *, first: int = 0) -> None:
    """Record so many actions in one transaction; their ids end with their numbers."""
    mine = recorder()
    async with writing(engine) as connection:
        for number in range(first, first + count):
            action = OperatorAction(
                action_id=f"{0xA << 124 | number:032x}",
                at=NOW,
                actor=ADMIN,
                action="tried",
                target=str(number),
                outcome="done",
                details={},
            )
            await mine.record_action(connection, action)


def fetching(client: httpx2.AsyncClient) -> Callable[[str], Awaitable[bytes]]:
    """Give what fetches a tile by its path below `/ledger/`."""

    async def fetch(path: str) -> bytes:
        response = await client.get(f"/ledger/{path}")
        assert response.status_code == 200, path
        return bytes(response.content)

    return fetch
