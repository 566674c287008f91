"""429 and budgets: what a service and we ourselves allow, and who gets how much of it."""

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from email.utils import format_datetime

import httpx2
import pytest
from structlog.testing import capture_logs

from kms.errors import CollateralUnavailable, CollateralUnknown
from kms.kds.breaker import State
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.kds_paths import ChainOf
from kms.snp.product import Product
from tests.unit.kds.scene import MILAN, OTHER_URL, URL, Scene, boot, invented, report_of, wanted_of
from tests.unit.kds.virtual_time import in_virtual_time, now

Hierarchies = Mapping[Product, AmdHierarchy]
GUEST = "192.0.2.1"
GREEDY = "198.51.100.66"


class Throttling:
    """Answers 429 to VCEKs until `until`, with whatever header a test wants."""

    def __init__(self, scene: Scene, headers: Mapping[str, str], seconds: float) -> None:
        self.scene = scene
        self.headers = headers
        self.until = now() + seconds
        self.refused = 0

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        if "SPL=" in str(request.url) and now() < self.until:
            self.refused += 1
            return httpx2.Response(429, headers=dict(self.headers))
        return await self.scene.kds.genuine(request)


@pytest.mark.parametrize(
    ("form", "hold"), [("seconds", 30.0), ("date", 30.0), ("nothing", 10.0), ("an hour at most", 3600.0)]
)
def test_429_holds_everything_for_that_url(
    simulated_hierarchies: Hierarchies, form: str, hold: float
) -> None:
    @in_virtual_time
    async def hold_everything() -> None:
        scene = Scene(simulated_hierarchies, chips=3)
        headers = {
            "seconds": {"Retry-After": "30"},
            "date": {
                "Retry-After": format_datetime(
                    (scene.clock() + timedelta(seconds=31)).replace(microsecond=0), usegmt=True
                )
            },
            "nothing": {},
            "an hour at most": {"Retry-After": "999999"},
        }[form]
        async with scene.service(URL) as service:
            await service.fetch(ChainOf(MILAN), GUEST)
            scene.kds.answer = throttling = Throttling(scene, headers, seconds=1.0)
            with capture_logs() as logs, pytest.raises(CollateralUnavailable) as told:
                await service.fetch(wanted_of(scene.chips[0]), GUEST)
            refused_at = scene.kds.asked[-1][0]
            assert min(hold - 6, 80) < told.value.retry_after <= min(hold * 1.25, 100)
            assert [line["event"] for line in logs] == ["kds-throttled"]
            await asyncio.gather(*(boot(service, chip, GUEST) for chip in scene.chips))
            asked = [at for at, _, _ in scene.kds.vceks_asked()]
            assert throttling.refused == 1
            assert hold <= asked[1] - refused_at <= hold + 1.5
            # 429 says nothing against the service.
            assert service.status().services[0].breaker is State.CLOSED

    hold_everything()


@in_virtual_time
async def test_after_a_hold_requests_go_out_one_by_one(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies, chips=20)
    async with scene.service(URL) as service:
        await service.fetch(ChainOf(MILAN), GUEST)
        scene.kds.answer = throttling = Throttling(scene, {"Retry-After": "3"}, seconds=1.0)
        fetches = [
            asyncio.create_task(service.fetch(wanted_of(chip), f"192.0.2.{number}"))
            for number, chip in enumerate(scene.chips)
        ]
        await asyncio.sleep(1)
        in_flight_at_first = throttling.refused
        assert in_flight_at_first == 8  # as many as are in flight at once
        scene.kds.most_in_flight = 0
        await asyncio.gather(*fetches)
        assert scene.kds.most_in_flight == 1
        assert throttling.refused == in_flight_at_first


@in_virtual_time
async def test_another_service_is_asked_while_one_is_held(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies, chips=2)

    async def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.host == "kds.test":
            return httpx2.Response(429, headers={"Retry-After": "600"})
        return await scene.kds.genuine(request)

    scene.kds.answer = answer
    async with scene.service(URL, OTHER_URL) as service:
        began = now()
        for chip in scene.chips:
            await service.fetch(wanted_of(chip), GUEST)
        assert now() - began < 1
        held, other = service.status().services
        assert held.held_until is not None
        assert (held.held_until - scene.clock()).total_seconds() == pytest.approx(600, abs=1)
        assert other.held_until is None
    assert [host for _, host, _ in scene.kds.asked].count("kds.test") == 1


@in_virtual_time
async def test_503_with_retry_after_holds_and_counts_as_a_failure(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies)
    refused: list[float] = []

    async def answer(request: httpx2.Request) -> httpx2.Response:
        if "SPL=" in str(request.url) and not refused:
            refused.append(now())
            return httpx2.Response(503, headers={"Retry-After": "4"})
        return await scene.kds.genuine(request)

    scene.kds.answer = answer
    async with scene.service(URL) as service:
        await service.fetch(wanted_of(scene.chips[0]), GUEST)
        assert scene.kds.asked[-1][0] - refused[0] >= 4
        assert service.status().services[0].last_failure_kind == "status-503"


@in_virtual_time
async def test_the_budget_of_a_service_is_kept(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies, chips=30)
    async with scene.service(URL, per_second=2, burst=4) as service:
        fetches = [
            asyncio.create_task(service.fetch(wanted_of(chip), f"192.0.2.{number}"))
            for number, chip in enumerate(scene.chips)
        ]
        outcomes = await asyncio.gather(*fetches, return_exceptions=True)
        waits = [each.retry_after for each in outcomes if isinstance(each, CollateralUnavailable)]
        # Who waits longer is told so.
        assert len(waits) > 10
        assert max(waits) >= 8 > min(waits)
        await asyncio.sleep(15)
        assert len(scene.store.leaves()) == 30
    times = [at for at, _, _ in scene.kds.asked]
    assert len(times) == 31
    for first in range(31):
        for last in range(first, 31):
            assert last - first + 1 <= 4 + 2 * (times[last] - times[first]) + 1e-6


@in_virtual_time
async def test_invented_chips_wait_in_their_inventors_line(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies, chips=3)
    async with scene.service(URL, per_second=1, burst=2) as service:
        await service.fetch(ChainOf(MILAN), GUEST)
        await asyncio.sleep(10)
        flood = [asyncio.create_task(service.fetch(invented(number), GREEDY)) for number in range(64)]
        await asyncio.sleep(0.1)
        began = now()
        for number, chip in enumerate(scene.chips):
            await service.fetch(wanted_of(chip), f"192.0.2.{number}")
        # Three certificates at one a second, as if nobody else were there.
        assert now() - began < 5
        await asyncio.gather(*flood, return_exceptions=True)


@in_virtual_time
async def test_a_404_costs_the_address_that_asked_for_it_more(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies, chips=20)
    async with scene.service(URL) as service:
        await service.fetch(ChainOf(MILAN), "192.0.2.9")
        for number in range(1_000):
            with pytest.raises((CollateralUnknown, CollateralUnavailable)):
                await service.fetch(invented(number), GREEDY)
            if now() > 1_060:
                break
        invented_asked = len(scene.kds.vceks_asked())
        # Half of the burst and of the rate, and six tokens for each: (50 + 60 * 2.5) / 6 in 60 s.
        assert 25 <= invented_asked <= 36
        for chip in scene.chips:
            await service.fetch(wanted_of(chip), GUEST)
        [status] = service.status().services
        assert status.budget_left > 50


@in_virtual_time
async def test_the_fetches_of_one_address_are_bounded(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies)
    scene.kds.answer = Throttling(scene, {"Retry-After": "60"}, seconds=1_000)
    async with scene.service(URL) as service:
        await service.fetch(ChainOf(MILAN), GUEST)
        flood = [asyncio.create_task(service.fetch(invented(number), GREEDY)) for number in range(64)]
        await asyncio.sleep(0)
        began = now()
        with pytest.raises(CollateralUnavailable) as told:
            await service.fetch(invented(64), GREEDY)
        assert now() == began
        assert 1 <= told.value.retry_after <= 100
        # Others have their own.
        other = asyncio.create_task(service.fetch(wanted_of(scene.chips[0]), GUEST))
        await asyncio.sleep(1)
        assert service.status().fetching == 65
        await asyncio.gather(other, *flood, return_exceptions=True)


@in_virtual_time
async def test_fetches_that_ended_count_no_more(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies)
    async with scene.service(URL, per_second=1_000, burst=10_000) as service:
        for number in range(100):
            with pytest.raises(CollateralUnknown):
                await service.fetch(invented(number), GREEDY)
        assert service._fetches is not None
        assert service._fetches._begun == {}


@in_virtual_time
async def test_an_ipv6_network_is_one_address(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies)
    scene.kds.answer = Throttling(scene, {"Retry-After": "60"}, seconds=1_000)
    async with scene.service(URL) as service:
        flood = [
            asyncio.create_task(service.fetch(invented(number), f"2001:db8::{number:x}"))
            for number in range(64)
        ]
        await asyncio.sleep(0.01)
        with pytest.raises(CollateralUnavailable) as told:
            await service.fetch(invented(64), "2001:db8::ffff")
        assert "too many" in told.value.detail
        await asyncio.gather(*flood, return_exceptions=True)


@in_virtual_time
async def test_the_fetches_of_all_are_bounded(
    simulated_hierarchies: Hierarchies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kms.kds.fetching._MOST", 10)
    scene = Scene(simulated_hierarchies)
    scene.kds.answer = Throttling(scene, {"Retry-After": "60"}, seconds=1_000)
    async with scene.service(URL) as service:
        flood = [
            asyncio.create_task(service.fetch(invented(number), f"192.0.2.{number}")) for number in range(10)
        ]
        await asyncio.sleep(0)
        with pytest.raises(CollateralUnavailable) as told:
            await service.fetch(invented(10), GUEST)
        assert "too many" in told.value.detail
        await asyncio.gather(*flood, return_exceptions=True)


@in_virtual_time
async def test_what_nobody_asks_for_any_more_is_dropped(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies, chips=2)
    forgotten, wanted = map(wanted_of, scene.chips)
    async with scene.service(URL) as service:
        await service.fetch(ChainOf(MILAN), GUEST)
        scene.kds.answer = Throttling(scene, {"Retry-After": "300"}, seconds=1.0)
        for _ in range(2):
            with pytest.raises(CollateralUnavailable):
                await service.fetch(forgotten, GUEST)
        for _ in range(4):
            with pytest.raises(CollateralUnavailable):
                await service.fetch(wanted, GUEST)
            await asyncio.sleep(60)
        assert service.status().fetching == 1
        await asyncio.sleep(60)
        assert len(await service.leaves(report_of(scene.chips[1]))) == 1
        assert len(scene.kds.asked_for(forgotten)) == 1


@in_virtual_time
async def test_an_asker_who_joins_gives_a_fetch_his_place(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies)
    wanted = wanted_of(scene.chips[0])
    async with scene.service(URL, per_second=1, burst=2) as service:
        await service.fetch(ChainOf(MILAN), "192.0.2.9")
        flood = [asyncio.create_task(service.fetch(invented(number), GREEDY)) for number in range(60)]
        flood.append(asyncio.create_task(service.fetch(wanted, GREEDY)))  # the last of a long line
        await asyncio.sleep(1)
        await service.fetch(wanted, GUEST)
        await asyncio.gather(*flood, return_exceptions=True)
    assert len(scene.kds.asked_for(wanted)) == 1
