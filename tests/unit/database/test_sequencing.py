"""What was recorded becomes the ledger, whichever server sequences it, and whatever happens to that one."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import cast

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine
from typing_extensions import override

from kms.database.ledger import LedgerStore
from kms.errors import LedgerUnavailable
from kms.ledger.findings import FindingKind
from kms.ledger_memory import open_head
from kms.ledger_ports import ROLLED_BACK, UNTRUSTED, AnchoredLedger, Growth, SeenLedger
from kms.sequencing import PAGE
from tests.unit.database.conftest import OpenAnother
from tests.unit.database.dialects import ON_POSTGRESQL
from tests.unit.database.ledger_room import KEY, LedgerRoom

NOT_AUTHENTIC, REMOVED = FindingKind.ENTRY_NOT_AUTHENTIC, FindingKind.ENTRY_REMOVED


STANDING_STILL = True  # the limits of a server, also here (conftest.py)


@pytest.fixture
def room(engine: AsyncEngine, tmp_path: Path) -> LedgerRoom:
    return LedgerRoom(engine, tmp_path)


@pytest.fixture
def another_room(open_another: OpenAnother, tmp_path: Path) -> LedgerRoom:
    """Another server, on another machine: with connections and an anchor of its own."""
    return LedgerRoom(open_another(), tmp_path, anchor="another.json")


@contextmanager
def statements(engine: AsyncEngine) -> Iterator[list[str]]:
    """Collect what the database is asked, without the bounds of transactions."""
    asked: list[str] = []

    def note(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        asked.append(statement)

    event.listen(engine.sync_engine, "before_cursor_execute", note)
    yield asked
    event.remove(engine.sync_engine, "before_cursor_execute", note)


async def test_everything_recorded_is_in_the_tree_in_its_order(room: LedgerRoom) -> None:
    for first, count in ((0, 1), (1, 2), (3, 300), (303, 1), (304, 208)):
        await room.record(first, count)
        done = await room.sequence()
        assert done.state.head is not None
        assert done.state.head.size == first + count
        assert not done.passed_over
    assert await room.ids() == [f"action-{number:06}" for number in range(512)]
    assert await room.require_sound() == 512


async def test_without_new_entries_there_is_no_new_checkpoint_and_one_question(room: LedgerRoom) -> None:
    await room.record(0, 5)
    await room.sequence()
    with statements(room.engine) as asked:
        for _ in range(3):
            assert (await room.round()).taken == 0
    assert len(asked) == 3
    assert len(await room.store.checkpoints(before=None, limit=10)) == 1


async def test_a_round_takes_so_much_and_says_that_there_is_more(
    room: LedgerRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kms.sequencing.MOST_AT_ONCE", 2 * PAGE)
    await room.record(0, 3 * PAGE + 1)
    first = await room.round()
    assert (first.taken, first.more) == (2 * PAGE, True)
    second = await room.round()
    assert (second.taken, second.more) == (PAGE + 1, False)
    assert await room.require_sound() == 3 * PAGE + 1


async def test_another_server_goes_on_where_the_first_stopped(
    room: LedgerRoom, another_room: LedgerRoom
) -> None:
    await room.record(0, 300)
    await room.sequence()
    await another_room.record(300, 300)
    assert (await another_room.sequence()).taken == 300
    await room.record(600, 1)
    assert (await room.sequence()).taken == 1
    assert await room.require_sound() == 601
    assert await room.anchor.read_ledger() == await _head_of(room)


async def _head_of(room: LedgerRoom) -> SeenLedger:
    seen = await room.anchor.read_ledger()
    head = await room.store.head()
    assert seen is not None
    assert head is not None
    assert (seen.size, seen.place) == (head.size, head.place)
    return seen


async def test_of_many_sequencers_at_once_nothing_is_taken_twice_or_lost(
    open_another: OpenAnother, tmp_path: Path
) -> None:
    rooms = [LedgerRoom(open_another(), tmp_path, anchor=f"{number}.json") for number in range(4)]

    async def work(number: int, room: LedgerRoom) -> None:
        for turn in range(10):
            await room.record(1000 * number + 10 * turn, 10)
            await room.round()

    await asyncio.gather(*(work(number, room) for number, room in enumerate(rooms)))
    await rooms[0].sequence()
    for room in rooms:
        await room.round()
        await _head_of(room)
    found = await rooms[0].ids()
    expected = {f"action-{1000 * number + each:06}" for number in range(4) for each in range(100)}
    assert len(found) == 400
    assert set(found) == expected
    assert await rooms[0].require_sound() == 400


class _Paused(LedgerStore):
    """Stands still before it writes, until it is told to go on."""

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine)
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()

    @override
    async def append(self, growth: Growth) -> bool:
        self.reached.set()
        await self.go_on.wait()
        return await super().append(growth)


async def test_a_sequencer_that_stood_still_and_wakes_up_loses(
    room: LedgerRoom, another_room: LedgerRoom
) -> None:
    await room.record(0, 3)
    paused = _Paused(room.engine)
    sleeping = asyncio.create_task(room.new_sequencer(paused).round())
    await paused.reached.wait()
    await room.record(3, 2)
    # PostgreSQL ends the transaction that has the turn after a second and a half; rounds come every half.
    async with asyncio.timeout(2.5):
        while not (await another_room.round()).taken:  # noqa: ASYNC110 -- as a server's rounds
            await asyncio.sleep(0.5)
    paused.go_on.set()
    woken = await sleeping
    assert (woken.taken, woken.more) == (0, True)
    assert await room.ids() == [f"action-{number:06}" for number in range(5)]
    assert await room.require_sound() == 5


@ON_POSTGRESQL
async def test_one_at_a_time_has_the_turn(room: LedgerRoom, another_room: LedgerRoom) -> None:
    async with room.store.turn() as first, another_room.store.turn() as second:
        assert (first, second) == (True, False)
    async with another_room.store.turn() as then:
        assert then


@ON_POSTGRESQL
async def test_a_database_that_does_not_answer_gives_no_turn_after_a_while(
    room: LedgerRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kms.database.ledger.ANSWER_WITHIN", 0.3)
    monkeypatch.setattr("kms.database.ledger._TAKE_TURN", text("SELECT pg_sleep(8)"))
    async with asyncio.timeout(6):
        with pytest.raises(LedgerUnavailable):
            async with room.store.turn():
                pytest.fail("nobody gave it")


@ON_POSTGRESQL
async def test_a_database_that_stops_to_answer_does_not_hold_up_the_end_of_a_turn(
    room: LedgerRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kms.database.ledger.ANSWER_WITHIN", 0.3)
    async with AsyncExitStack() as stack:
        async with asyncio.timeout(6):
            async with room.store.turn():
                [backend] = await room.rows(
                    "SELECT pid FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database"
                    " WHERE locktype = 'advisory' AND objid = 2 AND datname = current_database()"
                )
                pid = cast("int", backend["pid"])
                stack.callback(os.kill, pid, signal.SIGCONT)
                os.kill(pid, signal.SIGSTOP)


class _Killed(Exception):
    pass


class _KilledBefore(LedgerStore):
    @override
    async def append(self, growth: Growth) -> bool:
        raise _Killed


class _KilledAfter(LedgerStore):
    @override
    async def append(self, growth: Growth) -> bool:
        await super().append(growth)
        raise _Killed


@pytest.mark.parametrize("dies", [_KilledBefore, _KilledAfter])
async def test_a_server_that_is_killed_leaves_a_whole_ledger(
    room: LedgerRoom, another_room: LedgerRoom, dies: Callable[[AsyncEngine], LedgerStore]
) -> None:
    await room.record(0, 3)
    await room.sequence()
    await room.record(3, 3)
    with pytest.raises(_Killed):
        await room.new_sequencer(dies(room.engine)).round()
    await another_room.sequence()
    assert await another_room.require_sound() == 6
    # The killed server starts again: its anchor is behind by a checkpoint, and that is no fault.
    assert (await room.new_sequencer().round()).state.head == await room.store.head()
    assert (await _head_of(room)).size == 6


async def test_an_anchor_that_could_not_be_written_is_made_up_for(
    room: LedgerRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    await room.record(0, 3)

    async def full(_: object, seen: SeenLedger) -> None:
        raise LedgerUnavailable("no space left")

    with monkeypatch.context() as broken:
        broken.setattr("kms.anchor.FileAnchor.remember_ledger", full)
        for _ in range(2):
            with pytest.raises(LedgerUnavailable, match="no space left"):
                await room.round()
    assert await room.anchor.read_ledger() is None
    await room.round()
    assert (await _head_of(room)).size == 3


class TestByHand:
    """What the owner of the database does before an entry is sequenced."""

    async def test_an_entry_that_no_server_made_is_never_sequenced_and_told_once(
        self, room: LedgerRoom
    ) -> None:
        await room.record(0, 2)
        await room.by_hand(
            "INSERT INTO entries SELECT 3, 'forged', kind, server, entry, salt, mac FROM entries"
            " WHERE place = 1"
        )
        await room.record(10, 2)
        done = await room.sequence()
        assert done.taken == 4
        [finding] = done.passed_over
        assert (finding.kind, finding.id) == (NOT_AUTHENTIC, "forged")
        assert (await room.round()).passed_over == ()
        assert await room.ids() == ["action-000000", "action-000001", "action-000010", "action-000011"]

    async def test_where_nothing_else_was_recorded_it_is_told_once_too(self, room: LedgerRoom) -> None:
        await room.record(0, 2)
        await room.by_hand("UPDATE entries SET mac = NULL")
        done = await room.round()
        assert [each.kind for each in done.passed_over] == [NOT_AUTHENTIC] * 2
        assert (await room.round()).passed_over == ()
        assert await room.store.head() is None
        await room.record(2)
        assert (await room.round()).taken == 1
        assert await room.ids() == ["action-000002"]

    async def test_a_flood_of_them_is_passed_over_round_by_round(
        self, room: LedgerRoom, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("kms.sequencing.MOST_AT_ONCE", 4)
        monkeypatch.setattr("kms.sequencing.PAGE", 2)
        await room.record(0, 10)
        await room.by_hand("UPDATE entries SET mac = salt")
        await room.record(10)
        rounds = [await room.round() for _ in range(4)]
        assert [(each.taken, len(each.passed_over)) for each in rounds] == [(0, 4), (0, 4), (1, 2), (0, 0)]
        assert [each.more for each in rounds] == [True, True, False, False]

    @pytest.mark.parametrize(
        "change",
        [
            "UPDATE entries SET entry = salt WHERE place = 2",
            "UPDATE entries SET salt = substr(entry, 1, 16) WHERE place = 2",
            "UPDATE entries SET server = 'server-2' WHERE place = 2",
            "UPDATE entries SET kind = 'decision' WHERE place = 2",
            "UPDATE entries SET mac = salt WHERE place = 2",
        ],
    )
    async def test_an_entry_that_was_edited_before_is_not_taken(self, room: LedgerRoom, change: str) -> None:
        await room.record(0, 3)
        await room.by_hand(change)
        done = await room.sequence()
        assert [each.kind for each in done.passed_over] == [NOT_AUTHENTIC]
        assert await room.ids() == ["action-000000", "action-000002"]

    async def test_one_that_was_removed_before_is_missed(self, room: LedgerRoom) -> None:
        await room.record(0, 6)
        await room.by_hand("DELETE FROM entries WHERE place IN (1, 3, 4)")
        done = await room.sequence()
        assert [each.kind for each in done.passed_over] == [REMOVED, REMOVED]
        assert "place 1 " in done.passed_over[0].sentence
        assert "places 3 to 4 " in done.passed_over[1].sentence
        assert (await room.round()).passed_over == ()

    async def test_what_was_passed_over_and_removed_gives_its_place_to_another(
        self, room: LedgerRoom
    ) -> None:
        await room.record(0)
        await room.by_hand("UPDATE entries SET mac = salt")
        assert len((await room.round()).passed_over) == 1
        await room.by_hand("DELETE FROM entries")
        await room.by_hand("DELETE FROM operator_actions")
        room.recorder.forget()  # another server, which had not seen it
        await room.record(0)
        assert (await room.round()).taken == 1

    async def test_a_leaf_beyond_the_checkpoint_stops_nobody(self, room: LedgerRoom) -> None:
        await room.record(0, 2)
        await room.by_hand("INSERT INTO ledger_leaves (number, place) VALUES (1, 1), (7, 2)")
        assert (await room.round()).taken == 2
        assert await room.require_sound() == 2

    async def test_a_tile_that_was_changed_is_not_signed(self, room: LedgerRoom) -> None:
        await room.record(0, 2)
        await room.sequence()
        await room.by_hand("UPDATE ledger_tiles SET hashes = :other WHERE level = 0", other=bytes(64))
        await room.record(2)
        with pytest.raises(LedgerUnavailable) as refused:
            await room.new_sequencer().round()
        assert refused.value.reason == UNTRUSTED

    @pytest.mark.parametrize("level", [-1, 0, 1])
    async def test_nor_is_one_that_is_gone(self, room: LedgerRoom, level: int) -> None:
        await room.record(0, 300)
        await room.sequence()
        await room.by_hand("DELETE FROM ledger_tiles WHERE level = :level", level=level)
        await room.record(300)
        with pytest.raises(LedgerUnavailable) as refused:
            await room.new_sequencer().round()
        assert refused.value.reason == UNTRUSTED

    @pytest.mark.parametrize(
        "change",
        [
            "INSERT INTO ledger_checkpoints SELECT 9, place, note, made_at FROM ledger_checkpoints",
            "UPDATE ledger_checkpoints SET note = replace(note, 'attested', 'attacked')",
            "UPDATE ledger_checkpoints SET note = 'x'",
        ],
    )
    async def test_a_forged_checkpoint_is_refused(self, room: LedgerRoom, change: str) -> None:
        await room.record(0, 3)
        await room.sequence()
        await room.by_hand(change)
        for sequencer in (room.sequencer, room.new_sequencer()):
            with pytest.raises(LedgerUnavailable) as refused:
                await sequencer.round()
            assert refused.value.reason == UNTRUSTED

    async def test_the_place_of_the_checkpoint_does_not_move(self, room: LedgerRoom) -> None:
        # Moved on, what stands before it would never be sequenced.
        await room.record(0, 3)
        await room.sequence()
        await room.record(3, 3)
        await room.by_hand("UPDATE ledger_checkpoints SET place = 6")
        for sequencer in (room.sequencer, room.new_sequencer()):
            with pytest.raises(LedgerUnavailable) as refused:
                await sequencer.round()
            assert refused.value.reason == ROLLED_BACK


class TestRolledBack:
    """An older state of the tables, put in the place of a newer one."""

    async def roll_back(self, room: LedgerRoom, size: int) -> None:
        for table, column in (
            ("ledger_checkpoints", "size > :size"),
            ("ledger_leaves", "number >= :size"),
            ("entries", "place > :size"),
            ("operator_actions", "id NOT IN (SELECT id FROM entries)"),
        ):
            values = {"size": size} if ":size" in column else {}
            await room.by_hand(f"DELETE FROM {table} WHERE {column}", **values)  # noqa: S608 -- names from above
        await room.by_hand("UPDATE ledger_tiles SET hashes = substr(hashes, 1, :length)", length=32 * size)

    async def refused(self, room: LedgerRoom) -> LedgerUnavailable:
        found = []
        for sequencer in (room.sequencer, room.new_sequencer()):
            with pytest.raises(LedgerUnavailable) as refused:
                await sequencer.round()
            found.append(refused.value)
        assert {each.reason for each in found} == {ROLLED_BACK}
        return found[1]

    async def grown(self, room: LedgerRoom) -> None:
        for number in range(4):
            await room.record(2 * number, 2)
            await room.sequence()

    async def test_less_of_it_is_noticed_running_and_at_the_next_start(self, room: LedgerRoom) -> None:
        await self.grown(room)
        await self.roll_back(room, 4)
        error = await self.refused(room)
        assert "of 4 entries" in error.detail
        assert "of 8 entries" in error.detail

    async def test_none_of_it_too(self, room: LedgerRoom) -> None:
        await self.grown(room)
        for table in ("ledger_checkpoints", "ledger_leaves", "ledger_tiles", "entries"):
            await room.by_hand(f"DELETE FROM {table}")  # noqa: S608 -- names from above
        assert "of 0 entries" in (await self.refused(room)).detail

    @pytest.mark.parametrize("more", [2, 4, 8], ids=["still less", "as much", "more"])
    async def test_one_that_went_on_from_there_as_another_is_noticed(
        self, room: LedgerRoom, another_room: LedgerRoom, more: int
    ) -> None:
        await self.grown(room)
        await self.roll_back(room, 4)
        # A server that never saw the ledger takes it as it is.
        await another_room.record(100, more)
        await another_room.sequence()
        await self.refused(room)

    async def test_when_it_is_back_all_is_well(self, room: LedgerRoom) -> None:
        await self.grown(room)
        await room.by_hand("CREATE TABLE kept AS SELECT * FROM ledger_checkpoints")
        await room.by_hand("DELETE FROM ledger_checkpoints WHERE size > 4")
        await self.refused(room)
        await room.by_hand("DELETE FROM ledger_checkpoints")
        await room.by_hand("INSERT INTO ledger_checkpoints SELECT * FROM kept")
        assert (await room.round()).state.end == 8

    async def test_an_anchor_that_an_operator_set_back_is_believed(self, room: LedgerRoom) -> None:
        await self.grown(room)
        head = (await room.store.checkpoints(before=6, limit=1))[0]
        await self.roll_back(room, 4)
        await self.refused(room)
        await room.anchor.accept_ledger(open_head(head, KEY.verifier_key))
        assert (await room.round()).accepted
        room.recorder.forget()
        await room.record(200)
        assert (await room.round()).taken == 1
        assert await room.require_sound() == 5

    async def test_an_older_state_of_the_anchor_is_no_acceptance(
        self, room: LedgerRoom, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As a standby of Vault gives it, or an answer that another one overtook."""
        await self.grown(room)
        head = (await room.store.checkpoints(before=6, limit=1))[0]
        older = AnchoredLedger(ledger=open_head(head, KEY.verifier_key), accepted=0)
        await self.roll_back(room, 4)

        async def stale(_: object) -> AnchoredLedger:
            return older

        with monkeypatch.context() as standby:
            standby.setattr("kms.anchor.FileAnchor.anchored_ledger", stale)
            for _ in range(2):
                with pytest.raises(LedgerUnavailable) as refused:
                    await room.round()
                assert refused.value.reason == ROLLED_BACK

    async def test_a_state_from_before_an_acceptance_takes_nothing_back(
        self, room: LedgerRoom, another_room: LedgerRoom, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await self.grown(room)
        before = await room.anchor.anchored_ledger()
        head = (await room.store.checkpoints(before=6, limit=1))[0]
        await self.roll_back(room, 4)
        await room.anchor.accept_ledger(open_head(head, KEY.verifier_key))
        assert (await room.round()).accepted
        room.recorder.forget()

        async def stale(_: object) -> AnchoredLedger:
            return before

        await another_room.record(200)
        await another_room.sequence()
        with monkeypatch.context() as standby:
            standby.setattr("kms.anchor.FileAnchor.anchored_ledger", stale)
            assert not (await room.round()).accepted
        await another_room.record(201)
        await another_room.sequence()
        assert not (await room.round()).accepted
