"""Field lesson 15: what is claimed is judged before AMD's service is asked; strangers cost nothing there."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from kms.kds.client import KdsClient
from kms.ports import Clock
from kms.request import report_data
from kms.simulator.chip import SimulatedChip, simulated_chip_id
from kms.simulator.hierarchy import AmdHierarchy
from kms.simulator.machine import Collateral, SimulatedMachine
from kms.snp.product import Product
from tests.world import Answer, World, describe_image, document, open_world

ANOTHER_APP = "cd" * 20


@dataclass
class Kds:
    """A service that knows nothing, and counts who asks."""

    asked: list[str] = field(default_factory=list)

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request.url.path)
        return httpx2.Response(404)

    def client(self, clock: Clock) -> KdsClient:
        return KdsClient(["http://kds"], clock=clock, transport=httpx2.MockTransport(self))


@pytest.fixture
def kds() -> Kds:
    return Kds()


@pytest.fixture
async def world(
    tmp_path: Path, simulated_hierarchies: Mapping[Product, AmdHierarchy], kds: Kds
) -> AsyncIterator[World]:
    hierarchy = simulated_hierarchies[Product.MILAN]
    async with open_world(tmp_path, hierarchy, make_kds=kds.client) as world:
        yield world


async def ask_bare(world: World, machine: SimulatedMachine, **changes: Any) -> Answer:
    """Ask as a guest of a bare-metal host: no certificates."""
    request = await world.request(**changes)
    return await world.post(request, machine.evidence(report_data(request), collateral=Collateral.NONE))


async def check_nothing_was_asked(world: World, kds: Kds) -> None:
    assert kds.asked == []
    assert await world.spent() == 0


async def test_an_unknown_measurement_says_only_that(world: World, kds: Kds) -> None:
    other = world.launch(description=describe_image(seed=b"other"), app_document=document(app_id=ANOTHER_APP))
    (await ask_bare(world, other)).check_refused(403, "measurement-unknown", "measurement-unknown")
    await check_nothing_was_asked(world, kds)


async def test_a_chip_that_no_app_lists(world: World, kds: Kds) -> None:
    invented = replace(world.chip, chip_id=simulated_chip_id(Product.MILAN, b"invented"))
    answer = await ask_bare(world, world.launch(chip=invented))
    answer.check_refused(403, "policy-denied", "chip-not-listed")
    await check_nothing_was_asked(world, kds)


async def test_a_tcb_below_the_minimum(world: World, kds: Kds) -> None:
    tcb = replace(world.chip.reported_tcb, snp=1)
    old = replace(world.chip, current_tcb=tcb, reported_tcb=tcb, committed_tcb=tcb)
    answer = await ask_bare(world, world.launch(chip=old))
    answer.check_refused(403, "policy-denied", "tcb-reported-too-low", "tcb-committed-too-low")
    await check_nothing_was_asked(world, kds)


async def test_a_product_that_no_app_lists(
    world: World, kds: Kds, simulated_hierarchies: Mapping[Product, AmdHierarchy]
) -> None:
    await world.apply_changed(app={"chips": "any"})
    turin = SimulatedChip.typical(
        simulated_hierarchies[Product.TURIN],
        chip_id=simulated_chip_id(Product.TURIN, b"turin"),
        now=world.now[0],
    )
    answer = await ask_bare(world, world.launch(chip=turin))
    answer.check_refused(403, "policy-denied", "product-not-listed")
    await check_nothing_was_asked(world, kds)


async def test_another_app(world: World, kds: Kds) -> None:
    answer = await ask_bare(world, world.launch(app_document=document(app_id=ANOTHER_APP)))
    answer.check_refused(403, "policy-denied", "app-not-listed")
    await check_nothing_was_asked(world, kds)


async def test_a_document_that_is_not_bound(world: World, kds: Kds) -> None:
    request = await world.request()
    evidence = world.machine.evidence(report_data(request), collateral=Collateral.NONE)
    del evidence["app_document"]
    answer = await world.post(request, evidence)
    answer.check_refused(403, "evidence-untrusted", "app-document-missing")
    await check_nothing_was_asked(world, kds)


async def test_an_honest_guest_is_looked_up(world: World, kds: Kds) -> None:
    """And here the service knows nothing: not even the chain, so that nothing is proven against the guest."""
    answer = await ask_bare(world, world.machine)
    answer.check_refused(503, "collateral-unavailable")
    assert kds.asked == ["/vcek/v1/Milan/cert_chain"]
