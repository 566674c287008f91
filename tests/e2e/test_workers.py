"""Several worker processes, their supervisor, and how it all ends."""

import json
import os
import signal
import socket
import sqlite3
import ssl
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import httpx2
import pytest

from kms.guest.client import KeyClient
from kms.keys.released import ReleasedKey
from kms.keys.sealing import Suite
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.product import Product
from tests.conformance.own_server import Server, refuse_to_start
from tests.e2e.rack import KEYS, Guest, Rack
from tests.e2e.wire import Notebook, noted
from tests.servers.vault import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket]


@pytest.fixture(scope="module")
def rack(
    tmp_path_factory: pytest.TempPathFactory, simulated_hierarchies: Mapping[Product, AmdHierarchy]
) -> Rack:
    return Rack(tmp_path_factory.mktemp("rack"), simulated_hierarchies[Product.MILAN], chips=1)


@pytest.fixture(params=[1, 2], ids=["one process", "two workers"])
def server(rack: Rack, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    yield from started(rack, tmp_path, workers=request.param)


@pytest.fixture
def pair(rack: Rack, tmp_path: Path) -> Iterator[Server]:
    yield from started(rack, tmp_path, workers=2)


def started(rack: Rack, folder: Path, *, workers: int, **settings: str) -> Iterator[Server]:
    server = Server(folder / "data", {**rack.settings, "KMS_WORKERS": str(workers), **settings})
    try:
        server.wait_until_ready()
        if workers > 1:
            wait_until(lambda: len(events(server, "worker-ready")) == workers)
        yield server
    finally:
        left = [server.process.pid, *workers_of(server)]
        server.kill()
        for pid in left[1:]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert "Traceback" not in server.log_text()


def workers_of(server: Server) -> list[int]:
    """The worker processes that there are now."""
    path = Path(f"/proc/{server.process.pid}/task")
    with suppress(FileNotFoundError):
        children = [pid for task in path.iterdir() for pid in (task / "children").read_text().split()]
        return sorted(map(int, children))
    return []


def runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def listens(server: Server) -> bool:
    try:
        socket.create_connection(("127.0.0.1", server.port), 5).close()
    except ConnectionError:
        return False
    return True


def events(server: Server, name: str) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in server.log_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == name]


def readiness(server: Server) -> tuple[int, str, str | None]:
    """Status, body, and the header that says whether the connection stays."""
    trust = ssl.create_default_context(cafile=str(server.ca))
    answer = httpx2.get(server.url + "/readyz", verify=trust, trust_env=False, timeout=10)
    return answer.status_code, answer.text, answer.headers.get("connection")


def stops(server: Server) -> bool:
    """Whether whoever answers says that it stops, and keeps no connection."""
    answers = [readiness(server) for _ in range(5)]
    return all(
        (status, connection) == (503, "close") and '"stopping"' in body
        for status, body, connection in answers
    )


def fetch(
    server: Server, guest: Guest, *, deadline: float = 30.0, notebook: Notebook | None = None
) -> tuple[ReleasedKey, ...]:
    client = KeyClient(
        server.url,
        ca_file=server.ca,
        identity=None,
        source=guest,
        suite=Suite.X25519_SEALEDBOX,
        deadline=deadline,
        transport=notebook,
    )
    return client.fetch(KEYS, app_document=guest.document).keys


def wait_until_asked(notebook: Notebook, guests: int) -> None:
    """Wait until so many guests have their challenges, and sent what they ask with them."""
    wait_until(lambda: [each.path for each in notebook.answers].count("/v1/challenges") == guests)
    time.sleep(0.5)


class TestWorkers:
    def test_they_share_the_socket_and_one_root(self, rack: Rack, pair: Server) -> None:
        with ThreadPoolExecutor(8) as pool:
            keys = set(pool.map(lambda _: fetch(pair, rack.guest(1)), range(80)))
        assert len(keys) == 1
        assert len(events(pair, "listening")) == 1
        assert len(events(pair, "policy-folder-applied")) == 1
        released = {line["pid"] for line in events(pair, "released")}
        assert released == set(workers_of(pair))
        for pid in workers_of(pair):
            status = Path(f"/proc/{pid}/status").read_text()
            resident = int(status.partition("VmRSS:")[2].split()[0]) >> 10
            assert resident < 150

    def test_one_that_dies_is_started_again(self, rack: Rack, pair: Server) -> None:
        before = workers_of(pair)
        os.kill(before[0], signal.SIGKILL)
        wait_until(lambda: len(events(pair, "worker-ready")) == 3)
        assert len(workers_of(pair)) == 2
        assert before[1] in workers_of(pair)
        (died,) = events(pair, "worker-died")
        assert (died["worker"], died["status"]) == (before[0], -signal.SIGKILL)
        for _ in range(5):
            fetch(pair, rack.guest(1))

    def test_one_that_is_told_to_stop_ends_well_and_is_replaced(self, pair: Server) -> None:
        before = workers_of(pair)
        os.kill(before[1], signal.SIGTERM)
        wait_until(lambda: len(events(pair, "worker-ready")) == 3)
        assert before[1] not in workers_of(pair)
        (died,) = events(pair, "worker-died")
        assert died["status"] == 0
        assert pair.alive()

    def test_none_is_left_when_the_supervisor_is_killed(self, pair: Server) -> None:
        workers = workers_of(pair)
        pair.kill()
        wait_until(lambda: not any(map(runs, workers)), within=10)
        with pytest.raises(ConnectionError):
            socket.create_connection(("127.0.0.1", pair.port), 5)

    def test_what_is_broken_later_ends_nobody(self, rack: Rack, pair: Server) -> None:
        """A policy folder that is being edited keeps a worker from starting; the other serves on."""
        extra = rack.policies / "broken.yaml"
        extra.write_text("kind: [", encoding="utf-8")
        try:
            before = workers_of(pair)
            os.kill(before[0], signal.SIGKILL)
            wait_until(lambda: len(events(pair, "worker-died")) >= 2, within=20)
            fetch(pair, rack.guest(1))
        finally:
            extra.unlink()
        wait_until(lambda: len(events(pair, "worker-ready")) == 3)

    def test_what_is_broken_at_the_start_is_said_once(self, rack: Rack, tmp_path: Path) -> None:
        settings = {**rack.settings, "KMS_WORKERS": "3", "KMS_POLICY_DIR": "nowhere"}
        text = refuse_to_start(tmp_path / "data", settings)
        assert text.count("nowhere") == 1
        assert "worker-died" not in text

    def test_an_address_that_is_taken_is_said(self, rack: Rack, tmp_path: Path) -> None:
        with closing(socket.create_server(("127.0.0.1", 0))) as taken:
            listen = f"127.0.0.1:{taken.getsockname()[1]}"
            settings = {**rack.settings, "KMS_WORKERS": "2", "KMS_LISTEN": listen}
            assert f"cannot listen on {listen}" in refuse_to_start(tmp_path / "data", settings)


class TestEnd:
    def test_a_release_that_is_being_recorded_reaches_its_guest(self, rack: Rack, server: Server) -> None:
        """The record is held up, the server is told to stop, the record goes on: the keys arrive."""
        workers = workers_of(server)
        with noted(server.ca) as notebook, ThreadPoolExecutor(8) as pool, write_lock(server) as lock:
            guests = [rack.guest(number) for number in range(8)]
            fetching = [pool.submit(fetch, server, guest, notebook=notebook) for guest in guests]
            wait_until_asked(notebook, 8)
            assert not any(each.done() for each in fetching)
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: not listens(server))
            assert server.alive()
            assert all(map(runs, workers))
            lock.rollback()
            assert all(len(each.result(20)) == len(KEYS) for each in fetching)
        assert server.process.wait(20) == 0
        assert not any(map(runs, workers))
        assert [len(events(server, name)) for name in ("stopping", "stopped")] == [1, 1]
        assert len(events(server, "released")) == 8

    @pytest.mark.parametrize("times", [2, 3])
    def test_who_insists_is_not_kept_waiting(self, rack: Rack, server: Server, times: int) -> None:
        workers = workers_of(server)
        with noted(server.ca) as notebook, ThreadPoolExecutor(1) as pool, write_lock(server) as lock:
            fetching = pool.submit(fetch, server, rack.guest(1), deadline=4.0, notebook=notebook)
            wait_until_asked(notebook, 1)
            for _ in range(times):
                server.process.send_signal(signal.SIGTERM)
                time.sleep(0.3)
            if times == 2:
                lock.rollback()
            assert server.process.wait(5) != 0
            assert not any(map(runs, workers))
            fetching.cancel()
            with suppress(Exception):
                fetching.result(40)

    def test_balancers_are_told_before_the_door_closes(self, rack: Rack, tmp_path: Path) -> None:
        for server in started(rack, tmp_path, workers=2, KMS_DRAIN="6"):
            server.process.send_signal(signal.SIGTERM)
            wait_until(partial(stops, server), within=5)
            fetch(server, rack.guest(1))
            assert server.process.wait(20) == 0


class write_lock:  # noqa: N801 -- a context manager
    """Holds the write lock of a server's database."""

    def __init__(self, server: Server) -> None:
        self._path = server.data_dir / "kms.sqlite3"

    def __enter__(self) -> sqlite3.Connection:
        self._connection = sqlite3.connect(self._path, isolation_level=None)
        self._connection.execute("BEGIN IMMEDIATE")
        return self._connection

    def __exit__(self, *_: object) -> None:
        self._connection.rollback()
        self._connection.close()
