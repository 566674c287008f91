"""The record of decisions: what fails fails alone, and nobody waits for ever."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine

from kms.database.decisions import DecisionStore
from kms.database.engine import reading
from kms.database.schema import decisions, entries, key_epochs, spent_challenges
from kms.errors import ChallengeUsed, LedgerUnavailable
from kms.keys.epochs import Epoch, EpochTable
from kms.ledger.entries import DecisionEntry, timestamp
from kms.ports import EpochsMoved
from tests.recording import recorder
from tests.refusals import refusal
from tests.world import NOW


@pytest.fixture
def store(engine: AsyncEngine) -> DecisionStore:
    return DecisionStore(engine, lambda: NOW, recorder())


def entry(name: str, **changes: object) -> DecisionEntry:
    return refusal(name, **{"challenge": name.encode(), **changes})


async def ids(engine: AsyncEngine) -> list[str]:
    async with reading(engine) as connection:
        rows = (await connection.execute(select(decisions.c.id).order_by(decisions.c.id))).all()
    return [row.id for row in rows]


async def test_one_bad_entry_of_a_batch_fails_alone(engine: AsyncEngine, store: DecisionStore) -> None:
    asked = [entry("a"), entry("a", challenge=b"other"), entry("b"), entry("c")]
    store.start()
    outcomes = await asyncio.gather(*(store.record(each, NOW) for each in asked), return_exceptions=True)
    await store.stop()
    assert [type(outcome) for outcome in outcomes] == [type(None), LedgerUnavailable, type(None), type(None)]
    assert await ids(engine) == ["a", "b", "c"]
    async with reading(engine) as connection:
        spent = (await connection.execute(select(spent_challenges.c.challenge))).all()
    assert {row.challenge for row in spent} == {b"a", b"b", b"c"}


async def test_keys_of_a_retired_epoch_are_not_recorded_and_spend_nothing(
    engine: AsyncEngine, store: DecisionStore
) -> None:
    async with engine.begin() as connection:
        for epoch, retired_at in ((1, "2026-11-21T12:00:00.000000Z"), (2, None)):
            row = {"epoch": epoch, "made_at": "", "made_by": "", "active_from": "", "retired_at": retired_at}
            await connection.execute(insert(key_epochs).values(**row, mac=b""))
    asked = [entry("a", epochs=(1,)), entry("b", epochs=(1, 2)), entry("c", epochs=(2,)), entry("d")]
    store.start()
    outcomes = await asyncio.gather(*(store.record(each, NOW) for each in asked), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [EpochsMoved, EpochsMoved, type(None), type(None)]
    assert await ids(engine) == ["c", "d"]
    assert [await store.is_spent(name) for name in (b"a", b"b", b"c")] == [False, False, True]
    await store.record(entry("a"), NOW)
    await store.stop()


async def test_a_full_queue_says_busy(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kms.database.decisions.MOST_WAITING", 3)
    store = DecisionStore(engine, lambda: NOW, recorder())
    store.start()
    waiting = [asyncio.create_task(store.record(entry(str(number)), NOW)) for number in range(4)]
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    await store.stop()
    [refused] = [outcome for outcome in outcomes if outcome is not None]
    assert isinstance(refused, LedgerUnavailable)
    assert refused.reason == "ledger-busy"


async def test_stopping_writes_what_waits(engine: AsyncEngine, store: DecisionStore) -> None:
    store.start()
    waiting = [asyncio.create_task(store.record(entry(f"{number:03}"), NOW)) for number in range(300)]
    await asyncio.sleep(0)
    await store.stop()
    assert await asyncio.gather(*waiting) == [None] * 300
    assert len(await ids(engine)) == 300
    with pytest.raises(LedgerUnavailable) as refused:
        await store.record(entry("late"), NOW)
    assert refused.value.reason == "ledger-stopped"


async def test_a_writer_that_dies_leaves_nobody_waiting(
    engine: AsyncEngine, store: DecisionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def die(_: object) -> list[Exception | None]:
        raise asyncio.CancelledError

    monkeypatch.setattr(store, "_write", die)
    store.start()
    async with asyncio.timeout(5):
        with pytest.raises(LedgerUnavailable):
            await store.record(entry("a"), NOW)
        assert not store.alive
        with pytest.raises(LedgerUnavailable):
            await store.record(entry("b"), NOW)
        await store.stop()


async def test_an_unexpected_failure_is_survived(
    engine: AsyncEngine, store: DecisionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kms.background._PAUSE_AFTER_FAILURE", 0)
    write, failures = store._write, iter([RuntimeError("a bug")])

    async def fail_once(batch: object) -> list[Exception | None]:
        for failure in failures:
            raise failure
        return await write(batch)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "_write", fail_once)
    store.start()
    with pytest.raises(LedgerUnavailable):
        await store.record(entry("a"), NOW)
    await store.record(entry("b"), NOW)
    await store.stop()
    assert await ids(engine) == ["b"]


async def test_a_database_that_fails_fails_them_all(engine: AsyncEngine, store: DecisionStore) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("DROP TABLE decisions"))
    store.start()
    outcomes = await asyncio.gather(
        *(store.record(entry(name), NOW) for name in "ab"), return_exceptions=True
    )
    await store.stop()
    assert [type(outcome) for outcome in outcomes] == [LedgerUnavailable] * 2


async def test_a_clock_that_leaps_makes_no_spent_challenge_good_again(engine: AsyncEngine) -> None:
    """Field lesson 12: what is spent stays spent, whatever the clock does meanwhile."""
    now, elapsed = [NOW], [0.0]
    store = DecisionStore(engine, lambda: now[0], recorder(), elapsed=lambda: elapsed[0])

    async def record(name: str, *, challenge: bytes) -> None:
        made = entry(name, challenge=challenge, decided_at=now[0])
        await store.record(made, now[0] + timedelta(minutes=5))

    store.start()
    await record("a", challenge=b"first")
    now[0], elapsed[0] = NOW + timedelta(days=3), 120.0
    await record("b", challenge=b"second")
    now[0], elapsed[0] = NOW + timedelta(minutes=3), 180.0
    with pytest.raises(ChallengeUsed):
        await record("c", challenge=b"first")
    # In three days that really pass, it is forgotten.
    now[0], elapsed[0] = NOW + timedelta(days=3), 3 * 86400.0
    await record("d", challenge=b"third")
    async with reading(engine) as connection:
        kept = (await connection.execute(select(spent_challenges.c.challenge))).scalars().all()
    assert b"first" not in kept
    await store.stop()


async def test_a_record_that_cannot_be_written_is_told_until_it_can(
    engine: AsyncEngine,
) -> None:
    elapsed = [0.0]
    store = DecisionStore(engine, lambda: NOW, recorder(), elapsed=lambda: elapsed[0])
    store.start()
    assert await store.failure() is None
    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE decisions RENAME TO elsewhere"))
        await connection.execute(text("ALTER TABLE installation RENAME TO nowhere"))
    with pytest.raises(LedgerUnavailable):
        await store.record(entry("a"), NOW)
    assert await store.failure() == "ledger-unavailable"
    elapsed[0] += 10
    assert await store.failure() == "ledger-unavailable"
    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE elsewhere RENAME TO decisions"))
        await connection.execute(text("ALTER TABLE nowhere RENAME TO installation"))
    assert await store.failure() == "ledger-unavailable", "a failure counts for some seconds"
    elapsed[0] += 10
    assert await store.failure() is None
    await store.record(entry("a"), NOW)
    await store.stop()


async def test_what_was_judged_by_epochs_of_before_is_judged_again_all_of_it(
    engine: AsyncEngine, store: DecisionStore
) -> None:
    """A rotation between the look and the record: nobody gets a key of the epoch that was current."""
    before = EpochTable((epoch(1),))
    async with engine.begin() as connection:
        for number in (1, 2):
            row = {"epoch": number, "made_at": "", "made_by": "", "mac": b""}
            row["active_from"] = timestamp(epoch(number).active_from)
            await connection.execute(insert(key_epochs).values(row))
    store.start()
    late = [store.record(entry(name, epochs=(1,)), NOW, before) for name in "abc"]
    outcomes = await asyncio.gather(*late, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [EpochsMoved] * 3
    await store.record(entry("a", epochs=(1,)), NOW, EpochTable((epoch(1), epoch(2))))
    assert await ids(engine) == ["a"]
    await store.stop()


def epoch(number: int) -> Epoch:
    return Epoch(number=number, made_at=NOW, made_by="ada", active_from=NOW + timedelta(days=number))


async def test_a_clock_that_leapt_stops_the_record_where_nobody_else_has_one(engine: AsyncEngine) -> None:
    leapt = [True]
    store = DecisionStore(engine, lambda: NOW, recorder(), clock_leapt=lambda: leapt[0])
    if engine.dialect.name == "postgresql":
        return  # there the database's clock is asked: test_clocks.py
    store.start()
    with pytest.raises(LedgerUnavailable) as refused:
        await store.record(entry("a"), NOW)
    assert refused.value.reason == await store.failure() == "clock-differs"
    leapt[0] = False
    await store.record(entry("a"), NOW)
    assert await store.failure() is None
    await store.stop()


@pytest.mark.parametrize("place", [2**53, 2**63 - 1])
async def test_what_is_no_place_stops_the_record_until_it_is_gone(
    engine: AsyncEngine, store: DecisionStore, place: int
) -> None:
    store.start()
    await store.record(entry("a"), NOW)
    async with engine.begin() as connection:
        await connection.execute(update(entries).values(place=place))
    with pytest.raises(LedgerUnavailable) as refused:
        await store.record(entry("b"), NOW)
    assert refused.value.reason == await store.failure() == "ledger-untrusted"
    async with engine.begin() as connection:
        await connection.execute(update(entries).values(place=1))
    await store.record(entry("b"), NOW)
    await store.stop()


async def test_what_is_long_past_is_forgotten_some_at_a_time(
    engine: AsyncEngine, store: DecisionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kms.database.decisions._PURGED_AT_ONCE", 2)
    async with engine.begin() as connection:
        old = [{"challenge": b"%d" % number, "expires_at": number} for number in range(5)]
        await connection.execute(insert(spent_challenges), old)
    store.start()
    for name, left in zip("abc", (3, 1, 0), strict=True):
        await store.record(entry(name), NOW)
        async with reading(engine) as connection:
            kept = (await connection.execute(select(spent_challenges.c.challenge))).scalars().all()
        assert sum(each.isdigit() for each in kept) == left
    await store.stop()
