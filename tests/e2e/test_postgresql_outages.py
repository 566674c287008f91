"""Guests ask for keys while PostgreSQL is gone, hangs or is read-only, or the clock is wrong."""

import asyncio
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.product import Product
from tests.conformance.own_server import Server
from tests.e2e.outages import guests_of
from tests.e2e.rack import Rack
from tests.servers.postgresql import PostgresServer

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket]

# Found by the server process before anything else: its clock goes wrong by so many seconds as a file says.
WRONG_CLOCK = """
from pathlib import Path
from kms.wiring import stores

def wrong():
    from datetime import timedelta
    return datetime.now(UTC) + timedelta(seconds=int(OFFSET.read_text() or 0))

stores.OFFSET = Path(__file__).with_name("offset")
stores.utc_now.__code__ = wrong.__code__
"""


@pytest.fixture(scope="module")
def rack(
    tmp_path_factory: pytest.TempPathFactory, simulated_hierarchies: Mapping[Product, AmdHierarchy]
) -> Rack:
    return Rack(tmp_path_factory.mktemp("rack"), simulated_hierarchies[Product.MILAN], chips=4)


@pytest.fixture
def database() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


def recorded(database: PostgresServer) -> set[str]:
    """Give the releases that were recorded: an id is there once, by a constraint of its table."""
    query = "SELECT id FROM decisions JOIN entries USING (id) WHERE outcome = 'released'"
    return set(database.sql(query).split())


@pytest.mark.parametrize("seconds", [4.0, pytest.param(30.0, marks=pytest.mark.nightly)])
async def test_postgresql_is_gone_and_comes_back(
    database: PostgresServer, rack: Rack, tmp_path: Path, seconds: float
) -> None:
    with Server(tmp_path / "data", {**rack.settings, "KMS_DATABASE_URL": database.url}) as server:
        async with guests_of(server, rack) as room:
            await asyncio.to_thread(database.stop)
            await room.refuses("database-unreachable")
            await asyncio.sleep(seconds)
            await asyncio.to_thread(database.start)
    assert set(room.held.keys) <= recorded(database)


async def test_postgresql_is_restarted_crashes_and_hangs(
    database: PostgresServer, rack: Rack, tmp_path: Path
) -> None:
    with Server(tmp_path / "data", {**rack.settings, "KMS_DATABASE_URL": database.url}) as server:
        async with guests_of(server, rack) as room:
            await asyncio.to_thread(database.restart)
            await room.serves()
            await asyncio.to_thread(database.kill)
            await asyncio.to_thread(database.start)
            await room.serves()
            database.pause()
            try:
                await room.refuses("database-unreachable")
            finally:
                database.resume()
    assert set(room.held.keys) <= recorded(database)


async def test_postgresql_is_read_only_for_a_while(
    database: PostgresServer, rack: Rack, tmp_path: Path
) -> None:
    with Server(tmp_path / "data", {**rack.settings, "KMS_DATABASE_URL": database.url}) as server:
        async with guests_of(server, rack) as room:
            database.configure(default_transaction_read_only="on")
            await room.refuses("database-read-only")
            database.configure(default_transaction_read_only="off")
    assert set(room.held.keys) <= recorded(database)


async def test_the_clock_is_an_hour_off(database: PostgresServer, rack: Rack, tmp_path: Path) -> None:
    """Whose clock is wrong nobody can say: a server does not record what another would put elsewhere."""
    offset = tmp_path / "offset"
    offset.write_text("0")
    (tmp_path / "sitecustomize.py").write_text(WRONG_CLOCK)
    settings = {
        **rack.settings,
        "KMS_DATABASE_URL": database.url,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
    }
    with Server(tmp_path / "data", settings) as server:
        async with guests_of(server, rack, clock=True) as room:
            for wrong in ("3600", "-3600"):
                room.held.codes.clear()
                offset.write_text(wrong)
                await room.refuses("clock-differs")
                offset.write_text("0")
                await room.serves()
    assert set(room.held.keys) <= recorded(database)
