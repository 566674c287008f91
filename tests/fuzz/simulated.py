"""Valid collateral to mutate: certificates and a revocation list of simulated platforms."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache

from kms.simulator.chip import SimulatedChip, simulated_chip_id
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.product import Product

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Collateral:
    """DER of a VCEK, a VLEK, the ASK, the ASVK and the ARK, a list by that ARK, and a report."""

    certificates: Mapping[str, bytes]
    revocation_list: bytes
    report: bytes


@cache
def collateral(product: Product) -> Collateral:
    """Make it once; the keys differ from run to run, the form does not."""
    hierarchy = AmdHierarchy.generate(product, now=NOW - timedelta(days=30), rsa_bits=2048)
    chip = SimulatedChip.typical(hierarchy, chip_id=simulated_chip_id(product, b"fuzz"), now=NOW)
    vcek, ask, ark = chip.certificates()
    vlek, asvk, _ = replace(chip, csp_id="Example Cloud").certificates()
    return Collateral(
        certificates={"vcek": vcek, "vlek": vlek, "ask": ask, "asvk": asvk, "ark": ark},
        revocation_list=hierarchy.revocation_list(
            (0x7777, 0x8888), this_update=NOW, next_update=NOW + timedelta(days=30)
        ),
        report=chip.launch(b"m" * 48).report(b"d" * 64),
    )
