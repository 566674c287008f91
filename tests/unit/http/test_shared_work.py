"""Work that is shared: one attempt for all who ask at once, its result kept, its failure for a moment."""

import asyncio
from dataclasses import dataclass, field

import pytest

from kms.http import shared_work
from kms.http.shared_work import SharedWork


class Failed(Exception):
    pass


@dataclass
class Work:
    """Squares a number, when it is let."""

    begun: list[int] = field(default_factory=list)
    let: asyncio.Event = field(default_factory=asyncio.Event)
    fails: bool = False

    async def __call__(self, number: int) -> int:
        self.begun.append(number)
        await self.let.wait()
        if self.fails:
            raise Failed(number)
        return number * number


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def shared(work: Work) -> SharedWork[int, int]:
    return SharedWork(work, most=2)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_work, "FAILURE_LASTS", 0.02)


async def all_wait(shared: SharedWork[int, int], *numbers: int) -> list[asyncio.Task[int]]:
    tasks = [asyncio.create_task(shared(number)) for number in numbers]
    for _ in range(5):
        await asyncio.sleep(0)
    return tasks


async def test_who_asks_at_the_same_moment_shares_one_attempt(
    work: Work, shared: SharedWork[int, int]
) -> None:
    tasks = await all_wait(shared, *[3] * 64, 4)
    work.let.set()
    assert await asyncio.gather(*tasks) == [9] * 64 + [16]
    assert await shared(3) == 9
    assert work.begun == [3, 4]


async def test_those_who_go_away_take_nothing_from_those_who_wait(
    work: Work, shared: SharedWork[int, int]
) -> None:
    first, *others = await all_wait(shared, 3, 3, 3)
    first.cancel()
    work.let.set()
    assert await asyncio.gather(*others) == [9, 9]
    with pytest.raises(asyncio.CancelledError):
        await first


@pytest.mark.parametrize("fails", [True, False])
async def test_when_all_have_gone_away_the_attempt_still_counts(
    work: Work, shared: SharedWork[int, int], *, fails: bool
) -> None:
    work.fails = fails
    for task in await all_wait(shared, 3, 3):
        task.cancel()
    work.let.set()
    for _ in range(5):
        await asyncio.sleep(0)
    if fails:
        with pytest.raises(Failed):
            await shared(3)
    else:
        assert await shared(3) == 9
    assert work.begun == [3]


@pytest.mark.usefixtures("short")
async def test_a_failure_is_shared_for_a_moment_and_no_longer(
    work: Work, shared: SharedWork[int, int]
) -> None:
    work.fails = True
    tasks = await all_wait(shared, *[3] * 64)
    work.let.set()
    assert all(isinstance(each, Failed) for each in await asyncio.gather(*tasks, return_exceptions=True))
    for _ in range(5):
        with pytest.raises(Failed):
            await shared(3)
    assert work.begun == [3]
    with pytest.raises(Failed):
        await shared(4)  # another's failure is not its own
    work.fails = False
    await asyncio.sleep(0.1)
    assert await shared(3) == 9
    assert work.begun == [3, 4, 3]


async def test_what_was_wanted_last_is_kept(work: Work, shared: SharedWork[int, int]) -> None:
    work.let.set()
    for number in (1, 2, 1, 3):
        await shared(number)
    assert work.begun == [1, 2, 3]
    await shared(1)
    assert work.begun == [1, 2, 3]
    await shared(2)
    assert work.begun == [1, 2, 3, 2]
