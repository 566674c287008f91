"""What guests bring is kept for others: soon, once, and without anybody waiting."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from kms.kds.service import CollateralService
from kms.ports import Role, StoredCertificate
from kms.simulator.chip import SimulatedChip
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.chain import Chain, build_chain
from kms.snp.endorsement import load_der
from kms.snp.flags import Signer
from kms.snp.kds_paths import Line
from kms.snp.product import Product
from tests.unit.kds.scene import MILAN, START, URL, Scene, report_of, wanted_of
from tests.unit.kds.virtual_time import in_virtual_time, now

Hierarchies = Mapping[Product, AmdHierarchy]
VLEKS = Line(Signer.VLEK, Product.MILAN)


def chain_of(scene: Scene, chip: SimulatedChip) -> Chain:
    leaf, *authorities = map(load_der, chip.certificates())
    return build_chain(leaf, authorities, scene.roots)


def roles(scene: Scene) -> list[tuple[Role, Line, str]]:
    return sorted((each.role, each.line, each.source) for each in scene.store.certificates.values())


@in_virtual_time
async def test_a_guests_certificates_serve_the_next_guest_of_that_chip(
    simulated_hierarchies: Hierarchies,
) -> None:
    scene = Scene(simulated_hierarchies)
    chip = scene.chips[0]
    async with scene.service(URL, start=True) as service:
        service.keep(chain_of(scene, chip))
        # At once here, soon in the store.
        assert len(await service.leaves(report_of(chip))) == 1
        assert len(await service.authorities()) == 2
        await asyncio.sleep(0.1)
        assert len(scene.store.certificates) == 3
        [leaf] = scene.store.leaves()
        assert (leaf.chip_id, leaf.tcb, leaf.line) == (chip.chip_id, chip.reported_tcb, MILAN)
        for _ in range(100):
            service.keep(chain_of(scene, chip))
        await asyncio.sleep(0.1)
        assert scene.store.writes == 1
    async with scene.service(URL) as another:
        await another.fetch(wanted_of(chip), "192.0.2.1")
        assert len(await another.leaves(report_of(chip))) == 1
    assert scene.kds.asked == []


@in_virtual_time
async def test_a_vlek_is_not_kept_and_its_authorities_are(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies)
    chip = replace(scene.chips[0], csp_id="CN=cc-test")
    async with scene.service(start=True) as service:
        service.keep(chain_of(scene, chip))
        await asyncio.sleep(0.1)
        assert await service.leaves(report_of(chip)) == ()
    assert {(role, line) for role, line, _ in roles(scene)} == {
        (Role.ARK, MILAN),
        (Role.AUTHORITY, VLEKS),
    }


@in_virtual_time
async def test_an_imported_vlek_is_given_for_its_tcb(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies)
    chip = replace(scene.chips[0], csp_id="CN=cc-test", mask_chip_id=True)
    async with scene.service() as service:
        leaf = load_der(chip.certificates()[0])
        await scene.store.keep(
            StoredCertificate(
                certificate=leaf,
                line=VLEKS,
                role=Role.LEAF,
                source="import",
                csp_id="CN=cc-test",
                tcb=chip.reported_tcb,
            )
        )
        assert await service.leaves(report_of(chip)) == (leaf,)
        assert await service.leaves(report_of(replace(chip, report_version=2))) == (leaf,)
        older = replace(chip, reported_tcb=replace(chip.reported_tcb, snp=1))
        assert await service.leaves(report_of(older)) == ()


@in_virtual_time
async def test_an_incomplete_chain_is_not_kept(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies)
    chain = chain_of(scene, scene.chips[0])
    async with scene.service(start=True) as service:
        for broken in (
            replace(chain, product=None),
            replace(chain, ark=None),
            replace(chain, authority=None),
        ):
            service.keep(broken)
        await asyncio.sleep(0.1)
    assert scene.store.certificates == {}


@in_virtual_time
async def test_what_waits_is_stored_at_the_end_without_a_writer_too(
    simulated_hierarchies: Hierarchies,
) -> None:
    scene = Scene(simulated_hierarchies)
    async with scene.service() as service:
        service.keep(chain_of(scene, scene.chips[0]))
        await asyncio.sleep(1)
        assert scene.store.certificates == {}
    assert len(scene.store.certificates) == 3


@in_virtual_time
async def test_a_full_queue_drops_counts_and_says_so(
    simulated_hierarchies: Hierarchies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kms.kds.keeping._MOST_WAITING", 4)
    scene = Scene(simulated_hierarchies, chips=6)
    async with scene.service() as service:
        with capture_logs() as logs:
            for chip in scene.chips:
                service.keep(chain_of(scene, chip))
        assert service.status().dropped == 4
        assert [line["event"] for line in logs] == ["collateral-dropped"]
        service.start()
        await asyncio.sleep(0.1)
        for chip in scene.chips:  # the next guests of those chips
            service.keep(chain_of(scene, chip))
            await asyncio.sleep(0.1)
    assert len(scene.store.leaves()) == 6


@in_virtual_time
async def test_what_could_not_be_stored_is_stored_with_the_next_guest(
    simulated_hierarchies: Hierarchies,
) -> None:
    scene = Scene(simulated_hierarchies)
    chain = chain_of(scene, scene.chips[0])
    async with scene.service(start=True) as service:
        await service.authorities()
        scene.store.broken = True
        with capture_logs() as logs:
            service.keep(chain)
            await asyncio.sleep(0.1)
        assert [line["event"] for line in logs] == ["collateral-not-stored"]
        scene.store.broken = False
        service.keep(chain)
        await asyncio.sleep(0.1)
        assert service.alive
    assert len(scene.store.certificates) == 3


@in_virtual_time
async def test_stopping_in_the_middle_of_a_write_loses_nothing(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies, chips=3)
    async with scene.service(start=True) as service:
        for chip in scene.chips:
            service.keep(chain_of(scene, chip))
        await asyncio.sleep(0.0005)
        assert scene.store.certificates == {}
    assert len(scene.store.leaves()) == 3


@in_virtual_time
async def test_the_leaves_remembered_are_bounded(
    simulated_hierarchies: Hierarchies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kms.kds.memory._MOST_LEAVES", 2)
    scene = Scene(simulated_hierarchies, chips=3)
    async with scene.service(start=True) as service:
        for chip in scene.chips:
            service.keep(chain_of(scene, chip))
        await asyncio.sleep(0.1)
        before = scene.store.reads
        await found(service, scene.chips[2])
        await found(service, scene.chips[1])
        assert scene.store.reads == before
        await found(service, scene.chips[0])
        assert scene.store.reads == before + 1
        await found(service, scene.chips[1])
        assert scene.store.reads == before + 1
        await found(service, scene.chips[2])
        assert scene.store.reads == before + 2


@in_virtual_time
async def test_of_a_chip_and_tcb_few_certificates_are_remembered(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies)
    async with scene.service(start=True) as service:
        for days in range(10):
            # The same key, certified anew: whoever runs the chip can have that done as often as they like.
            service.keep(chain_of(scene, replace(scene.chips[0], now=START - timedelta(days=days))))
        leaves = await service.leaves(report_of(scene.chips[0]))
        assert [(START - leaf.not_before).days for leaf in leaves] == [1, 2, 3, 4]


async def found(service: CollateralService, chip: SimulatedChip) -> None:
    assert len(await service.leaves(report_of(chip))) == 1


@in_virtual_time
async def test_stopping_does_not_wait_for_a_database_that_hangs(
    simulated_hierarchies: Hierarchies, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(simulated_hierarchies)

    async def hang() -> None:
        await asyncio.sleep(3_600)

    async with scene.service() as service:
        service.keep(chain_of(scene, scene.chips[0]))
        monkeypatch.setattr(scene.store, "_work", hang)
        began = now()
        with capture_logs() as logs:
            await service.stop()
        assert now() - began < 6
        assert [line["event"] for line in logs] == ["collateral-not-stored"]
