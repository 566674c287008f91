"""A server's database with many entries: decisions such as a year leaves behind, sequenced into its ledger.

They are written and sequenced by the server's own functions, in this process, as fast as it can.
"""

import asyncio
import secrets
from collections.abc import Mapping
from contextlib import AsyncExitStack, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from sqlalchemy import insert, select

from bench.server_processes import Kms
from bench.server_world import World
from kms.database.engine import reading, writing
from kms.database.ledger import LedgerStore
from kms.database.schema import decisions
from kms.ledger.entries import DECISION, SALT_LENGTH, timestamp
from kms.preflight import check_settings
from kms.sequencing import Sequencer
from kms.settings import load_settings
from kms.wiring.core import Core, build_core
from kms.wiring.stores import new_id, utc_now

_AT_ONCE: Final = 5000
_ENTRY: Final = 1000  # bytes: what grows with the ledger is the number of entries, not their length
_SERVER: Final = "bench"


def grow(folder: Path, world: World, number: int) -> None:
    """Let a new server give one release, and add so many entries to its database."""
    with Kms.running(folder, world.settings) as kms:
        with closing(kms.guests(1)) as guests:
            guests.release(world.requests(guests, 1))
        settings = kms.server.settings
    asyncio.run(_grow(settings, number))


async def _grow(environment: Mapping[str, str], number: int) -> None:
    settings, _ = load_settings(None, environment)
    async with AsyncExitStack() as stack:
        checked = check_settings(settings, serving=True)
        core = await build_core(settings, checked, stack)
        for start in range(0, number, _AT_ONCE):
            await _add(core, min(_AT_ONCE, number - start))
        keys = core.keys
        sequencer = Sequencer(
            LedgerStore(core.stores.engine),
            keys.entry_seal,
            keys.checkpoint_key,
            checked.anchor,
            utc_now,
            pause=_at_once,
        )
        while (await sequencer.round()).taken:
            pass


async def _at_once() -> None:
    """Nobody else waits in this process."""


async def _add(core: Core, number: int) -> None:
    """Add so many decisions in one transaction, as that of the guest that was there."""
    engine, now = core.stores.engine, timestamp(datetime.now(UTC))
    async with reading(engine) as connection:
        like = dict((await connection.execute(select(decisions).limit(1))).mappings().one())
    sealed = [
        core.keys.entry_seal.seal(
            kind=DECISION,
            id=new_id(),
            server=_SERVER,
            salt=secrets.token_bytes(SALT_LENGTH),
            entry=secrets.token_bytes(_ENTRY),
        )
        for _ in range(number)
    ]
    async with writing(engine) as connection:
        last = await core.keys.recorder.insert(connection, sealed)
        rows = [{**like, "id": each.id, "decided_at": now} for each in sealed]
        await connection.execute(insert(decisions), rows)
    core.keys.recorder.committed(last)
