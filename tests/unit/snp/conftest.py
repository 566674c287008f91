from collections.abc import Mapping
from datetime import timedelta

import pytest

from kms.simulator.chip import SimulatedChip, simulated_chip_id
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.product import Product
from tests.world import NOW


@pytest.fixture(params=list(Product), ids=str)
def chip(
    request: pytest.FixtureRequest, simulated_hierarchies: Mapping[Product, AmdHierarchy]
) -> SimulatedChip:
    hierarchy = simulated_hierarchies[request.param]
    chip_id = simulated_chip_id(hierarchy.product, b"chip 1")
    return SimulatedChip.typical(hierarchy, chip_id=chip_id, now=NOW - timedelta(days=1))


@pytest.fixture
def milan(simulated_hierarchies: Mapping[Product, AmdHierarchy]) -> SimulatedChip:
    hierarchy = simulated_hierarchies[Product.MILAN]
    chip_id = simulated_chip_id(Product.MILAN, b"chip 1")
    return SimulatedChip.typical(hierarchy, chip_id=chip_id, now=NOW - timedelta(days=1))
