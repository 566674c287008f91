import asyncio

import pytest
from structlog.testing import capture_logs

from kms.background import Background, SaidLately


async def test_a_failure_is_logged_and_the_work_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kms.background._PAUSE_AFTER_FAILURE", 0)
    rounds: list[int] = []
    enough = asyncio.Event()

    async def work() -> None:
        rounds.append(1)
        if len(rounds) > 3:
            enough.set()
        raise RuntimeError("a bug")

    background = Background("some-work", work)
    assert not background.alive
    with capture_logs() as logs:
        background.start()
        await asyncio.wait_for(enough.wait(), 5)
        assert background.alive
        await background.stop()
    assert not background.alive
    assert "background-failed" in [line["event"] for line in logs]


async def test_a_pause_comes_before_each_round() -> None:
    rounds: list[int] = []

    async def work() -> None:
        rounds.append(1)

    background = Background("some-work", work, pause=60)
    background.start()
    await asyncio.sleep(0.05)
    await background.stop()
    assert rounds == []


async def test_starting_twice_is_starting_once_and_it_can_start_again() -> None:
    running: list[asyncio.Task[None] | None] = []

    async def work() -> None:
        running.append(asyncio.current_task())
        await asyncio.sleep(60)

    background = Background("some-work", work)
    background.start()
    background.start()
    await asyncio.sleep(0.01)
    assert len(running) == 1
    await background.stop()
    await background.stop()
    background.start()
    assert background.alive
    await background.stop()


def test_the_same_is_said_once_a_minute_and_something_new_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("kms.background.time.monotonic", lambda: now[0])
    said = SaidLately()
    assert [said.is_due(each) for each in ("a", "a", "b", "a")] == [True, False, True, True]
    now[0] = 59.0
    assert not said.is_due("a")
    now[0] = 60.0
    assert said.is_due("a")
