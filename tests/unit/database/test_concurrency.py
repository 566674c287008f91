"""Several servers on one database: what only one of them may do, and one that stands still."""

import asyncio
import signal
import sys
import time
from collections.abc import Awaitable, Sequence
from pathlib import Path

import pytest
from sqlalchemy import Table, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine

from kms.database import engine as engine_module
from kms.database.decisions import DecisionStore
from kms.database.engine import open_engine, reading, writing
from kms.database.faults import BUSY, UNREACHABLE
from kms.database.schema import active_policy, entries, key_epochs, spent_challenges
from kms.errors import ChallengeUsed, LedgerUnavailable, PolicyConflict
from kms.ledger.entries import DecisionEntry
from kms.policy.revision import Revision
from kms.ports import EpochsMoved
from tests.changer import open_changer, put
from tests.recording import recorder
from tests.refusals import refusal
from tests.unit.database.conftest import OpenAnother
from tests.unit.database.dialects import ON_POSTGRESQL
from tests.world import NOW

STANDING_STILL = True  # the limits of a server, also here (conftest.py)
SPEND = text("INSERT INTO spent_challenges (challenge, expires_at) VALUES (:challenge, 1)")


def entry(name: str, challenge: bytes, epochs: tuple[int, ...] = ()) -> DecisionEntry:
    return refusal(name, challenge=challenge, epochs=epochs)


@pytest.fixture
def stores(open_another: OpenAnother) -> list[DecisionStore]:
    """Three servers."""
    return [DecisionStore(open_another(), lambda: NOW, recorder()) for _ in range(3)]


async def count(engine: AsyncEngine, table: Table) -> int:
    async with reading(engine) as connection:
        number: int = (await connection.execute(select(func.count()).select_from(table))).scalar_one()
    return number


async def outcomes(stores: list[DecisionStore], asked: Sequence[Awaitable[None]]) -> list[type]:
    for store in stores:
        store.start()
    found = await asyncio.gather(*asked, return_exceptions=True)
    for store in stores:
        await store.stop()
    return [type(each) for each in found]


async def test_lesson_36_of_fifty_with_one_challenge_on_several_servers_one_wins(
    engine: AsyncEngine, stores: list[DecisionStore]
) -> None:
    asked = [stores[number % 3].record(entry(f"{number}", b"one"), NOW) for number in range(50)]
    found = await outcomes(stores, asked)
    assert sorted(map(str, found)) == sorted(map(str, [type(None), *49 * [ChallengeUsed]]))
    async with reading(engine) as connection:
        assert (await connection.execute(select(func.count()).select_from(entries))).scalar_one() == 1
        assert (
            await connection.execute(select(func.count()).select_from(spent_challenges))
        ).scalar_one() == 1


async def places(engine: AsyncEngine) -> list[int]:
    async with reading(engine) as connection:
        return list((await connection.execute(select(entries.c.place).order_by(entries.c.place))).scalars())


async def test_places_have_no_gap_and_are_in_the_order_of_commits(
    engine: AsyncEngine, stores: list[DecisionStore]
) -> None:
    """Whoever has read up to a place never misses one that is committed later with a lower one."""
    seen: list[list[int]] = []
    done = asyncio.Event()

    async def look() -> None:
        while not done.is_set():
            async with reading(engine) as connection:
                places = (
                    await connection.execute(select(entries.c.place).order_by(entries.c.place))
                ).scalars()
                seen.append(list(places))
            await asyncio.sleep(0)

    async def ask(number: int) -> None:
        await asyncio.sleep(number * 0.001)
        await stores[number % 3].record(entry(f"{number}", b"%d" % number), NOW)

    looking = asyncio.create_task(look())
    assert set(await outcomes(stores, [ask(number) for number in range(200)])) == {type(None)}
    done.set()
    await looking
    assert all(each == list(range(1, len(each) + 1)) for each in seen)
    assert await places(engine) == list(range(1, 201))


async def test_after_a_retirement_nothing_of_the_epoch_is_recorded(
    engine: AsyncEngine, stores: list[DecisionStore]
) -> None:
    row = {"epoch": 1, "made_at": "", "made_by": "", "active_from": "", "mac": b""}
    async with writing(engine) as connection:
        await connection.execute(insert(key_epochs).values(row))
    recorded_before: list[int] = []

    async def retire() -> None:
        while not await count(engine, entries):  # noqa: ASYNC110 -- what is waited for is in the database
            await asyncio.sleep(0)
        async with writing(engine) as connection:
            await connection.execute(update(key_epochs).values(retired_at="2026"))
            number = await connection.execute(select(func.count()).select_from(entries))
            recorded_before.append(number.scalar_one())

    async def ask(number: int) -> None:
        await asyncio.sleep(number * 0.01)
        await stores[number % 3].record(entry(f"{number}", b"%d" % number, (1,)), NOW)

    retiring = asyncio.create_task(retire())
    found = await outcomes(stores, [ask(number) for number in range(100)])
    await retiring
    assert set(found) == {type(None), EpochsMoved}
    assert found.count(type(None)) == recorded_before[0]


async def test_of_policies_that_are_put_in_force_at_once_one_follows_the_other(
    open_another: OpenAnother, engine: AsyncEngine, tmp_path: Path
) -> None:
    changers = [await open_changer(open_another(), tmp_path, lambda: NOW) for _ in range(6)]
    files = [f'kind: chips\nname: rack\nchips: ["{number:0128x}"]\n' for number in range(1, 7)]
    revisions = [Revision.from_files({"p.yaml": each.encode()}, development=False) for each in files]
    pairs = zip(changers, revisions, strict=True)
    found = await asyncio.gather(*(put(*pair) for pair in pairs), return_exceptions=True)
    won = [revision for revision, each in zip(revisions, found, strict=True) if each is True]
    lost = [each for each in found if each is not True]
    assert won
    assert all(isinstance(each, PolicyConflict) for each in lost), lost
    async with reading(engine) as connection:
        [row] = (await connection.execute(select(active_policy))).all()
    assert row.sequence == len(won)
    assert row.revision in {each.digest for each in won}


async def test_who_goes_away_in_the_middle_holds_nobody_up(open_another: OpenAnother) -> None:
    """Whatever it waited for: the lock, an answer, or something of its own."""
    first, second = open_another(), open_another()

    async def hold(started: asyncio.Event, seconds: float) -> None:
        async with writing(first) as connection:
            await connection.execute(SPEND, {"challenge": b"a"})
            started.set()
            await asyncio.sleep(seconds)

    for _ in range(12):  # more than a pool has
        started, waiting = asyncio.Event(), asyncio.Event()
        holding = asyncio.create_task(hold(started, 60))
        await started.wait()
        behind = asyncio.create_task(hold(waiting, 0))
        await asyncio.sleep(0.02)
        behind.cancel()
        holding.cancel()
        for task in (holding, behind):
            with pytest.raises(asyncio.CancelledError):
                await task
        began = time.monotonic()
        async with writing(second) as connection:
            assert (await connection.execute(select(spent_challenges))).all() == []
        assert time.monotonic() - began < 20
    async with writing(first) as connection:
        await connection.execute(SPEND, {"challenge": b"b"})
    assert "Checked out connections: 0" in first.pool.status()


STANDS_STILL = """
import asyncio, sys
from sqlalchemy import text
from kms.database.engine import open_engine, writing

async def hold():
    async with writing(open_engine(sys.argv[1])) as connection:
        await connection.execute(text("INSERT INTO spent_challenges (challenge, expires_at) VALUES ('x', 1)"))
        print("holds", flush=True)
        await asyncio.sleep(60)

asyncio.run(hold())
"""


@ON_POSTGRESQL
@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
async def test_a_server_that_stands_still_in_a_transaction_does_not_hold_others_up(
    engine: AsyncEngine, database_url: str, how: signal.Signals
) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", STANDS_STILL, database_url, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"holds\n"
        process.send_signal(how)
        began = time.monotonic()
        async with writing(engine) as connection:
            assert (await connection.execute(select(spent_challenges))).all() == []
        assert time.monotonic() - began < 4.5  # PostgreSQL ends it after 1.5
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@ON_POSTGRESQL
async def test_a_server_that_wakes_up_in_a_transaction_is_told_and_has_written_nothing(
    engine: AsyncEngine, open_another: OpenAnother
) -> None:
    async def stand_still() -> None:
        async with writing(open_another()) as connection:
            await connection.execute(SPEND, {"challenge": b"a"})
            await asyncio.sleep(2)
            await connection.execute(SPEND, {"challenge": b"b"})

    with pytest.raises(LedgerUnavailable) as told:
        await stand_still()
    assert told.value.reason == UNREACHABLE
    async with reading(engine) as connection:
        assert (await connection.execute(select(spent_challenges))).all() == []


@ON_POSTGRESQL
async def test_what_waits_for_the_lock_sees_what_was_committed_before_it_had_it(
    database_url: str, engine: AsyncEngine
) -> None:
    """Also where the database's owner has set another level of isolation for all."""
    async with engine.begin() as connection:
        name = engine.url.database
        level = "default_transaction_isolation = 'repeatable read'"
        await connection.execute(text(f'ALTER DATABASE "{name}" SET {level}'))
    first, second = open_engine(database_url), open_engine(database_url)

    async def look() -> int:
        async with writing(second) as connection:
            return len((await connection.execute(select(spent_challenges))).all())

    async with writing(first) as connection:
        counting = asyncio.create_task(look())
        await asyncio.sleep(0.3)
        await connection.execute(SPEND, {"challenge": b"a"})
    assert await counting == 1
    await first.dispose()
    await second.dispose()


@ON_POSTGRESQL
async def test_who_does_not_get_the_lock_is_told_so(
    engine: AsyncEngine, open_another: OpenAnother, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(engine_module._SESSION, "lock_timeout", "200")
    async with writing(engine):
        with pytest.raises(LedgerUnavailable) as told:
            async with writing(open_another()):
                pass
    assert told.value.reason == BUSY
