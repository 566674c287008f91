"""Guests ask for keys while the database is gone, hangs, is full or read-only, or the clock is wrong.

A guest gets its key, or a 503 that says why; `/readyz` says why, too. Afterwards the same server process
serves on, and every key that a guest holds was recorded exactly once.
"""

import asyncio
import os
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.product import Product
from tests.conformance.own_server import Server, audit_release_ids
from tests.e2e.lean_guest import Held, LeanGuest
from tests.e2e.rack import Rack
from tests.servers.postgresql import PostgresServer

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket]

GUESTS = 8
KEYS = 20  # that guests get before something happens, and after it
WITHIN = 60.0
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


@dataclass
class Room:
    """A server, its guests, and what they hold."""

    server: Server
    held: Held

    def readiness(self) -> tuple[int, set[str]]:
        trust = ssl.create_default_context(cafile=str(self.server.ca))
        with httpx2.Client(verify=trust, trust_env=False) as client:
            answer = client.get(f"{self.server.url}/readyz", timeout=30)
        return answer.status_code, set(answer.json().get("reasons", ()))

    async def until(self, what: Callable[[], bool]) -> None:
        end = time.monotonic() + WITHIN
        while not await asyncio.to_thread(what):
            assert time.monotonic() < end, (self.held.statuses, self.held.codes, self.readiness())
            await asyncio.sleep(0.1)

    async def serves(self) -> None:
        """Wait until guests get keys (again), and the server says that it is ready."""
        count = len(self.held.keys) + KEYS
        await self.until(lambda: len(self.held.keys) >= count)
        await self.until(lambda: self.readiness() == (200, set()))

    async def refuses(self, *reasons: str) -> None:
        """Wait until guests are told one of these reasons, and `/readyz` names one of them, too."""
        told = {f"503 ledger-unavailable {[reason]}" for reason in reasons}
        await self.until(lambda: not told.isdisjoint(self.held.codes))
        await self.until(lambda: not self.readiness()[1].isdisjoint(reasons))


@asynccontextmanager
async def guests_of(server: Server, rack: Rack) -> AsyncIterator[Room]:
    """Let guests ask for keys; at the end nobody was answered anything but 200, 201, 429 or 503."""
    room, over = Room(server, Held()), asyncio.Event()
    guests = [LeanGuest(rack.guest(n), [server.port], server.ca, room.held) for n in range(GUESTS)]
    asking = [asyncio.create_task(guest.run(lambda: not over.is_set())) for guest in guests]
    try:
        await room.serves()
        yield room
        await room.serves()
    finally:
        over.set()
        await asyncio.gather(*asking)
        for guest in guests:
            await guest.close()
    print(f"{len(room.held.keys)} keys, {dict(room.held.codes)}, {room.held.lost} connections lost")
    assert set(room.held.statuses) <= {200, 201, 429, 503}
    assert all("ledger-unavailable" in each for each in room.held.codes), room.held.codes
    assert len(set(room.held.keys.values())) == 1  # it is the app's disk key
    assert server.alive()
    assert "Traceback" not in server.log_text()


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
        async with guests_of(server, rack) as room:
            for wrong in ("3600", "-3600"):
                room.held.codes.clear()
                offset.write_text(wrong)
                await room.refuses("clock-differs")
                offset.write_text("0")
                await room.serves()
    assert set(room.held.keys) <= recorded(database)


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
        pytest.skip("a disk that is full is only tried as root: it has to be mounted")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m,mode=0700", "none", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)
