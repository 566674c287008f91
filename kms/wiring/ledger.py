"""The ledger: its store, who sequences it, and what is done about it before a server listens."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

from kms.administration.rollback import RollbackAcceptance
from kms.anchor import Anchor
from kms.database.founding import FOUNDED, found_ledger
from kms.database.ledger import LedgerStore
from kms.ledger.actions import OperatorAction
from kms.ledger.checkpoint import CheckpointKey
from kms.ledger.sealed_entry import EntrySeal
from kms.ledger_following import FollowedLedger
from kms.ledger_ports import LedgerReader
from kms.operators import Actor, Proof, Role
from kms.sequencing import Sequencer
from kms.settings import Settings
from kms.wiring.core import Core, opened_core
from kms.wiring.stores import utc_now

# The server itself, before it serves anybody.
_FOUNDER: Final = Actor(name="founding", role=Role.ADMIN, proof=Proof.COMMAND_LINE)


async def follow_ledger(core: Core, anchor: Anchor) -> FollowedLedger:
    """Look at the ledger before the server listens; give what follows it from then on, not started.

    What was recorded before there was a ledger is taken over, where neither the database nor the anchor knows
    of one.

    Raises:
        ConfigurationError: nothing may be recorded in it: it is an older copy, or somebody changed it.
        LedgerUnavailable: the database or the anchor does not answer.

    """
    keys, store = core.keys, LedgerStore(core.stores.engine)

    def founded(count: int) -> OperatorAction:
        return core.parts.journal.entry(_FOUNDER, FOUNDED, details={"entries": count})

    # Never where the anchor has seen a ledger, be it of no entry: what has no MAC then, somebody wrote.
    if await anchor.read_ledger() is None and await store.head() is None:
        await found_ledger(core.stores.engine, keys.entry_seal, keys.recorder, founded)
    pause = partial(asyncio.sleep, 0)
    sequencer = Sequencer(store, keys.entry_seal, keys.checkpoint_key, anchor, utc_now, pause=pause)
    followed = FollowedLedger(sequencer, keys.recorder)
    await followed.require_at_start()
    return followed


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalLedger:
    """What commands need that judge the ledger where it is kept. `anchor` is this machine's."""

    reader: LedgerReader
    key: CheckpointKey
    seal: EntrySeal
    anchor: Anchor
    acceptance: RollbackAcceptance


@asynccontextmanager
async def open_ledger(settings: Settings) -> AsyncIterator[LocalLedger]:
    """Open the ledger on the settings' database, for commands: a server may be running beside.

    Raises:
        ConfigurationError: the operator must change something; it says what.
        RootKeyUnavailable: the root cannot be used now.

    """
    async with opened_core(settings) as (core, checked):
        keys, store = core.keys, LedgerStore(core.stores.engine)
        yield LocalLedger(
            reader=store,
            key=keys.checkpoint_key,
            seal=keys.entry_seal,
            anchor=checked.anchor,
            acceptance=RollbackAcceptance(
                ledger=store,
                key=keys.checkpoint_key.verifier_key,
                anchor=checked.anchor,
                journal=core.parts.journal,
            ),
        )
