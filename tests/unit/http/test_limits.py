import asyncio

import pytest
from starlette.requests import Request
from starlette.types import Message

from kms.errors import MalformedRequest
from kms.http.limits import AddressLimiter, InFlight, ServerBusy, read_body


class Seconds:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def seconds() -> Seconds:
    return Seconds()


def taken(limiter: AddressLimiter, address: str, tries: int) -> int:
    """How many of these tries got a token."""
    return sum(limiter.retry_after(address) is None for _ in range(tries))


def test_lesson_37_a_burst_then_the_sustained_rate(seconds: Seconds) -> None:
    limiter = AddressLimiter(10, 25, seconds)
    assert taken(limiter, "192.0.2.1", 100) == 25
    wait = limiter.retry_after("192.0.2.1")
    assert wait == pytest.approx(0.1)
    seconds.now += 0.99
    assert taken(limiter, "192.0.2.1", 100) == 9
    seconds.now += 3600
    assert taken(limiter, "192.0.2.1", 100) == 25


def test_asking_while_refused_does_not_lengthen_the_wait(seconds: Seconds) -> None:
    limiter = AddressLimiter(1, 1, seconds)
    assert taken(limiter, "192.0.2.1", 1) == 1
    waits = {limiter.retry_after("192.0.2.1") for _ in range(1000)}
    assert waits == {1.0}


def test_addresses_do_not_share(seconds: Seconds) -> None:
    limiter = AddressLimiter(1, 3, seconds)
    for address in ("192.0.2.1", "192.0.2.2", "2001:db8::1", "not an address"):
        assert taken(limiter, address, 5) == 3


def test_a_customer_of_ipv6_has_a_network(seconds: Seconds) -> None:
    limiter = AddressLimiter(1, 3, seconds)
    assert taken(limiter, "2001:db8:0:1::1", 3) == 3
    assert taken(limiter, "2001:db8:0:1:ffff::2", 1) == 0
    assert taken(limiter, "2001:db8:0:2::1", 1) == 1


def test_an_ipv4_address_in_ipv6_is_that_address(seconds: Seconds) -> None:
    limiter = AddressLimiter(1, 2, seconds)
    assert taken(limiter, "::ffff:192.0.2.1", 2) == 2
    assert taken(limiter, "192.0.2.1", 1) == 0
    assert taken(limiter, "::ffff:192.0.2.2", 1) == 1


def test_memory_has_a_limit(seconds: Seconds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kms.buckets._MOST_KEYS", 10)
    limiter = AddressLimiter(1, 1, seconds)
    for number in range(100):
        assert limiter.retry_after(f"192.0.2.{number}") is None
    assert len(limiter.buckets._full_at) == 10
    assert limiter.retry_after("192.0.2.99") is not None


def test_a_burst_of_none_is_one(seconds: Seconds) -> None:
    assert taken(AddressLimiter(5, 0, seconds), "192.0.2.1", 10) == 1


def test_as_many_at_once_as_there_are_places() -> None:
    in_flight = InFlight(2)
    with in_flight.place(), in_flight.place():
        with pytest.raises(ServerBusy) as refused, in_flight.place():
            pass
        assert (refused.value.code, refused.value.reason) == ("server-busy", "server-busy")
        assert refused.value.retry_after == 1
    with in_flight.place(), in_flight.place():
        pass


def test_a_place_is_given_back_after_a_failure() -> None:
    in_flight = InFlight(1)
    for _ in range(3):
        with pytest.raises(KeyError), in_flight.place():
            raise KeyError


async def test_lesson_37_the_deadline_is_for_the_whole_body(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kms.http.limits.BODY_WITHIN", 0.2)

    async def drip() -> Message:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b" ", "more_body": True}

    request = Request({"type": "http", "method": "POST", "headers": []}, drip)
    with pytest.raises(MalformedRequest) as refused:
        await read_body(request)
    assert refused.value.reason == "body-too-slow"
