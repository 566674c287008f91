"""Strangers with many networks: what they can and cannot keep from everybody else."""

import asyncio
from collections.abc import Mapping

import pytest

from kms.errors import CollateralUnavailable
from kms.kds.service import CollateralService
from kms.kds.turns import MOST_LINES
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.kds_paths import ChainOf, VcekOf, Wanted
from kms.snp.product import Product
from tests.unit.kds.scene import MILAN, URL, Scene, boot, invented, report_of, wanted_of
from tests.unit.kds.test_client import make_client
from tests.unit.kds.virtual_time import in_virtual_time, now

Hierarchies = Mapping[Product, AmdHierarchy]
GUEST = "192.0.2.1"
FLEET = "192.0.2.2"


def stranger(number: int) -> str:
    return f"198.51.100.{number}"


class Strangers:
    """Guests that ask and do not wait for the answer."""

    def __init__(self, service: CollateralService) -> None:
        self.service = service
        self.tasks: list[asyncio.Task[None]] = []

    def ask(self, wanted: Wanted, address: str) -> None:
        self.tasks.append(asyncio.create_task(self.service.fetch(wanted, address)))

    def stand_before(self, wanted: Wanted, networks: int, *, flights: int = 63) -> None:
        """Ask for something on behalf of several networks, each at the end of a long line of its own."""
        for network in range(networks):
            for number in range(flights):
                self.ask(invented(1_000 * network + number), stranger(network))
            self.ask(wanted, stranger(network))

    async def go(self) -> list[BaseException | None]:
        return await asyncio.gather(*self.tasks, return_exceptions=True)


@in_virtual_time
async def test_strangers_who_ask_first_for_a_chip_cannot_keep_it_at_the_end_of_their_lines(
    simulated_hierarchies: Hierarchies,
) -> None:
    scene = Scene(simulated_hierarchies)
    chip = scene.chips[0]
    async with scene.service(URL, per_second=1, burst=2) as service:
        await service.fetch(ChainOf(MILAN), FLEET)
        strangers = Strangers(service)
        strangers.stand_before(wanted_of(chip), MOST_LINES)
        await asyncio.sleep(1)
        began = now()
        await boot(service, chip, GUEST)
        # Once round all lines, of which each has one turn in it.
        assert now() - began < 2 * (MOST_LINES + 1)
        await strangers.go()
    assert len(scene.kds.asked_for(wanted_of(chip))) == 1


@in_virtual_time
async def test_a_chain_is_sought_in_the_lines_of_all_who_need_it(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies)
    chip = scene.chip(7, Product.GENOA)
    scene.kds.chips[chip.chip_id] = chip
    async with scene.service(URL, per_second=1, burst=2) as service:
        await service.fetch(ChainOf(MILAN), FLEET)
        strangers = Strangers(service)
        strangers.stand_before(wanted_of(chip), 1)
        await asyncio.sleep(1)
        began = now()
        await boot(service, chip, GUEST)
        assert now() - began < 12
        await strangers.go()


@in_virtual_time
async def test_only_a_line_that_is_nearer_its_turn_pushes_another_out() -> None:
    client = make_client(URL, per_second=1, burst=100)
    tasks = []

    client.endpoints[0].hold(3_600)
    wanted, addresses = client.new_asker(), [GUEST]
    tasks.append(asyncio.create_task(client.turn(addresses, wanted)))
    await asyncio.sleep(0)
    tasks.extend(
        asyncio.create_task(client.turn([stranger(number // 3)], client.new_asker())) for number in range(120)
    )
    await asyncio.sleep(0)
    for number in range(40):
        client.join(addresses, stranger(number), wanted)
    assert addresses == [GUEST, *map(stranger, range(MOST_LINES - 1))]  # the guest's is the best of all
    for number in range(40):
        client.join(addresses, f"203.0.113.{number}", wanted)  # whose lines are empty
    assert addresses == [GUEST, *(f"203.0.113.{number}" for number in range(MOST_LINES - 1))]
    # Nor does it help to be as near.
    client.charge(addresses[3], 60)
    client.join(addresses, "192.0.2.77", wanted)
    assert "192.0.2.77" in addresses
    assert "203.0.113.2" not in addresses  # its share is in debt
    assert {address for address, line in client._queue.lines() if wanted in line} == set(addresses)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await client.close()


@in_virtual_time
async def test_when_there_are_too_many_the_network_with_most_loses_its_latest(
    simulated_hierarchies: Hierarchies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kms.kds.fetching._MOST", 12 + 1)  # and the fleet's chip
    scene = Scene(simulated_hierarchies, chips=2)
    async with scene.service(URL) as service:
        if service._fetches is None or service._kds is None:
            raise AssertionError("it was given a URL")
        await service.fetch(ChainOf(MILAN), FLEET)
        service._kds.endpoints[0].hold(30)
        strangers = Strangers(service)
        strangers.ask(wanted_of(scene.chips[1]), FLEET)
        for network, flights in enumerate((3, 5, 4)):
            for number in range(flights):
                strangers.ask(invented(1_000 * network + number), stranger(network))
        await asyncio.sleep(0.1)
        assert service.status().fetching == 13
        began = now()
        guests = [
            asyncio.create_task(service.fetch(wanted, GUEST))
            for wanted in (wanted_of(scene.chips[0]), invented(7_001), invented(7_002))
        ]
        await asyncio.sleep(0.1)
        assert service.status().fetching == 13

        def waiting() -> set[VcekOf]:
            flights = service._fetches._flights if service._fetches is not None else {}
            return {each for each in flights if isinstance(each, VcekOf)}

        # Of three, five and four: the five become four, and then each four become three.
        lost = {invented(1_004), invented(2_003), invented(1_003)}
        fleet, *flood = [each.done() for each in strangers.tasks]
        assert not fleet
        assert sum(flood) == len(lost)
        assert not lost & waiting()
        assert {wanted_of(each) for each in scene.chips} <= waiting()
        gone = [each for each in strangers.tasks if each.done()]
        assert {type(each.exception()) for each in gone} == {CollateralUnavailable}
        # Who has most, or nearly as many, gets no more.
        for address in (stranger(0), stranger(1), stranger(2)):
            with pytest.raises(CollateralUnavailable, match="too many"):
                await service.fetch(invented(9_999), address)
        assert now() - began < 1
        await asyncio.gather(*guests, return_exceptions=True)
        await asyncio.sleep(40)
        assert [len(await service.leaves(report_of(each))) for each in scene.chips] == [1, 1]
        assert service._fetches._begun == {}
        assert service._fetches._tasks == set()
        await strangers.go()
