import pytest

from kms.buckets import Buckets


class Seconds:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def seconds() -> Seconds:
    return Seconds()


def taken(buckets: Buckets, key: str, tries: int = 1000) -> int:
    """How many of these tries got a token."""
    return sum(buckets.retry_after(key) is None for _ in range(tries))


def test_what_was_taken_elsewhere_is_not_there_any_more(seconds: Seconds) -> None:
    buckets = Buckets(10, 100, seconds)
    buckets.charge("a", 30)
    assert taken(buckets, "a") == 70
    assert taken(buckets, "b") == 100


def test_a_charge_beyond_the_bucket_is_paid_back_first(seconds: Seconds) -> None:
    buckets = Buckets(10, 100, seconds)
    buckets.charge("a", 150)
    seconds.now += 4
    assert taken(buckets, "a") == 0
    seconds.now += 2
    assert taken(buckets, "a") == 10


def test_nobody_is_charged_into_a_wait_without_end(seconds: Seconds) -> None:
    """Whatever stands in the table that servers share."""
    buckets = Buckets(10, 100, seconds)
    for _ in range(50):
        buckets.charge("a", 10**15)
    wait = buckets.retry_after("a")
    assert wait is not None
    assert wait <= 10.1
    seconds.now += 20
    assert taken(buckets, "a") == 100


def test_the_heavy_are_told_of_once(seconds: Seconds) -> None:
    buckets = Buckets(10, 100, seconds)
    for key, tries in (("heavy", 60), ("light", 3), ("middle", 30)):
        assert taken(buckets, key, tries) == tries
    assert buckets.heavy(10, most=1) == {"heavy": 60}
    assert buckets.heavy(10, most=10) == {"middle": 30}
    assert buckets.heavy(10, most=10) == {}
    assert taken(buckets, "light", 7) == 7
    assert buckets.heavy(10, most=10) == {"light": 10}


def test_what_is_charged_is_not_told_again(seconds: Seconds) -> None:
    """Two servers would tell each other of the same tokens for ever."""
    buckets = Buckets(10, 100, seconds)
    buckets.charge("a", 50)
    assert buckets.heavy(10, most=10) == {}


def test_who_has_a_full_bucket_again_begins_anew(seconds: Seconds) -> None:
    """A guest that asks once an hour does not become heavy over the days."""
    buckets = Buckets(10, 100, seconds)
    for _ in range(50):
        assert taken(buckets, "rare", 1) == 1
        seconds.now += 3600
        assert buckets.heavy(10, most=10) == {}


def test_what_was_given_back_was_not_taken(seconds: Seconds) -> None:
    buckets = Buckets(10, 100, seconds)
    for _ in range(200):
        assert buckets.retry_after("a") is None
        buckets.give_back("a")
    assert buckets.heavy(10, most=10) == {}


def test_memory_has_a_limit(seconds: Seconds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kms.buckets._MOST_KEYS", 10)
    buckets = Buckets(1, 1, seconds)
    for number in range(100):
        assert buckets.retry_after(str(number)) is None
    assert len(buckets._full_at) == len(buckets._taken) == 10
