from contextlib import suppress

import pytest

from kms.errors import RateLimited
from kms.http.total_limit import TotalLimit


class Seconds:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def seconds() -> Seconds:
    return Seconds()


def served(limit: TotalLimit, address: str, tries: int = 1) -> int:
    """How many of these tries were served."""
    count = 0
    for _ in range(tries):
        with suppress(RateLimited):
            limit.take(address)
            count += 1
    return count


def test_lesson_37_a_flood_from_many_addresses_locks_nobody_out(seconds: Seconds) -> None:
    """50 addresses ask 20 times as often as all together may; who asks once a second notices nothing."""
    limit = TotalLimit(1000, 10_000, seconds)
    flood, honest = 0, 0
    for tenth in range(300):
        for attacker in range(50):
            flood += served(limit, f"198.51.100.{attacker}", 40)
        honest += served(limit, "192.0.2.1", tenth % 10 == 0)
        seconds.now += 0.1
    assert honest == 30
    # No more than there is for all, and the limit is not wasted either.
    assert 30 * 1000 - 300 < flood < 10_000 + 30 * 1000


def test_one_network_alone_has_all_that_there_is(seconds: Seconds) -> None:
    limit = TotalLimit(1000, 10_000, seconds)
    total = 0
    for _ in range(600):
        total += served(limit, "192.0.2.1", 1000)
        seconds.now += 0.1
    assert total > 0.95 * 60 * 1000


def test_those_who_flood_get_equal_parts(seconds: Seconds) -> None:
    limit = TotalLimit(1000, 10_000, seconds)
    counts = [0, 0, 0]
    for _ in range(300):
        for number, tries in enumerate((40, 400, 4000)):
            counts[number] += served(limit, f"192.0.2.{number}", tries)
        seconds.now += 0.1
    assert max(counts) < 1.2 * min(counts)


def test_there_is_a_limit_for_addresses_without_number(seconds: Seconds) -> None:
    limit = TotalLimit(10, 100, seconds)
    assert sum(served(limit, f"2001:db8:{number:x}::1") for number in range(10_000)) == 100
    seconds.now += 1
    assert sum(served(limit, f"2001:db9:{number:x}::1") for number in range(10_000)) == 10


def test_a_refusal_says_why_and_when_to_come_again(seconds: Seconds) -> None:
    limit = TotalLimit(10, 100, seconds)
    assert served(limit, "192.0.2.1", 1000) == 50
    with pytest.raises(RateLimited) as refused:
        limit.take("192.0.2.1")
    assert (refused.value.code, refused.value.reason) == ("rate-limited", "total-rate-limited")
    assert 1 <= refused.value.retry_after <= 10
    seconds.now += refused.value.retry_after
    limit.take("192.0.2.1")


def test_memory_has_a_limit(seconds: Seconds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kms.http.total_limit._MOST_NETWORKS", 10)
    limit = TotalLimit(10, 1000, seconds)
    for number in range(100):
        assert served(limit, f"192.0.2.{number}") == 1
    assert len(limit._meters) == 10
