import asyncio
from collections import Counter

import pytest

from kms.http.limits import ServerBusy
from kms.http.places import Places
from kms.http.shares import Shares


def test_a_network_holds_as_much_as_it_leaves_free() -> None:
    shares = Shares(100)
    assert sum(shares.take("a") for _ in range(1000)) == 50
    assert sum(shares.take("b") for _ in range(1000)) == 25
    assert shares.take("c")
    shares.give_back("a", 40)
    assert sum(shares.take("b") for _ in range(1000)) > 10


def test_one_can_be_held_where_there_is_one() -> None:
    shares = Shares(1)
    assert shares.take("a")
    assert not shares.take("b")
    shares.give_back("a")
    assert shares.take("b")
    assert shares._held == {"b": 1}


class Work:
    """Requests that have a place until they are told to end."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self.working: list[str] = []
        self._end = asyncio.Event()

    async def run(self, network: str) -> None:
        async with self._places.place(network):
            self.working.append(network)
            await self._end.wait()
        self.working.remove(network)

    def end(self) -> None:
        self._end.set()
        self._end = asyncio.Event()


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_flood_leaves_room_for_whoever_comes() -> None:
    work = Work(Places(8, wait_at_most=60))
    async with asyncio.TaskGroup() as group:
        flood = [group.create_task(work.run("flood")) for _ in range(8)]
        await settled()
        assert Counter(work.working) == {"flood": 4}
        others = [group.create_task(work.run(f"guest {number}")) for number in range(4)]
        await settled()
        assert Counter(work.working) == {"flood": 4, **{f"guest {number}": 1 for number in range(4)}}
        work.end()
        await settled()
        assert all(task.done() for task in others)
        work.end()
        await settled()
        assert all(task.done() for task in flood)


async def test_networks_have_their_turns_one_after_another() -> None:
    places = Places(1, wait_at_most=60)
    order: list[str] = []

    async def run(network: str) -> None:
        async with places.place(network):
            order.append(network)

    # More may wait than there are places for, or one place would have a line of one.
    places._most = 8
    async with places.place("first"):
        names = ["flood"] * 4 + ["one", "two"]
        tasks = [asyncio.create_task(run(name)) for name in names]
        await settled()
        assert order == []
    await asyncio.gather(*tasks)
    assert order == ["flood", "one", "two", "flood", "flood", "flood"]


async def test_the_longest_line_gives_way() -> None:
    places = Places(4, wait_at_most=60)
    work = Work(places)
    for number in range(4):
        assert places._shares.take(f"holder {number}")
    flood = [asyncio.create_task(work.run("flood")) for _ in range(4)]
    await settled()
    one_more = asyncio.create_task(work.run("flood"))
    await settled()
    assert isinstance(one_more.exception(), ServerBusy)
    guests = [asyncio.create_task(work.run(f"guest {number}")) for number in range(3)]
    await settled()
    assert [task.done() for task in flood] == [False, True, True, True]
    assert not any(task.done() for task in guests)
    # Nobody's line is longer than the newcomer's would be.
    late = asyncio.create_task(work.run("late"))
    await settled()
    assert isinstance(late.exception(), ServerBusy)
    for number in range(4):
        places._shares.give_back(f"holder {number}")
    places._serve()
    await settled()
    assert sorted(work.working) == ["flood", "guest 0", "guest 1", "guest 2"]
    work.end()
    refused = await asyncio.gather(*flood, *guests, return_exceptions=True)
    assert [type(each) for each in refused] == [type(None), *[ServerBusy] * 3, *[type(None)] * 3]


async def test_nobody_waits_for_long() -> None:
    places = Places(1, wait_at_most=0.01)
    async with places.place("a"):
        for network in ("a", "b"):
            with pytest.raises(ServerBusy) as refused:
                async with places.place(network):
                    pass
            assert (refused.value.code, refused.value.retry_after) == ("server-busy", 1)
    async with places.place("b"):
        pass


async def test_who_hangs_up_leaves_no_place_taken() -> None:
    """Whether they had one, waited for one, or were given one at the same moment."""
    places = Places(2, wait_at_most=60)
    work = Work(places)
    for _ in range(50):
        tasks = [asyncio.create_task(work.run(f"guest {number}")) for number in range(4)]
        await settled()
        work.end()
        for task in tasks[1:]:
            task.cancel()
        await settled()
        work.end()
        await asyncio.gather(*tasks, return_exceptions=True)
        work.working.clear()
    assert (places._shares.free, places._waiting, dict(places._lines)) == (2, 0, {})


async def test_a_place_is_given_back_after_a_failure() -> None:
    places = Places(1)
    for _ in range(3):
        with pytest.raises(KeyError):
            async with places.place("a"):
                raise KeyError
