import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kms.simulator.chip import SimulatedChip, simulated_chip_id
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.product import Product

NOW = datetime(2026, 11, 21, 12, 0, 0, 999999, tzinfo=UTC)


@pytest.fixture(scope="session")
def hierarchies() -> Mapping[Product, AmdHierarchy]:
    # 2048 bits: nothing but the time to make them differs.
    return {product: AmdHierarchy.generate(product, now=NOW, rsa_bits=2048) for product in Product}


@pytest.fixture(params=list(Product), ids=str)
def hierarchy(request: pytest.FixtureRequest, hierarchies: Mapping[Product, AmdHierarchy]) -> AmdHierarchy:
    product: Product = request.param
    return hierarchies[product]


@pytest.fixture
def chip(hierarchy: AmdHierarchy) -> SimulatedChip:
    chip_id = simulated_chip_id(hierarchy.product, b"chip 1")
    return SimulatedChip.typical(hierarchy, chip_id=chip_id, now=NOW)


@pytest.fixture
def now() -> datetime:
    return NOW


@pytest.fixture(scope="session")
def real_evidence() -> Path:
    root = Path(__file__).parents[3]
    folder = Path(os.environ.get("KMS_REAL_EVIDENCE", root.parent / "shared")) / "evidence"
    if not folder.is_dir():
        pytest.skip("no hardware evidence beside the project (KMS_REAL_EVIDENCE)")
    return folder
