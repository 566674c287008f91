import os
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path

import pytest

from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.product import Product
from tests.world import NOW

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def simulated_hierarchies() -> Mapping[Product, AmdHierarchy]:
    """A simulated AMD for each product. 2048 bits: nothing but the time to make them differs."""
    made = NOW - timedelta(days=30)
    return {product: AmdHierarchy.generate(product, now=made, rsa_bits=2048) for product in Product}


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with hardware evidence and measurement fixtures beside the project."""
    folder = Path(os.environ.get("KMS_REAL_EVIDENCE", ROOT.parent / "shared"))
    if not (folder / "evidence").is_dir():
        pytest.skip("no hardware evidence beside the project (KMS_REAL_EVIDENCE)")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _this_process_stays_as_it_is() -> Iterator[None]:
    """Commands that tests run in this process must not close it to debuggers, nor to core files, for good.

    That they do so is tried in processes of their own (test_hardening.py, e2e/test_canaries.py).
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kms.hardening.keep_memory_private", lambda: None)
        yield
