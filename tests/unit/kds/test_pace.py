from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms.addresses import network_of
from kms.kds.pace import Bucket, Shares, hold_of

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_gives_its_burst_then_its_rate() -> None:
    clock = Clock()
    bucket = Bucket(5, 100, clock)
    for _ in range(100):
        assert bucket.wait == 0
        bucket.take()
    assert bucket.wait == pytest.approx(0.2)
    clock.now = 0.2
    assert bucket.wait == 0
    clock.now = 1_000
    assert bucket.left == 100


def test_debt_delays_and_has_an_end() -> None:
    clock = Clock()
    bucket = Bucket(2, 10, clock)
    bucket.take(12)
    assert bucket.left == -2
    assert bucket.wait == pytest.approx(1.5)
    bucket.take(1_000)
    assert bucket.left == -10


def test_a_token_given_back_can_be_taken_again() -> None:
    bucket = Bucket(1, 1, Clock())
    bucket.take()
    bucket.give_back()
    assert bucket.wait == 0
    bucket.give_back()
    assert bucket.left == 1


@given(st.lists(st.floats(0, 10), max_size=60))
def test_never_more_than_burst_and_rate(pauses: list[float]) -> None:
    clock = Clock()
    bucket = Bucket(3, 7, clock)
    taken = 0
    for pause in pauses:
        clock.now += pause
        while bucket.wait == 0:
            bucket.take()
            taken += 1
    assert taken <= 7 + 3 * clock.now + 1e-6


def test_an_address_has_half_and_others_have_theirs() -> None:
    clock = Clock()
    shares = Shares(5, 100, clock)
    for _ in range(50):
        assert shares.wait("192.0.2.1") == 0
        shares.take("192.0.2.1")
    assert shares.wait("192.0.2.1") == pytest.approx(0.4)
    assert shares.wait("192.0.2.2") == 0
    shares.take("192.0.2.1", 5)
    assert shares.wait("192.0.2.1") == pytest.approx(2.4)


def test_a_burst_of_one_still_lets_an_address_ask() -> None:
    shares = Shares(0.1, 1, Clock())
    assert shares.wait("192.0.2.1") == 0
    shares.take("192.0.2.1")
    assert shares.wait("192.0.2.1") == pytest.approx(20)


def test_the_addresses_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kms.kds.pace._MOST_ADDRESSES", 3)
    shares = Shares(1, 2, Clock())
    for number in range(4):
        shares.take(f"192.0.2.{number}")
    assert shares.wait("192.0.2.0") == 0
    assert shares.wait("192.0.2.1") > 0
    assert len(shares._buckets) == 3


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("17", 17),
        (" 17 ", 17),
        ("0", 1),
        ("86400", 3600),
        ("9" * 400, 3600),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90),
        ("Sat, 21 Nov 2026 12:00:30 -0000", 30),
        (format_datetime(NOW - timedelta(days=1), usegmt=True), 1),
        (format_datetime(NOW + timedelta(days=9), usegmt=True), 3600),
        (None, 10),
        ("", 10),
        ("soon", 10),
        ("-5", 10),
        ("1.5", 10),
        ("٣", 10),
        ("Sat, 99 Nov 2026 12:00:30 GMT", 10),
        ("Fri, 31 Dec 9999 23:59:59 -2359", 3600),
    ],
)
def test_retry_after(header: str | None, seconds: float) -> None:
    assert hold_of(header, NOW) == seconds


@given(st.text())
def test_any_retry_after_is_bounded(header: str) -> None:
    assert 1 <= hold_of(header, NOW) <= 3600


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("the server", "the server"),
    ],
)
def test_whose_share(address: str, network: str) -> None:
    assert network_of(address) == network
