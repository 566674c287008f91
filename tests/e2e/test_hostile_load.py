"""Twenty honest guests fetch their keys again and again while everybody else attacks: all are served.

Slow clients, floods of garbage and of genuine but forbidden evidence come at once, from addresses of their
own, which is all that tells them from guests. Limits are set low, so that each of them is soon met.
"""

import json
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles

import httpx2
import pytest
from typing_extensions import override

from kms.guest.client import KeyClient
from kms.identifiers import AppId
from kms.keys.sealing import Suite
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.product import Product
from tests.conformance.own_server import Server
from tests.e2e.hostile import Target, attacked, transport_from
from tests.e2e.rack import KEYS, Guest, Rack
from tests.e2e.test_workers import events, workers_of
from tests.servers.vault import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket]

HONEST = 20
FORBIDDEN = 12
LONG = 300  # seconds
LONGEST_WAIT = 45.0  # seconds for a whole fetch, all its tries included
ANOTHER_APP = AppId(b"\xee" * 20)
LIMITS = {
    "KMS_WORKERS": "2",
    "KMS_RATE_LIMIT": "40/s burst 200",
    "KMS_RATE_LIMIT_TOTAL": "120/s burst 600",
    "KMS_RATE_LIMIT_CHIP": "10/s burst 30",
    "KMS_MAX_IN_FLIGHT": "32",
}


class Statuses(httpx2.BaseTransport):
    """Counts what is answered on its way."""

    def __init__(self, transport: httpx2.BaseTransport, seen: Counter[int]) -> None:
        self._transport = transport
        self._seen = seen

    @override
    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        response = self._transport.handle_request(request)
        self._seen[response.status_code] += 1
        return response

    @override
    def close(self) -> None:
        self._transport.close()


@dataclass
class Guests:
    """What honest guests live through."""

    target: Target
    seconds: list[float] = field(default_factory=list)
    fetched: Counter[int] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)

    def live(self, number: int, guest: Guest) -> None:
        """Fetch keys again and again, as a guest that does what it is told; raise where it is refused."""
        keys = None
        while not self.target.over:
            transport = transport_from(f"127.0.1.{number + 1}", self.target.ca)
            client = KeyClient(
                self.target.url,
                ca_file=self.target.ca,
                identity=None,
                source=guest,
                suite=Suite.X25519_SEALEDBOX,
                deadline=LONGEST_WAIT,
                transport=Statuses(transport, self.statuses),
            )
            began = time.monotonic()
            found = client.fetch(KEYS, app_document=guest.document).keys
            self.seconds.append(time.monotonic() - began)
            self.fetched[number] += 1
            assert keys in {None, found}
            keys = found
            time.sleep(0.3)


@pytest.mark.parametrize("seconds", [20, pytest.param(LONG, marks=pytest.mark.nightly)])
def test_honest_guests_are_served_among_hostile_ones(
    seconds: int,
    tmp_path: Path,
    simulated_hierarchies: Mapping[Product, AmdHierarchy],
    capsys: pytest.CaptureFixture[str],
) -> None:
    rack = Rack(tmp_path, simulated_hierarchies[Product.MILAN], chips=HONEST + FORBIDDEN)
    honest = [rack.guest(number) for number in range(HONEST)]
    forbidden = [rack.guest(HONEST + number, app_id=ANOTHER_APP) for number in range(FORBIDDEN)]
    with Server(tmp_path / "data", {**rack.settings, **LIMITS}) as server:
        wait_until(lambda: len(events(server, "worker-ready")) == 2)
        target = Target(server.port, server.ca, time.monotonic() + seconds)
        guests = Guests(target)
        with attacked(target, forbidden), ThreadPoolExecutor(HONEST) as pool:
            lives = [pool.submit(guests.live, number, guest) for number, guest in enumerate(honest)]
            for life in lives:
                life.result()
        largest = max(resident(pid) for pid in workers_of(server))
        log = server.log_text()
    with capsys.disabled():
        print(f"\n{figures(guests, seconds)}; refused: {refused(log)}; largest worker {largest} MB")
    assert "Traceback" not in log
    assert "worker-died" not in log
    assert len(guests.fetched) == HONEST
    # Nobody was served at the cost of the others. Of a few fetches in some seconds nobody can say.
    if seconds >= LONG:
        assert min(guests.fetched.values()) >= max(guests.fetched.values()) / 4
    assert max(guests.seconds) < LONGEST_WAIT
    # Each kind of attack met what is there against it.
    assert {"policy-denied", "malformed-request"} <= set(Counter(refused(log)))


def resident(pid: int) -> int:
    """Give the memory of a process in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) >> 10


def refused(log: str) -> dict[str, int]:
    """Count what the log says of those who were refused, by code and reason."""
    counts: Counter[str] = Counter()
    for line in log.splitlines():
        if line.startswith("{"):
            said = json.loads(line)
            if said["event"] in {"refused", "not-served"}:
                counts[said.get("reason") or said["code"]] += 1
    return dict(counts)


def figures(guests: Guests, seconds: int) -> str:
    waits = sorted(guests.seconds)
    p99 = quantiles(waits, n=100)[-1]
    asked = ", ".join(f"{count} x {status}" for status, count in sorted(guests.statuses.items()))
    return (
        f"{seconds} s of hostile load: {HONEST} guests fetched {len(waits)} times"
        f" (each {min(guests.fetched.values())} to {max(guests.fetched.values())});"
        f" a fetch took {waits[len(waits) // 2]:.2f} s (median), {p99:.2f} s (p99),"
        f" {waits[-1]:.2f} s (longest);"
        f" their answers: {asked}"
    )
