from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.product import Product
from tests.world import World, open_world


@pytest.fixture
async def world(
    tmp_path: Path, simulated_hierarchies: Mapping[Product, AmdHierarchy]
) -> AsyncIterator[World]:
    async with open_world(tmp_path, simulated_hierarchies[Product.MILAN]) as world:
        yield world
