"""A clock that leaps is noticed, believed when it comes back, and believed in the end."""

from datetime import timedelta

import pytest

from kms.clock_watch import BELIEVED_AFTER, ClockWatch
from tests.world import NOW


class Machine:
    """Seconds pass for both; only the clock leaps."""

    def __init__(self) -> None:
        self.now, self.elapsed = NOW, 1000.0
        self.watch = ClockWatch(lambda: self.now, elapsed=lambda: self.elapsed)

    def sleep(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        self.elapsed += seconds


def test_time_that_passes_is_no_leap() -> None:
    machine = Machine()
    for _ in range(100):
        machine.sleep(3600)
        assert not machine.watch.leapt()


@pytest.mark.parametrize("hours", [1, -1])
def test_a_leap_stops_until_the_clock_is_back(hours: int) -> None:
    machine = Machine()
    machine.now += timedelta(hours=hours)
    machine.sleep(1)
    assert machine.watch.leapt()
    machine.sleep(BELIEVED_AFTER - 10)
    assert machine.watch.leapt()
    machine.now -= timedelta(hours=hours)
    assert not machine.watch.leapt()


def test_a_correction_is_believed_after_a_while() -> None:
    machine = Machine()
    machine.now += timedelta(hours=1)
    assert machine.watch.leapt()
    machine.sleep(BELIEVED_AFTER)
    assert not machine.watch.leapt()
    machine.sleep(60)
    assert not machine.watch.leapt()
    machine.now -= timedelta(hours=1)
    assert machine.watch.leapt(), "and what it was before is a leap now"


def test_one_that_leaps_again_and_again_is_not_believed() -> None:
    machine = Machine()
    for _ in range(20):
        machine.now += timedelta(hours=1)
        machine.sleep(BELIEVED_AFTER / 2)
        assert machine.watch.leapt()


def test_small_corrections_are_none() -> None:
    machine = Machine()
    machine.now -= timedelta(seconds=60)
    assert not machine.watch.leapt()
