import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack

import pytest
from starlette.requests import Request
from starlette.types import Message

from kms.errors import RateLimited, TooLarge
from kms.http.limits import MAX_BODY, ServerBusy
from kms.http.places import Places
from kms.http.release_gate import ReleaseGate
from kms.http.shares import Shares
from kms.http.total_limit import TotalLimit

FREE = 100_000


def gate(*, burst: int = 1000, places: int = 100) -> ReleaseGate:
    return ReleaseGate(TotalLimit(1, burst, lambda: 0.0), Places(places, wait_at_most=0.01), Shares(FREE))


def request(pieces: Sequence[bytes], address: str = "192.0.2.1") -> Request:
    """A request whose body comes in pieces; after the last, nothing comes any more."""
    waiting = list(pieces)

    async def receive() -> Message:
        piece = waiting.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(waiting)}

    scope = {"type": "http", "method": "POST", "headers": [], "client": (address, 1)}
    return Request(scope, receive)


async def test_the_body_is_there_and_room_is_given_back() -> None:
    entrance = gate()
    for _ in range(10):
        async with entrance.admitted(request([b"a" * 20_000, b"b" * 20_000])) as body:
            assert body == b"a" * 20_000 + b"b" * 20_000
            assert entrance._bodies.free == FREE - 40_000
    assert entrance._bodies.free == FREE


async def test_bodies_of_one_network_leave_room_for_others() -> None:
    """Each may be a megabyte: without this, strangers' slow bodies would be all of the memory."""
    entrance = gate()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(entrance.admitted(request([b"x" * 40_000])))
        with pytest.raises(ServerBusy):
            await stack.enter_async_context(entrance.admitted(request([b"x" * 10_000, b"x" * 20_000])))
        assert entrance._bodies.free == FREE - 40_000
        await stack.enter_async_context(entrance.admitted(request([b"x" * 20_000], "192.0.2.2")))
    assert entrance._bodies.free == FREE


async def test_who_sends_slowly_has_no_place_yet() -> None:
    entrance = gate(places=1)
    last = asyncio.Event()

    async def slowly() -> Message:
        await last.wait()
        return {"type": "http.request", "body": b"", "more_body": False}

    slow = Request({"type": "http", "method": "POST", "headers": [], "client": ("192.0.2.2", 1)}, slowly)

    async def send() -> None:
        async with entrance.admitted(slow):
            pass

    sending = asyncio.create_task(send())
    await asyncio.sleep(0)
    async with entrance.admitted(request([b"{}"])):
        pass
    last.set()
    await sending


async def test_nothing_is_read_of_a_request_beyond_the_limit() -> None:
    entrance = gate(burst=3)
    for number in range(3):
        async with entrance.admitted(request([b"{}"], f"192.0.2.{number}")):
            pass
    with pytest.raises(RateLimited):
        async with entrance.admitted(request([], "192.0.2.9")):
            pass


async def test_a_body_that_is_too_long_gives_its_room_back() -> None:
    entrance = ReleaseGate(TotalLimit(1, 10, lambda: 0.0), Places(1), Shares(10 * MAX_BODY))
    with pytest.raises(TooLarge):
        async with entrance.admitted(request([b"x" * MAX_BODY, b"x"])):
            pass
    assert entrance._bodies.free == 10 * MAX_BODY
