from sqlalchemy.ext.asyncio import AsyncEngine

from kms.database.rate_takings import RateTakings


async def test_what_one_server_tells_the_others_hear(engine: AsyncEngine) -> None:
    takings = RateTakings(engine)
    await takings.tell("one", 7, {"a:192.0.2.1": 30, "c:00": 5})
    await takings.tell("one", 8, {"a:192.0.2.1": 1})
    await takings.tell("two", 7, {"a:192.0.2.1": 2})
    assert await takings.told("two") == {
        ("one", 7): {"a:192.0.2.1": 30, "c:00": 5},
        ("one", 8): {"a:192.0.2.1": 1},
    }
    assert await takings.told("one") == {("two", 7): {"a:192.0.2.1": 2}}


async def test_what_is_old_is_removed(engine: AsyncEngine) -> None:
    takings = RateTakings(engine)
    for server in ("one", "two"):
        for period in (1, 5, 9):
            await takings.tell(server, period, {"a:x": 1})
    await takings.forget("one", 9, others_before=5)
    assert sorted(await takings.told("three")) == [("one", 9), ("two", 5), ("two", 9)]
