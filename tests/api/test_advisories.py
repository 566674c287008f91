"""``forbid_advisories``, as a guest meets it: the figures are those of the data that is shipped."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kms.simulator.chip import SimulatedChip
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.product import Product
from kms.snp.report import FirmwareVersion
from kms.snp.tcb import TcbVersion
from tests.world import World, open_world

Hierarchies = Mapping[Product, AmdHierarchy]
MakeChip = Callable[[SimulatedChip], SimulatedChip]
ENTRYSIGN, BADRAM, RMPOCALYPSE = "AMD-SB-3019", "AMD-SB-3015", "AMD-SB-3020"
NO_FIGURE = "AMD-SB-3034"
ALIAS_CHECK_COMPLETE = 1 << 5
FIXED, BEFORE, FAR_AHEAD = (FirmwareVersion(major=1, minor=55, build=build) for build in (22, 21, 255))


def changed(**changes: object) -> MakeChip:
    return lambda chip: replace(chip, **changes)  # type: ignore[arg-type]


def with_levels(*members: str, **levels: int) -> MakeChip:
    """Change components of the TCB versions called `members`."""

    def make(chip: SimulatedChip) -> SimulatedChip:
        versions: dict[str, Any] = {name: replace(getattr(chip, name), **levels) for name in members}
        return replace(chip, **versions)

    return make


def with_firmware(current: FirmwareVersion, committed: FirmwareVersion) -> MakeChip:
    return changed(current_firmware=current, committed_firmware=committed)


ALL = ("current_tcb", "reported_tcb", "committed_tcb")
DENIED = "advisory-forbidden"
CASES: dict[str, tuple[Product, MakeChip, str, str | None]] = {
    "microcode is one short": (Product.MILAN, with_levels(*ALL, microcode=218), ENTRYSIGN, DENIED),
    "SNP firmware is one short": (Product.MILAN, with_levels(*ALL, snp=23), ENTRYSIGN, DENIED),
    "as good as the figures": (Product.MILAN, with_levels(*ALL, microcode=219, snp=24), ENTRYSIGN, None),
    "the fix is not committed": (Product.MILAN, with_levels("committed_tcb", snp=23), ENTRYSIGN, DENIED),
    "the fix is loaded, not reported": (
        Product.MILAN,
        with_levels("reported_tcb", "committed_tcb", snp=23),
        ENTRYSIGN,
        DENIED,
    ),
    "firmware is one build short": (
        Product.MILAN,
        with_firmware(BEFORE, BEFORE),
        BADRAM,
        DENIED,
    ),
    "firmware is the fixed build": (
        Product.MILAN,
        with_firmware(FIXED, FIXED),
        BADRAM,
        None,
    ),
    "fixed firmware is not committed": (
        Product.MILAN,
        with_firmware(FAR_AHEAD, BEFORE),
        BADRAM,
        DENIED,
    ),
    "memory was not checked for aliases": (
        Product.MILAN,
        lambda chip: replace(chip, platform_info=chip.platform_info & ~ALIAS_CHECK_COMPLETE),
        BADRAM,
        DENIED,
    ),
    "no mitigation vector in the report": (Product.MILAN, changed(), RMPOCALYPSE, DENIED),
    "not that mitigation": (
        Product.MILAN,
        changed(report_version=5, mitigations=0xFD),
        RMPOCALYPSE,
        DENIED,
    ),
    "that mitigation": (Product.MILAN, changed(report_version=5, mitigations=1 << 1), RMPOCALYPSE, None),
    "no figure": (Product.MILAN, changed(), NO_FIGURE, "advisory-not-attestable"),
    "no figure, newest firmware": (
        Product.MILAN,
        with_firmware(FAR_AHEAD, FAR_AHEAD),
        NO_FIGURE,
        "advisory-not-attestable",
    ),
    "unknown": (Product.MILAN, changed(), "AMD-SB-9999", "advisory-not-attestable"),
}


@pytest.mark.parametrize("case", CASES)
async def test_a_forbidden_advisory(tmp_path: Path, simulated_hierarchies: Hierarchies, case: str) -> None:
    product, make_chip, forbidden, reason = CASES[case]
    async with open_world(tmp_path, simulated_hierarchies[product], make_chip=make_chip) as world:
        anything = dict.fromkeys(world.chip.reported_tcb.components(), 0)
        tcb = {"products": {product.value: anything}, "provisional_firmware": "allow"}
        await world.apply_changed(tcb=tcb)
        assert (await world.ask()).status == 200
        await world.apply_changed(tcb=tcb, app={"forbid_advisories": [forbidden]})
        answer = await world.ask()
        if reason is None:
            assert answer.status == 200, answer.body
            return
        answer.check_refused(403, "policy-denied", reason)
        (failed,) = [check for check in (await world.records())[-1].entry["checks"] if not check["passed"]]
        assert forbidden in failed["detail"]


async def recorded(world: World) -> tuple[str, list[str]]:
    """Let the honest guest ask; give what its BootInfo says in the audit record."""
    assert (await world.ask()).status == 200
    boot_info = (await world.records())[-1].entry["boot_info"]
    return boot_info["tcb_status"], boot_info["advisories"]


async def test_boot_info_names_what_is_open(tmp_path: Path, simulated_hierarchies: Hierarchies) -> None:
    """Equal TCB versions, which policy accepts, are not up to date for it (lesson 7)."""
    milan = simulated_hierarchies[Product.MILAN]
    async with open_world(tmp_path, milan, make_chip=with_levels(*ALL, snp=23)) as world:
        chip = world.chip
        assert chip.current_tcb == chip.reported_tcb == chip.committed_tcb
        status, ids = await recorded(world)
        assert status == "out-of-date"
        assert ENTRYSIGN in ids
        assert BADRAM not in ids
        assert NO_FIGURE not in ids


async def test_boot_info_of_a_platform_that_shows_every_fix(
    tmp_path: Path, simulated_hierarchies: Hierarchies
) -> None:
    def newest(chip: SimulatedChip) -> SimulatedChip:
        tcb = TcbVersion(bootloader=255, tee=255, snp=255, microcode=255)
        return replace(
            chip,
            current_tcb=tcb,
            reported_tcb=tcb,
            committed_tcb=tcb,
            current_firmware=FAR_AHEAD,
            committed_firmware=FAR_AHEAD,
            report_version=5,
            platform_info=chip.platform_info | ALIAS_CHECK_COMPLETE,
            mitigations=0xFF,
        )

    async with open_world(tmp_path, simulated_hierarchies[Product.MILAN], make_chip=newest) as world:
        assert await recorded(world) == ("up-to-date", [])
