"""The ledger's tables, read: what is there, what is gone, and what does not agree with it."""

from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from kms.database.decisions import DecisionStore
from kms.errors import LedgerUnavailable
from kms.ledger.merkle import leaf_hash
from kms.ledger_ports import UNTRUSTED
from tests.refusals import refusal
from tests.unit.database.dialects import ON_SQLITE
from tests.unit.database.ledger_room import LedgerRoom, action
from tests.world import NOW


@pytest.fixture
def room(engine: AsyncEngine, tmp_path: Path) -> LedgerRoom:
    return LedgerRoom(engine, tmp_path)


async def record_decision(room: LedgerRoom, release_id: str) -> None:
    decisions = DecisionStore(room.engine, lambda: NOW, room.recorder)
    decisions.start()
    await decisions.record(refusal(release_id), None)
    await decisions.stop()


async def test_an_empty_ledger(room: LedgerRoom) -> None:
    state = await room.store.state()
    assert (state.head, state.end, state.place) == (None, 0, 0)
    assert await room.store.head() is None
    assert await room.store.tile(0, 0) is None
    assert await room.store.leaves(0, limit=10) == ()
    assert await room.store.leaf_of("a") is None
    assert await room.store.recorded("a") is None
    assert [each async for each in room.store.unsequenced()] == []


async def test_leaves_by_index_and_by_entry(room: LedgerRoom) -> None:
    await room.record(0, 5)
    await room.sequence()
    leaves = await room.store.leaves(3, limit=10)
    assert [(each.index, each.place) for each in leaves] == [(3, 4), (4, 5)]
    assert await room.store.leaf_of("action-000003") == leaves[0]
    assert leaves[0].entry is not None
    assert leaves[0].entry.entry == action(3).canonical
    hashes = await room.store.tile(0, 0)
    assert hashes is not None
    assert hashes[96:128] == leaf_hash(leaves[0].entry.digest)
    assert len(await room.store.leaves(0, limit=2)) == 2


async def test_checkpoints_are_kept_largest_first(room: LedgerRoom) -> None:
    for number in range(4):
        await room.record(number)
        await room.sequence()
    every = await room.store.checkpoints(before=None, limit=10)
    assert [each.size for each in every] == [4, 3, 2, 1]
    assert await room.store.checkpoints(before=3, limit=1) == (every[2],)
    assert await room.store.head() == every[0]
    assert every[0].made_at == NOW


async def test_what_waits_and_what_was_never_taken(room: LedgerRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kms.database.ledger._ROWS_AT_ONCE", 3)
    await room.record(0, 4)
    await room.by_hand("UPDATE entries SET mac = NULL WHERE place = 2")
    await room.sequence()
    await room.record(10, 4)
    found = [each async for each in room.store.unsequenced()]
    assert [each.place for each in found] == [2, 5, 6, 7, 8]
    assert found[0].sealed is None
    assert found[1].sealed is not None
    assert (await room.store.state()).end == 8
    recorded = await room.store.recorded("action-000010")
    assert recorded == found[1]


async def test_a_leaf_whose_entry_is_gone_says_so(room: LedgerRoom) -> None:
    await room.record(0, 3)
    await room.sequence()
    await room.by_hand("DELETE FROM entries WHERE place = 2")
    leaves = await room.store.leaves(0, limit=10)
    assert [each.entry is None for each in leaves] == [False, True, False]
    assert (leaves[1].index, leaves[1].place) == (1, 2)


class TestLookups:
    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ("UPDATE operator_actions SET operator = 'eve'", "another operator"),
            ("UPDATE operator_actions SET at = '', outcome = ''", "another at, outcome"),
            ("DELETE FROM operator_actions", "no row"),
        ],
    )
    async def test_of_an_action(self, room: LedgerRoom, change: str, said: str) -> None:
        await room.record(0)
        await room.sequence()
        assert (await room.store.leaves(0, limit=1))[0].lookup is None
        await room.by_hand(change)
        [leaf] = await room.store.leaves(0, limit=1)
        assert leaf.lookup is not None
        assert said in leaf.lookup

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ("UPDATE decisions SET outcome = 'released', code = NULL", "another code, outcome"),
            ("UPDATE decisions SET chip_id = 'aa'", "another chip_id"),
            ("UPDATE decisions SET decided_at = '2020'", "another decided_at"),
            ("DELETE FROM decisions", "no row"),
        ],
    )
    async def test_of_a_decision(self, room: LedgerRoom, change: str, said: str) -> None:
        await record_decision(room, "release-1")
        await room.sequence()
        assert (await room.store.leaves(0, limit=1))[0].lookup is None
        await room.by_hand(change)
        leaf = await room.store.leaf_of("release-1")
        assert leaf is not None
        assert leaf.lookup is not None
        assert said in leaf.lookup

    async def test_of_an_entry_that_is_no_json(self, room: LedgerRoom) -> None:
        await room.record(0)
        await room.sequence()
        await room.by_hand("UPDATE entries SET entry = :other", other=b"{")
        [leaf] = await room.store.leaves(0, limit=1)
        assert leaf.lookup == "the entry is no JSON object"


@ON_SQLITE
class TestAnything:
    """SQLite keeps anything in any column."""

    async def test_an_entry_of_other_types_is_none(self, room: LedgerRoom) -> None:
        await room.record(0, 2)
        await room.by_hand("UPDATE entries SET entry = 'text' WHERE place = 1")
        done = await room.sequence()
        assert (done.taken, len(done.passed_over)) == (1, 1)

    async def test_a_tile_that_is_no_bytes_is_none(self, room: LedgerRoom) -> None:
        await room.record(0, 2)
        await room.sequence()
        await room.by_hand("UPDATE ledger_tiles SET hashes = 5")
        assert await room.store.tile(0, 0) is None

    @pytest.mark.parametrize(
        "change",
        [
            "UPDATE ledger_checkpoints SET made_at = 'yesterday'",
            "UPDATE ledger_checkpoints SET place = 'x'",
            "UPDATE ledger_checkpoints SET note = x'00'",
            "INSERT INTO entries SELECT 'x', 'x', kind, server, entry, salt, mac FROM entries",
        ],
    )
    async def test_a_state_that_is_none_is_not_trusted(self, room: LedgerRoom, change: str) -> None:
        await room.record(0)
        await room.sequence()
        await room.by_hand(change)
        with pytest.raises(LedgerUnavailable) as refused:
            await room.store.state()
        assert refused.value.reason == UNTRUSTED
