"""What was recorded before there was a ledger is taken over once, and never again."""

from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from kms.database.founding import FOUNDED, found_ledger
from kms.ledger.actions import OperatorAction
from kms.strict_json import parse_object
from tests.recording import entry_seal
from tests.unit.database.ledger_room import ACTOR, LedgerRoom
from tests.world import NOW


@pytest.fixture
def room(engine: AsyncEngine, tmp_path: Path) -> LedgerRoom:
    return LedgerRoom(engine, tmp_path)


def founded(count: int) -> OperatorAction:
    return OperatorAction(
        action_id="founded",
        at=NOW,
        actor=ACTOR,
        action=FOUNDED,
        target=None,
        outcome="done",
        details={"entries": count},
    )


async def found(room: LedgerRoom) -> int:
    return await found_ledger(room.engine, entry_seal(), room.recorder, founded)


async def before_the_ledger(room: LedgerRoom, count: int) -> None:
    """Leave entries as the migration does."""
    await room.record(0, count)
    await room.by_hand("UPDATE entries SET mac = NULL, server = ''")


async def test_entries_of_before_become_leaves_in_their_order(
    room: LedgerRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kms.database.founding._PAGE", 4)
    await before_the_ledger(room, 10)
    assert await found(room) == 10
    assert (await room.sequence()).passed_over == ()
    assert await room.ids() == [*(f"action-{number:06}" for number in range(10)), "founded"]
    assert await room.require_sound() == 11
    leaf = await room.store.leaf_of("founded")
    assert leaf is not None
    assert leaf.entry is not None
    assert parse_object(leaf.entry.entry)["details"] == {"entries": 10}


async def test_it_is_recorded_once_however_often_it_is_done(room: LedgerRoom) -> None:
    await before_the_ledger(room, 3)
    await room.by_hand("UPDATE entries SET mac = :half WHERE place = 2", half=bytes(32))
    for _ in range(3):
        assert await found(room) == 3
    rows = await room.rows("SELECT id FROM entries WHERE id = 'founded'")
    assert len(rows) == 1
    # What has a MAC keeps it, right or wrong.
    done = await room.sequence()
    assert (done.taken, len(done.passed_over)) == (3, 1)


async def test_a_new_database_has_nothing_to_take_over(room: LedgerRoom) -> None:
    assert await found(room) == 0
    assert (await room.store.state()).end == 0


async def test_an_entry_without_a_mac_of_a_server_by_name_is_nobodys(room: LedgerRoom) -> None:
    await room.record(0, 2)
    await room.by_hand("UPDATE entries SET mac = NULL WHERE place = 1")
    assert await found(room) == 0
    done = await room.sequence()
    assert (done.taken, len(done.passed_over)) == (1, 1)
