"""Turns: who gets one, and what becomes of one that nobody takes."""

import asyncio
from datetime import timedelta

import httpx2

from kms.kds.client import Asker, KdsClient, Turn
from tests.unit.kds.scene import OTHER_URL, START, URL
from tests.unit.kds.virtual_time import in_virtual_time, now

GUEST = "192.0.2.1"


def make_client(*urls: str, per_second: float = 5.0, burst: int = 100) -> KdsClient:
    began = now()
    return KdsClient(
        urls,
        per_second=per_second,
        burst=burst,
        clock=lambda: START + timedelta(seconds=now() - began),
        monotonic=now,
        random=lambda: 0.5,
        transport=httpx2.MockTransport(lambda _: httpx2.Response(404)),
    )


async def take(client: KdsClient, asker: Asker | None = None, address: str = GUEST) -> Turn:
    turn = await client.turn([address], asker or client.new_asker())
    if turn is None:
        raise AssertionError("no turn")
    return turn


@in_virtual_time
async def test_a_turn_that_was_not_used_costs_nothing() -> None:
    client = make_client(URL, per_second=1, burst=2)
    for _ in range(20):
        with await take(client):
            pass
    assert now() == 1_000
    assert client.status()[0].budget_left == 2
    await client.close()


@in_virtual_time
async def test_a_turn_given_in_the_moment_of_the_cancellation_is_given_back() -> None:
    client = make_client(URL)
    taken = [await take(client) for _ in range(8)]  # as many as there are at once
    waiting = [asyncio.create_task(take(client)) for _ in range(3)]
    await asyncio.sleep(1)
    assert [task.done() for task in waiting] == [False] * 3
    taken[0].end()  # gives the first of them a turn, which it has not noticed yet
    waiting[0].cancel()
    waiting[1].cancel()  # and this one waits still, when the turn comes back
    await asyncio.sleep(0)
    assert (await waiting[2]).endpoint is client.endpoints[0]
    assert client.status()[0].in_flight == 8
    await client.close()


@in_virtual_time
async def test_who_waits_for_one_service_is_woken_when_another_may_be_probed() -> None:
    client = make_client(URL, OTHER_URL)
    first, other = client.endpoints
    for _ in range(5):
        first.failed("connection")
    other.hold(3600)
    turn = await take(client)
    assert turn.endpoint is first
    assert 60 <= now() - 1_000 < 60.1
    turn.end()
    await client.close()


@in_virtual_time
async def test_nobody_waits_for_a_service_whose_breaker_opens_meanwhile() -> None:
    client = make_client(URL)
    [endpoint] = client.endpoints
    endpoint.hold(30)
    waiting = asyncio.create_task(client.turn([GUEST], client.new_asker()))
    await asyncio.sleep(31)
    assert (await waiting) is not None
    taken = await take(client) if endpoint.wait == 0 else None
    assert taken is None  # one by one after a hold
    later = asyncio.create_task(client.turn([GUEST], client.new_asker()))
    await asyncio.sleep(1)
    for _ in range(5):
        endpoint.failed("connection")
    turn = waiting.result()
    if turn is not None:
        turn.end()
    assert await later is None
    await client.close()


@in_virtual_time
async def test_what_waiting_will_take() -> None:
    client = make_client(URL, per_second=1, burst=2)
    for number in range(2):
        (await take(client, address=f"198.51.100.{number}"))._used = True
    askers = [client.new_asker() for _ in range(10)]
    tasks = [
        asyncio.create_task(client.turn([f"192.0.2.{number}"], asker)) for number, asker in enumerate(askers)
    ]
    await asyncio.sleep(0)
    expected = [client.expected_wait([f"192.0.2.{number}"], asker) for number, asker in enumerate(askers)]
    came = []
    began = now()
    for task in tasks:
        turn = await task
        came.append(now() - began)
        if turn is not None:
            turn._used = True
            turn.end()
    assert all(abs(wait - at) < 0.1 for wait, at in zip(expected, came, strict=True))
    await client.close()


@in_virtual_time
async def test_a_probe_without_a_verdict_is_followed_by_another() -> None:
    client = make_client(URL)
    for _ in range(5):
        client.endpoints[0].failed("connection")
    await asyncio.sleep(60)
    (await take(client)).end()
    waiting = asyncio.create_task(take(client))
    await asyncio.sleep(1)
    assert waiting.done()
    waiting.result().end()
    await client.close()
