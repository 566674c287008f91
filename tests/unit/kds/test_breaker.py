import pytest

from kms.kds.breaker import Breaker, State


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def opened(clock: Clock) -> Breaker:
    breaker = Breaker(clock)
    for _ in range(5):
        breaker.begin()
        breaker.fail()
    return breaker


def test_five_failures_in_a_row_open_it(clock: Clock) -> None:
    breaker = Breaker(clock)
    assert [breaker.fail() for _ in range(5)] == [False] * 4 + [True]
    assert breaker.state is State.OPEN
    assert not breaker.permits
    assert breaker.opens_in == 60


def test_an_answer_between_failures_forgives_them(clock: Clock) -> None:
    breaker = Breaker(clock)
    for _ in range(3):
        for _ in range(4):
            breaker.fail()
        assert not breaker.succeed()
    assert breaker.state is State.CLOSED


def test_after_a_minute_one_probe_passes_and_a_good_one_closes_it(clock: Clock) -> None:
    breaker = opened(clock)
    clock.now = 59.9
    assert not breaker.permits
    clock.now = 60
    assert breaker.state is State.HALF_OPEN
    assert breaker.permits
    breaker.begin()
    assert not breaker.permits
    assert breaker.succeed()
    assert breaker.state is State.CLOSED
    assert breaker.permits


def test_a_probe_that_fails_opens_it_for_another_minute(clock: Clock) -> None:
    breaker = opened(clock)
    clock.now = 70
    breaker.begin()
    assert breaker.fail()
    assert breaker.opens_in == 60


def test_a_probe_that_says_nothing_lets_another_pass(clock: Clock) -> None:
    breaker = opened(clock)
    clock.now = 60
    breaker.begin()
    breaker.withdraw()
    assert breaker.permits


def test_failures_of_requests_that_passed_before_do_not_prolong_it(clock: Clock) -> None:
    breaker = opened(clock)
    clock.now = 5
    assert not breaker.fail()
    assert breaker.opens_in == 55
