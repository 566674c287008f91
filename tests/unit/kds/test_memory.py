"""What is stored and of no use any more is as if it were not there."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

import pytest

from kms.kds.memory import Memory
from kms.kds.stored import KnownDigests
from kms.ports import Role, StoredCertificate
from kms.simulator.chip import SimulatedChip
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.endorsement import load_der
from kms.snp.flags import Signer
from kms.snp.kds_paths import Line
from kms.snp.product import Product
from tests.unit.kds.scene import Scene, report_of, wanted_of
from tests.unit.kds.virtual_time import in_virtual_time

Hierarchies = Mapping[Product, AmdHierarchy]


def stored(chip: SimulatedChip, *, under: SimulatedChip) -> StoredCertificate:
    """Give a chip's certificate as a row of the store has it, filed under some chip."""
    return StoredCertificate(
        certificate=load_der(chip.certificates()[0]),
        line=Line(Signer.VCEK, chip.hierarchy.product),
        role=Role.LEAF,
        source="kds",
        chip_id=under.chip_id,
        tcb=under.reported_tcb,
    )


@in_virtual_time
async def test_an_expired_certificate_is_sought_again(simulated_hierarchies: Hierarchies) -> None:
    """Else a guest without certificates would be refused for good although AMD has a fresh one."""
    scene = Scene(simulated_hierarchies)
    chip = scene.chips[0]
    old = replace(chip, now=scene.clock() - timedelta(days=8 * 365))
    await scene.store.keep(stored(old, under=chip))
    async with scene.service("https://kds") as service:
        assert await service.leaves(report_of(chip)) == ()
        await service.fetch(wanted_of(chip), "192.0.2.1")
        assert await service.leaves(report_of(chip)) == (load_der(chip.certificates()[0]),)


@in_virtual_time
async def test_another_chips_certificate_under_a_chips_id_is_nothing(
    simulated_hierarchies: Hierarchies,
) -> None:
    """A row that somebody edited."""
    scene = Scene(simulated_hierarchies, chips=2)
    chip, other = scene.chips
    await scene.store.keep(stored(other, under=chip))
    async with scene.service("https://kds") as service:
        assert await service.leaves(report_of(chip)) == ()
        await service.fetch(wanted_of(chip), "192.0.2.1")
        assert await service.leaves(report_of(chip)) == (load_der(chip.certificates()[0]),)


@pytest.mark.parametrize("days", [0, 6 * 365, 8 * 365])
@in_virtual_time
async def test_what_is_remembered_expires_too(simulated_hierarchies: Hierarchies, days: int) -> None:
    scene = Scene(simulated_hierarchies)
    chip, later = scene.chips[0], timedelta(days=0)
    memory = Memory(scene.store, scene.roots, KnownDigests(), lambda: scene.clock() + later)
    memory.add(stored(chip, under=chip))
    later = timedelta(days=days)
    assert memory.remembers(wanted_of(chip)) is (days < 7 * 365)
