"""The clocks of a server and of PostgreSQL: where they differ, nobody can say when anything was decided."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from kms.database.decisions import DecisionStore
from kms.errors import LedgerUnavailable
from tests.recording import recorder
from tests.unit.database.dialects import ON_POSTGRESQL, ON_SQLITE
from tests.unit.database.test_decisions import entry, ids

HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def _clocks_agree() -> None:
    """Here they are compared, as on a server."""


class Clock:
    """This machine's, by so much wrong."""

    def __init__(self) -> None:
        self.wrong_by = timedelta(0)

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.wrong_by


@ON_POSTGRESQL
@pytest.mark.parametrize("wrong_by", [HOUR, -HOUR], ids=["ahead", "behind"])
async def test_nothing_is_recorded_until_they_agree(engine: AsyncEngine, wrong_by: timedelta) -> None:
    clock, elapsed = Clock(), [0.0]
    store = DecisionStore(engine, clock, recorder(), elapsed=lambda: elapsed[0])
    store.start()
    try:
        await store.record(entry("a"), clock())
        clock.wrong_by = wrong_by
        with pytest.raises(LedgerUnavailable) as refused:
            await store.record(entry("b"), clock())
        assert refused.value.reason == "clock-differs"
        for _ in range(2):
            assert await store.failure() == "clock-differs"
            elapsed[0] += 60
        clock.wrong_by = timedelta(seconds=30)
        assert await store.failure() is None
        await store.record(entry("c"), clock())
    finally:
        await store.stop()
    assert await ids(engine) == ["a", "c"]


@ON_SQLITE
async def test_sqlite_has_no_clock_of_its_own(engine: AsyncEngine) -> None:
    clock = Clock()
    clock.wrong_by = HOUR
    store = DecisionStore(engine, clock, recorder())
    store.start()
    try:
        await store.record(entry("a"), clock())
    finally:
        await store.stop()
    assert await ids(engine) == ["a"]
