"""A rack boots while the service is slow, limiting and broken: late, but nobody is refused for good."""

import asyncio
import random
from collections import Counter
from collections.abc import Mapping

import httpx2

from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.product import Product
from tests.unit.kds.scene import URL, Scene, boot, report_of, wanted_of
from tests.unit.kds.virtual_time import in_virtual_time, now

Hierarchies = Mapping[Product, AmdHierarchy]


class Amds:
    """One certificate in 10 s, 429 else, and an error for three requests in ten."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.random = random.Random(7)
        self.free_at = 0.0
        self.served: Counter[str] = Counter()
        self.refused = 0

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        if self.random.random() < 0.3:
            return httpx2.Response(self.random.choice([500, 502, 503, 504]))
        if "SPL=" in str(request.url):
            if now() < self.free_at:
                self.refused += 1
                return httpx2.Response(429, headers={"Retry-After": str(int(self.free_at - now()) + 1)})
            self.free_at = now() + 10
        self.served[request.url.raw_path.decode()] += 1
        return await self.scene.kds.genuine(request)


@in_virtual_time
async def test_two_hundred_guests_of_fifty_chips(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies, chips=50)
    scene.kds.answer = amds = Amds(scene)
    async with scene.service(URL, start=True) as service:
        began = now()
        attempts = await asyncio.gather(
            *(boot(service, scene.chips[number % 50], f"192.0.2.{number}") for number in range(200))
        )
        took = now() - began
        # Each certificate was had once, in about the time that the service needs for fifty.
        assert {amds.served[wanted_of(chip).path] for chip in scene.chips} == {1}
        assert took < 50 * 10 * 1.5
        assert amds.refused < 2 * 50
        assert max(attempts) < 20

        # With a warm store and the service gone, nobody notices.
        async def gone(_: httpx2.Request) -> httpx2.Response:
            raise httpx2.ConnectError("gone")

        scene.kds.answer = gone
        asked = len(scene.kds.asked)
        for chip in scene.chips:
            assert len(await service.leaves(report_of(chip))) == 1
    async with scene.service(URL, start=True) as restarted:
        began = now()
        for chip in scene.chips:
            assert await boot(restarted, chip, "192.0.2.1") == 1
            assert len(await restarted.leaves(report_of(chip))) == 1
        assert now() - began < 1
    assert len(scene.kds.asked) == asked


@in_virtual_time
async def test_one_address_that_invents_chips_changes_little(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies, chips=10)
    scene.kds.answer = amds = Amds(scene)

    async def invent() -> None:
        inventions = [scene.chip(number) for number in range(1_000, 1_300)]
        await asyncio.gather(
            *(boot(service, chip, "198.51.100.66") for chip in inventions), return_exceptions=True
        )

    async with scene.service(URL, start=True) as service:
        flood = asyncio.create_task(invent())
        await asyncio.sleep(1)
        began = now()
        await asyncio.gather(*(boot(service, chip, "192.0.2.1") for chip in scene.chips))
        # Every other turn is the inventor's, at worst; and AMD's throttle counts those too.
        assert now() - began < 10 * 10 * 2 * 2.5
        flood.cancel()
        await asyncio.gather(flood, return_exceptions=True)
    assert {amds.served[wanted_of(chip).path] for chip in scene.chips} == {1}
