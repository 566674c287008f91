from sqlalchemy.ext.asyncio import AsyncEngine

from kms.database.rate_takings import RateTakings


async def test_what_one_server_tells_the_others_hear(engine: AsyncEngine) -> None:
    takings = RateTakings(engine)
    await takings.tell("one", 7, {"a:192.0.2.1": 30, "c:00": 5})
    await takings.tell("one", 8, {"a:192.0.2.1": 1})
    await takings.tell("two", 7, {"a:192.0.2.1": 2})
    assert await takings.told("two", {}, since=0) == {
        ("one", 7): {"a:192.0.2.1": 30, "c:00": 5},
        ("one", 8): {"a:192.0.2.1": 1},
    }
    assert await takings.told("one", {}, since=0) == {("two", 7): {"a:192.0.2.1": 2}}


async def test_what_is_old_is_removed(engine: AsyncEngine) -> None:
    takings = RateTakings(engine)
    for server in ("one", "two"):
        for period in (1, 5, 9):
            await takings.tell(server, period, {"a:x": 1})
    await takings.forget("one", 9, others_before=5)
    assert sorted(await takings.told("three", {}, since=0)) == [("one", 9), ("two", 5), ("two", 9)]


async def test_what_was_heard_is_not_read_again(engine: AsyncEngine) -> None:
    takings = RateTakings(engine)
    for server in ("one", "two", "three"):
        for period in (5, 6, 7):
            await takings.tell(server, period, {"a:x": period})
    assert await takings.told("three", {"one": 6}, since=6) == {
        ("one", 7): {"a:x": 7},
        ("two", 6): {"a:x": 6},
        ("two", 7): {"a:x": 7},
    }
