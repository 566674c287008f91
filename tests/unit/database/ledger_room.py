"""A ledger on a real database: recording, sequencing and reading it, and changing it by hand."""

import asyncio
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final, cast

from sqlalchemy import insert, text
from sqlalchemy.ext.asyncio import AsyncEngine

from kms.anchor import FileAnchor
from kms.database.engine import reading, writing
from kms.database.ledger import LedgerStore
from kms.database.schema import operator_actions
from kms.keys.root_messages import ledger_message, root_prf
from kms.ledger.actions import OperatorAction
from kms.ledger.entries import timestamp
from kms.ledger.ledger_key import derive_checkpoint_key
from kms.ledger.tiles import DATA_LEVEL, TileName, entry_bundle
from kms.ledger_ports import LedgerWriter
from kms.operators import Actor, Proof, Role
from kms.sequencing import Round, Sequencer
from tests.ledger_verifier import verify_ledger
from tests.recording import entry_seal, recorder
from tests.roots import ROOT_SECRET
from tests.world import NOW

KEY: Final = derive_checkpoint_key(root_prf(ROOT_SECRET, ledger_message()), bytes(32))
ACTOR: Final = Actor(name="ada", role=Role.ADMIN, proof=Proof.COMMAND_LINE)


def action(number: int) -> OperatorAction:
    return OperatorAction(
        action_id=f"action-{number:06}",
        at=NOW,
        actor=ACTOR,
        action="policy-apply",
        target=None,
        outcome="done",
        details={"number": number},
    )


class LedgerRoom:
    """A server: its connections, its anchor, its sequencer."""

    def __init__(self, engine: AsyncEngine, folder: Path, *, anchor: str = "anchor.json") -> None:
        self.engine = engine
        self.store = LedgerStore(engine)
        self.anchor = FileAnchor(folder / anchor)
        self.recorder = recorder()
        self.sequencer = self.new_sequencer()

    def new_sequencer(self, ledger: LedgerWriter | None = None) -> Sequencer:
        """Give that of a process that starts now."""
        pause = partial(asyncio.sleep, 0)
        return Sequencer(ledger or self.store, entry_seal(), KEY, self.anchor, lambda: NOW, pause=pause)

    async def record(self, first: int, count: int = 1) -> None:
        """Record actions with these numbers."""
        actions = [action(number) for number in range(first, first + count)]
        lookups = [
            {
                "id": each.action_id,
                "at": timestamp(each.at),
                "operator": each.actor.name,
                "action": each.action,
                "outcome": each.outcome,
            }
            for each in actions
        ]
        async with writing(self.engine) as connection:
            last = await self.recorder.insert(connection, [self.recorder.action(each) for each in actions])
            await connection.execute(insert(operator_actions), lookups)
        self.recorder.committed(last)

    async def round(self) -> Round:
        return await self.sequencer.round()

    async def sequence(self) -> Round:
        """Take all that waits."""
        done = await self.round()
        while done.more:
            done = await self.round()
        return done

    async def by_hand(self, statement: str, **values: object) -> None:
        """Do to the database what its owner can."""
        async with self.engine.begin() as connection:
            await connection.execute(text(statement), values)

    async def rows(self, statement: str) -> list[Mapping[str, object]]:
        async with reading(self.engine) as connection:
            return [dict(row._mapping) for row in await connection.execute(text(statement))]

    async def ids(self) -> list[str | None]:
        """Give the ids of the entries that are leaves, by index."""
        leaves = await self.store.leaves(0, limit=100_000)
        return [each.entry.id if each.entry else None for each in leaves]

    async def require_sound(self) -> int:
        """Have the tests' own verifier look at everything that is published; give the size."""
        head = await self.store.head()
        if head is None:
            return 0
        leaves = await self.store.leaves(0, limit=100_000)
        found = await self.rows("SELECT level, number, hashes FROM ledger_tiles")
        tiles = {(row["level"], row["number"]): cast("bytes", row["hashes"]) for row in found}

        def fetch(path: str) -> bytes:
            name = TileName.parse(path)
            hashes = tiles[name.level, name.number]
            return entry_bundle(hashes) if name.level == DATA_LEVEL else hashes

        entries = [(each.entry.salt, each.entry.entry) for each in leaves if each.entry]
        return verify_ledger(head.note, KEY.verifier_key, entries, fetch)
