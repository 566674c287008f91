"""What is told of requests: templates and never paths, also of what was turned away or broke."""

from collections.abc import Mapping

import httpx2
import pytest

from kms.http.limits import AddressLimiter
from kms.http.observing import Observed
from tests.world import World

Reported = list[tuple[str | None, int | None, str | None]]


def observe(world: World) -> tuple[httpx2.AsyncClient, Reported]:
    reported: Reported = []

    def report(route: str | None, status: int | None, seconds: float | None, limited_by: str | None) -> None:
        # Of the requests of a release; the same path has an operators' route.
        assert (seconds is not None) == (status in {201, 400, 429})
        assert seconds is None or 0 < seconds < 60
        reported.append((route, status, limited_by))

    inner = world.client._transport
    assert isinstance(inner, httpx2.ASGITransport)
    transport = httpx2.ASGITransport(app=Observed(inner.app, report))
    return httpx2.AsyncClient(transport=transport, base_url="https://kms"), reported


PATHS: Mapping[str, tuple[str | None, int]] = {
    "/healthz": ("/healthz", 200),
    "/v1/identity": ("/v1/identity", 200),
    "/v1/apps/0011/env-key?epoch=7": ("/v1/apps/{app_id}/env-key", 404),
    "/v1/releases": ("/v1/releases", 401),
    "/v1/secret-of-a-stranger": (None, 404),
}


async def test_routes_are_reported_by_their_template(world: World) -> None:
    client, reported = observe(world)
    async with client:
        for path in PATHS:
            await client.get(path)
        await client.post("/v1/challenges")
        await client.post("/v1/releases", json={})
    expected = [(route, status, None) for route, status in PATHS.values()]
    assert reported == [*expected, ("/v1/challenges", 201, None), ("/v1/releases", 400, None)]


async def test_who_is_turned_away_is_reported_with_what_was_counted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AddressLimiter, "retry_after", lambda *_: 1.0)
    client, reported = observe(world)
    async with client:
        await client.post("/v1/challenges")
    assert reported == [("/v1/challenges", 429, "address")]


async def test_what_breaks_is_reported_and_counted_as_ended() -> None:
    reported: Reported = []

    async def broken(*_: object) -> None:
        raise RuntimeError("a defect")

    observed = Observed(broken, lambda route, status, _, by: reported.append((route, status, by)))
    transport = httpx2.ASGITransport(app=observed)
    async with httpx2.AsyncClient(transport=transport, base_url="https://kms") as client:
        with pytest.raises(RuntimeError):
            await client.get("/anything")
    assert reported == [(None, None, None)]
    assert observed.in_flight == 0
