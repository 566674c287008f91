"""What the owner of the database can do to the ledger by rows: it is passed over, named, and stops nobody."""

# ruff: noqa: S608 -- the owner writes what he likes

import asyncio
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from kms.administration.auditing import audit
from kms.database.founding import found_ledger
from kms.database.records import DecisionRecords
from kms.ledger.findings import FindingKind, Report
from kms.ledger.recorded import RecordDamaged
from kms.operator_ports import RecordFilter
from tests.recording import entry_seal, recorder
from tests.unit.database.conftest import OpenAnother
from tests.unit.database.ledger_room import KEY, LedgerRoom, action

COLUMNS = "place, id, kind, server, entry, salt, mac"
TABLES = ("entries", "ledger_leaves", "ledger_tiles", "ledger_checkpoints")
FORGED = (
    "INSERT INTO decisions (id, decided_at, outcome) VALUES ('forged', '2026-01-01T00:00:00Z', 'released')"
)


@pytest.fixture
def room(engine: AsyncEngine, tmp_path: Path) -> LedgerRoom:
    return LedgerRoom(engine, tmp_path)


@pytest.fixture
def other(open_another: OpenAnother, tmp_path: Path) -> LedgerRoom:
    return LedgerRoom(open_another(), tmp_path, anchor="other.json")


async def verify(room: LedgerRoom) -> Report:
    head = await room.store.head()
    assert head is not None
    async with asyncio.timeout(10):
        return await audit(room.store, head, KEY.verifier_key, verifies=entry_seal().verifies)


async def named(room: LedgerRoom) -> set[tuple[FindingKind, int | None, str | None]]:
    return {(each.kind, each.index, each.id) for each in (await verify(room)).findings}


async def forge(room: LedgerRoom, place: int) -> None:
    row = f"INSERT INTO entries ({COLUMNS}) VALUES ({place}, 'forged', 'decision', 's', :some, :some, :some)"
    await room.by_hand(row, some=b'{"release_id":"forged","decided_at":"2026-01-01T00:00:00Z"}')
    await room.by_hand(FORGED)


async def sealed_by_a_staged_founding(room: LedgerRoom, other: LedgerRoom) -> None:
    """Leave `made_entries`, with a forged entry under a MAC that is right; all else is as it was."""
    for table in TABLES:
        await room.by_hand(f"CREATE TABLE keep_{table} AS SELECT * FROM {table}")
        await room.by_hand(f"DELETE FROM {table}")
    forged = action(66).canonical.replace(b"policy-apply", b"forged-by-db")
    row = f"INSERT INTO entries ({COLUMNS}) VALUES (1, 'action-000066', 'action', '', :entry, :salt, NULL)"
    await room.by_hand(row, entry=forged, salt=bytes(16))
    await found_ledger(other.engine, entry_seal(), other.recorder, lambda number: action(900 + number))
    await room.by_hand("CREATE TABLE made_entries AS SELECT * FROM entries")
    for table in TABLES:
        await room.by_hand(f"DELETE FROM {table}")
        await room.by_hand(f"INSERT INTO {table} SELECT * FROM keep_{table}")


async def put_forged(room: LedgerRoom, place: int) -> None:
    row = "id, kind, server, entry, salt, mac FROM made_entries WHERE id = 'action-000066'"
    await room.by_hand(f"INSERT INTO entries ({COLUMNS}) SELECT {place}, {row}")


async def test_a_staged_founding_seals_nothing_for_a_ledger_that_has_begun(
    room: LedgerRoom, other: LedgerRoom
) -> None:
    await room.record(0, 5)
    await room.sequence()
    await sealed_by_a_staged_founding(room, other)
    await put_forged(room, 6)
    before = await verify(room)
    assert FindingKind.ENTRY_ADDED in {each.kind for each in before.findings}
    await room.record(7)
    done = await room.sequence()
    assert (done.taken, [each.kind for each in done.passed_over]) == (1, [FindingKind.ENTRY_ADDED])
    assert "action-000066" not in await room.ids()
    assert (FindingKind.ENTRY_ADDED, None, "action-000066") in await named(room)


async def test_a_leaf_of_before_behind_others_is_named(room: LedgerRoom) -> None:
    await room.record(0, 3)
    await room.sequence()
    # As if a sequencer had taken it: the seal is right, and the tree does not cover the server's name.
    leaf = await room.store.leaf_of("action-000001")
    assert leaf is not None
    assert leaf.entry is not None
    old = leaf.entry
    made = entry_seal().seal(kind=old.kind, id=old.id, server="", salt=old.salt, entry=old.entry)
    await room.by_hand("UPDATE entries SET server = '', mac = :mac WHERE place = 2", mac=made.mac)
    assert await named(room) == {(FindingKind.ENTRY_ADDED, 1, "action-000001")}


async def test_what_is_of_before_is_taken_whole_in_the_first_round(
    room: LedgerRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"kms.sequencing.MOST_AT_ONCE": 4, "kms.sequencing.PAGE": 2}.items():
        monkeypatch.setattr(name, value)
    for name, value in {"kms.database.ledger._ROWS_AT_ONCE": 3, "kms.database.ledger._MANY": 5}.items():
        monkeypatch.setattr(name, value)
    await room.record(0, 11)
    await room.by_hand("UPDATE entries SET mac = NULL, server = ''")
    await found_ledger(room.engine, entry_seal(), room.recorder, lambda number: action(900 + number))
    assert (await room.round()).taken == 12
    assert await room.require_sound() == 12
    assert (await verify(room)).sound


@pytest.mark.parametrize("place", [-5, -2, 0, 6, 10**15, 2**63 - 1])
async def test_a_forged_entry_is_named_wherever_it_stands(room: LedgerRoom, place: int) -> None:
    await room.record(0, 5)
    await room.sequence()
    await forge(room, place)
    assert (FindingKind.ENTRY_ADDED, None, "forged") in await named(room)


async def test_a_leaf_of_no_checkpoint_hides_no_entry(room: LedgerRoom) -> None:
    await room.record(0, 5)
    await room.sequence()
    await forge(room, 6)
    await room.by_hand("INSERT INTO ledger_leaves (number, place) VALUES (-1, 6)")
    assert await named(room) >= {
        (FindingKind.ENTRY_ADDED, None, "forged"),
        (FindingKind.LEAF_ADDED, None, None),
    }


async def test_a_forged_decision_is_shown_to_nobody(room: LedgerRoom) -> None:
    await forge(room, -5)
    records = DecisionRecords(room.engine, recorder())
    with pytest.raises(RecordDamaged):
        await records.entry("forged")
    [listed] = await records.entries(RecordFilter(), limit=5)
    assert listed.keys() == {"release_id", "decided_at"}


async def test_rows_to_look_up_what_is_not_there_are_named(
    room: LedgerRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kms.database.ledger._ROWS_AT_ONCE", 2)
    await room.record(0, 5)
    await room.sequence()
    await room.by_hand(FORGED)
    eve = "('eve', '2026-01-01T00:00:00Z', 'eve', 'policy-apply', 'done')"
    await room.by_hand(f"INSERT INTO operator_actions (id, at, operator, action, outcome) VALUES {eve}")
    assert await named(room) == {
        (FindingKind.LOOKUP_CHANGED, None, "forged"),
        (FindingKind.LOOKUP_CHANGED, None, "eve"),
    }


async def test_a_waiting_entry_that_cannot_be_looked_up_is_named(room: LedgerRoom) -> None:
    await room.record(0, 5)
    await room.sequence()
    await room.record(5)
    await room.by_hand("DELETE FROM operator_actions WHERE id = 'action-000005'")
    report = await verify(room)
    assert [(each.kind, each.id) for each in report.findings] == [
        (FindingKind.LOOKUP_CHANGED, "action-000005")
    ]
    assert report.waiting == 1


async def test_a_row_in_the_way_stops_no_sequencer(room: LedgerRoom, other: LedgerRoom) -> None:
    await room.record(0, 5)
    await room.sequence()
    await room.by_hand("INSERT INTO ledger_leaves (number, place) VALUES (-1, 7)")
    await room.record(5, 3)
    assert (await other.sequence()).taken == 3
    assert await room.require_sound() == 8
    assert (await verify(room)).sound


async def test_an_old_leaf_that_was_moved_there_stops_none_and_is_named(room: LedgerRoom) -> None:
    await room.record(0, 5)
    await room.sequence()
    await room.by_hand("UPDATE ledger_leaves SET place = 7 WHERE number = 0")
    await room.record(5, 3)
    assert (await room.sequence()).taken == 3
    assert await named(room) == {
        (FindingKind.ENTRY_REMOVED, 0, None),
        (FindingKind.ENTRY_MOVED, None, "action-000000"),
    }
