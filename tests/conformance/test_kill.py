"""No key leaves before its audit record is durable, whenever the power fails."""

import queue
import random
import threading
import time
from pathlib import Path

import httpx2
import pytest

from tests.conformance.conftest import Settings
from tests.conformance.own_client import Client, open_release
from tests.conformance.own_encoding import unb64
from tests.conformance.own_fleet import Fleet
from tests.conformance.own_server import Server, audit_release_ids

RELEASES, GUESTS, KILLS = 200, 4, 5


class Guests:
    """Guests that keep asking one server after the other, and remember what they were given."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.held: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
        self.errors: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
        self.done = threading.Event()
        self._server: Server | None = None
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(GUESTS)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def serve_from(self, server: Server | None) -> None:
        self._server = server

    def finish(self) -> None:
        self.done.set()
        for thread in self._threads:
            thread.join(30)

    def _ask(self) -> None:
        try:
            while not self.done.is_set():
                server = self._server
                if server is None:
                    time.sleep(0.005)
                    continue
                self._ask_until_it_dies(server)
        except BaseException as error:  # noqa: BLE001 - handed to the test, which raises it
            self.errors.put(error)

    def _ask_until_it_dies(self, server: Server) -> None:
        client: Client | None = None
        try:
            client = server.client()
            while not self.done.is_set() and self._server is server:
                attempt = client.ask(self.fleet.guest())
                payload = open_release(attempt, client.identity)
                self.held.put((payload["release_id"], unb64(payload["keys"][0]["value"])))
        except (httpx2.TransportError, OSError):
            time.sleep(0.01)
        finally:
            if client is not None:
                client.close()


@pytest.mark.slow
def test_every_key_that_left_is_in_the_record(fleet: Fleet, settings: Settings, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    rng = random.Random()
    guests = Guests(fleet)
    guests.start()
    try:
        for _ in range(KILLS):
            server = Server(data_dir, settings)
            try:
                server.wait_until_ready()
                before = guests.held.qsize()
                guests.serve_from(server)
                # Some after the first answer, some while many are under way.
                deadline = time.monotonic() + 30
                while guests.held.qsize() < before + RELEASES // KILLS and time.monotonic() < deadline:
                    time.sleep(0.002)
                time.sleep(rng.uniform(0, 0.05))
            finally:
                guests.serve_from(None)
                server.kill()
            assert guests.errors.empty(), guests.errors.get()
    finally:
        guests.finish()

    assert guests.errors.empty(), guests.errors.get()
    held = [guests.held.get() for _ in range(guests.held.qsize())]
    assert len(held) >= RELEASES
    ids = {release_id for release_id, _ in held}
    assert len(ids) == len(held)

    with Server(data_dir, settings) as server:
        client = server.client()
        try:
            key = client.disk_key(fleet.guest())
        finally:
            client.close()
    assert {value for _, value in held} == {key}, "the same disk key before and after"
    missing = ids - audit_release_ids(data_dir)
    assert not missing, f"{len(missing)} keys left without a record"
    assert "Traceback" not in server.log_text()
