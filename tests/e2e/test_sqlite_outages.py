"""Guests ask for keys while the disk of SQLite's file is full."""

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.product import Product
from tests.conformance.own_server import Server, audit_release_ids
from tests.e2e.outages import guests_of
from tests.e2e.rack import Rack

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket]


@pytest.fixture(scope="module")
def rack(
    tmp_path_factory: pytest.TempPathFactory, simulated_hierarchies: Mapping[Product, AmdHierarchy]
) -> Rack:
    return Rack(tmp_path_factory.mktemp("rack"), simulated_hierarchies[Product.MILAN], chips=4)


async def test_the_disk_of_sqlite_is_full_for_a_while(rack: Rack, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    with small_disk(data), Server(data, rack.settings) as server:
        async with guests_of(server, rack) as room:
            filling = data / "filling"
            fill(filling)
            await room.refuses("database-full")
            filling.unlink()
        assert set(room.held.keys) <= audit_release_ids(data)


def fill(file: Path) -> None:
    """Leave no byte."""
    with file.open("wb", buffering=0) as filling:
        for size in (1 << 20, 1 << 12):
            try:
                while True:
                    filling.write(bytes(size))
            except OSError:
                continue


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount a file system of some megabytes."""
    if os.getuid() != 0:
        pytest.skip("it needs root, to mount a disk that can be full")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m,mode=0700", "none", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)
