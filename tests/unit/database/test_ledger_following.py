"""A running server sequences, says how the ledger stands, and records nothing in one that went back."""

import asyncio
import json
import shutil
from datetime import datetime
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from kms.administration.permission import Journal
from kms.administration.rollback import ACCEPT_ROLLBACK, RollbackAcceptance
from kms.database.actions import ActionStore
from kms.database.engine import SQLITE_FILE, open_engine, sqlite_url
from kms.errors import ConfigurationError, Forbidden, LedgerUnavailable
from kms.ledger_following import FollowedLedger
from kms.ledger_ports import ROLLED_BACK, UNTRUSTED
from kms.operators import Actor, Proof, Role
from tests.unit.database.conftest import OpenAnother
from tests.unit.database.dialects import ON_POSTGRESQL, ON_SQLITE
from tests.unit.database.ledger_room import ACTOR, KEY, LedgerRoom
from tests.world import NOW


@pytest.fixture
def room(engine: AsyncEngine, tmp_path: Path) -> LedgerRoom:
    return LedgerRoom(engine, tmp_path)


def followed_by(room: LedgerRoom) -> FollowedLedger:
    return FollowedLedger(room.sequencer, room.recorder)


def acceptance(room: LedgerRoom) -> RollbackAcceptance:
    journal = Journal(
        actions=ActionStore(room.engine, room.recorder), clock=lambda: NOW, new_id=lambda: "accepted"
    )
    return RollbackAcceptance(ledger=room.store, key=KEY.verifier_key, anchor=room.anchor, journal=journal)


async def test_a_started_one_sequences_by_itself(room: LedgerRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kms.ledger_following._ROUND_EVERY", 0.01)
    followed = followed_by(room)
    assert not followed.alive
    followed.start()
    await room.record(0, 3)
    async with asyncio.timeout(10):
        while followed.figures.size < 3:  # noqa: ASYNC110 -- what is tested has no event for it
            await asyncio.sleep(0.01)
    assert followed.alive
    assert not followed.stale
    await followed.stop()
    assert not followed.alive


async def test_what_was_recorded_last_has_its_checkpoint_when_it_stops(
    room: LedgerRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kms.ledger_following._ROUND_EVERY", 60)
    followed = followed_by(room)
    followed.start()
    await room.record(0, 3)
    await followed.stop()
    assert followed.figures.size == 3


@ON_POSTGRESQL
async def test_even_while_another_has_the_turn(
    room: LedgerRoom, open_another: OpenAnother, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That one began its last look before our last entries, and ends with it."""
    monkeypatch.setattr("kms.ledger_following._ROUND_EVERY", 60)
    followed, another = followed_by(room), LedgerRoom(open_another(), tmp_path)
    followed.start()
    async with another.store.turn() as theirs:
        assert theirs
        await room.record(0, 3)
        stopping = asyncio.create_task(followed.stop())
        await asyncio.sleep(0.3)
    await stopping
    assert followed.figures.size == 3


async def test_figures(room: LedgerRoom) -> None:
    followed = followed_by(room)
    figures = followed.figures
    assert (figures.size, figures.waiting, figures.checkpoint_made_at) == (0, 0, None)
    await room.record(0, 5)
    await room.by_hand("UPDATE entries SET mac = salt WHERE place = 2")
    await followed.refresh()
    figures = followed.figures
    assert (figures.size, figures.waiting, figures.checkpoint_made_at) == (4, 0, NOW)
    assert (figures.not_authentic, figures.refused) == (1, False)
    assert isinstance(figures.checkpoint_made_at, datetime)


async def test_a_round_leaves_nothing_over(room: LedgerRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kms.sequencing.MOST_AT_ONCE", 1)
    monkeypatch.setattr("kms.sequencing.PAGE", 2)
    followed = followed_by(room)
    await room.record(0, 7)
    await followed.refresh()
    assert followed.figures.size == 7


async def test_a_database_that_does_not_answer_refuses_nothing(
    room: LedgerRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    followed = followed_by(room)

    async def away(_: object) -> None:
        raise LedgerUnavailable("away")

    monkeypatch.setattr("kms.database.ledger.LedgerStore.state", away)
    with pytest.raises(LedgerUnavailable, match="away"):
        await followed.require_at_start()
    assert followed.refused is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("DELETE FROM ledger_checkpoints WHERE size > 2", ROLLED_BACK),
        ("UPDATE ledger_checkpoints SET note = 'x' WHERE size = 4", UNTRUSTED),
    ],
)
async def test_a_ledger_that_is_not_to_be_trusted_stops_recording_until_it_is_mended(
    room: LedgerRoom, change: str, reason: str
) -> None:
    followed = followed_by(room)
    for first in (0, 2):
        await room.record(first, 2)
        await followed.refresh()
    await room.by_hand("CREATE TABLE kept AS SELECT * FROM ledger_checkpoints")
    await room.by_hand(change)
    with pytest.raises(LedgerUnavailable):
        await followed.refresh()
    assert followed.refused is not None
    assert followed.refused.reason == reason
    assert followed.figures.refused
    with pytest.raises(LedgerUnavailable) as refused:
        await room.record(4)
    assert refused.value.reason == reason
    with pytest.raises(ConfigurationError) as at_start:
        await followed.require_at_start()
    assert "kms ledger" in at_start.value.remedy
    await room.by_hand("DELETE FROM ledger_checkpoints")
    await room.by_hand("INSERT INTO ledger_checkpoints SELECT * FROM kept")
    await followed.refresh()
    assert followed.refused is None
    await room.record(4)


@ON_SQLITE
class TestRestoredFile:
    """An older copy of SQLite's file is put in the place of the newer one."""

    async def restore(self, room: LedgerRoom, folder: Path) -> LedgerRoom:
        """Give a server that starts on a copy from before the last entries, with the newest anchor."""
        await room.record(0, 3)
        await room.sequence()
        await room.by_hand("PRAGMA wal_checkpoint(TRUNCATE)")
        copy = folder / "copy.sqlite3"
        shutil.copyfile(folder / SQLITE_FILE, copy)
        await room.record(3, 2)
        await room.sequence()
        await room.engine.dispose()
        for suffix in ("-wal", "-shm"):
            (folder / f"{SQLITE_FILE}{suffix}").unlink(missing_ok=True)
        copy.replace(folder / SQLITE_FILE)
        return LedgerRoom(open_engine(sqlite_url(folder)), folder)

    async def test_no_server_starts_on_it(self, room: LedgerRoom, tmp_path: Path) -> None:
        restarted = await self.restore(room, tmp_path)
        with pytest.raises(ConfigurationError) as refused:
            await followed_by(restarted).require_at_start()
        assert "of 3 entries" in refused.value.detail
        assert "of 5 entries" in refused.value.detail
        assert "kms ledger accept-rollback" in refused.value.remedy
        await restarted.engine.dispose()

    async def test_a_running_server_records_nothing_more(self, room: LedgerRoom, tmp_path: Path) -> None:
        running = followed_by(room)
        await running.refresh()
        restarted = await self.restore(room, tmp_path)  # the engine's connections find the new file
        with pytest.raises(LedgerUnavailable) as refused:
            await running.refresh()
        assert refused.value.reason == ROLLED_BACK
        with pytest.raises(LedgerUnavailable):
            await room.record(9)
        await restarted.engine.dispose()

    async def test_even_before_it_looks_at_the_ledger(self, room: LedgerRoom, tmp_path: Path) -> None:
        restarted = await self.restore(room, tmp_path)
        with pytest.raises(LedgerUnavailable) as refused:
            await room.record(9)
        assert refused.value.reason == ROLLED_BACK
        await restarted.engine.dispose()

    async def test_an_operator_can_accept_it_and_that_is_an_entry(
        self, room: LedgerRoom, tmp_path: Path
    ) -> None:
        running = followed_by(room)
        restarted = await self.restore(room, tmp_path)
        with pytest.raises(LedgerUnavailable):
            await running.refresh()
        done = await acceptance(restarted).accept(ACTOR, "the disk burnt")
        assert (done.before.size, done.after.size) == (5, 3)
        await followed_by(restarted).require_at_start()
        assert (await restarted.ids())[3:] == ["accepted"]
        [leaf] = await restarted.store.leaves(3, limit=1)
        assert leaf.entry is not None
        entry = json.loads(leaf.entry.entry)
        assert entry["action"] == ACCEPT_ROLLBACK
        assert entry["details"]["message"] == "the disk burnt"
        assert (entry["details"]["before"]["size"], entry["details"]["after"]["size"]) == (5, 3)
        # The server that was running takes it up by itself.
        await running.refresh()
        assert running.refused is None
        await room.record(9)
        await running.refresh()
        assert await restarted.require_sound() == 5
        await restarted.engine.dispose()


class TestAccepting:
    async def test_a_ledger_that_did_not_go_back_is_not_touched(self, room: LedgerRoom) -> None:
        await room.record(0, 2)
        await room.sequence()
        before = room.anchor.path.read_bytes()
        with pytest.raises(ConfigurationError, match="did not go back"):
            await acceptance(room).accept(ACTOR, "why not")
        assert room.anchor.path.read_bytes() == before
        assert (await room.store.state()).end == 2

    async def test_a_database_without_any_ledger(self, room: LedgerRoom) -> None:
        await room.record(0, 2)
        await room.sequence()
        for table in ("ledger_checkpoints", "ledger_leaves", "ledger_tiles", "entries"):
            await room.by_hand(f"DELETE FROM {table}")  # noqa: S608 -- names from above
        room.recorder.forget()
        done = await acceptance(room).accept(ACTOR, "new disk")
        assert (done.before.size, done.after.size) == (2, 0)
        room.sequencer = room.new_sequencer()
        await room.sequence()
        assert await room.ids() == ["accepted"]

    @pytest.mark.parametrize(
        "change",
        [
            "UPDATE ledger_checkpoints SET note = 'x'",
            "UPDATE ledger_tiles SET hashes = salt FROM entries WHERE level = 0 AND place = 1",
        ],
    )
    async def test_what_this_kms_did_not_make_is_never_accepted(self, room: LedgerRoom, change: str) -> None:
        for first in (0, 2):
            await room.record(first, 2)
            await room.sequence()
        await room.by_hand("DELETE FROM ledger_checkpoints WHERE size > 2")
        await room.by_hand(change)
        before = room.anchor.path.read_bytes()
        with pytest.raises(LedgerUnavailable) as refused:
            await acceptance(room).accept(ACTOR, "please")
        assert refused.value.reason == UNTRUSTED
        assert room.anchor.path.read_bytes() == before
        assert (await room.store.state()).end == 4

    async def test_only_an_admin_may(self, room: LedgerRoom) -> None:
        actor = Actor(name="otto", role=Role.OPERATOR, proof=Proof.TOKEN)
        with pytest.raises(Forbidden):
            await acceptance(room).accept(actor, "please")
