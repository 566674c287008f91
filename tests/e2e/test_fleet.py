"""A rack boots at once, its hosts hand out no certificates, and AMD's service is slow, moody, and then gone.

A real server process, real HTTP to two simulated services. Each allows one certificate in `interval` seconds
and fails three times in ten, as AMD's does on a bad day.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kms.cli.demo_outage_scene import BareGuest, prepare_open_policy
from kms.cli.demo_scene import ImageFiles, app_document
from kms.cli.demo_server import RunningServer, run_server
from kms.guest.client import KeyClient
from kms.keys.names import KeyName, KeyRequest, Scope
from kms.keys.sealing import Suite
from kms.simulator.chip import SimulatedChip, simulated_chip_id
from kms.simulator.hierarchy import AmdHierarchy
from kms.simulator.kds import SimulatedKds
from kms.simulator.kds_faults import Faults, RetryAfter
from kms.simulator.machine import SimulatedMachine
from kms.snp.product import Product

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket]

CHIPS, GUESTS_OF_A_CHIP = 50, 4
DISK = [KeyRequest(KeyName.parse("disk"), Scope.APP)]


@dataclass(frozen=True)
class Boot:
    """One guest that got its key: after how many seconds, and how often it was told to come again."""

    seconds: float
    retries: int


def boot(server: RunningServer, guest: BareGuest, within: float) -> Boot:
    """Boot as a guest does: it comes again when it was told to. A refusal is an exception."""
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        time.sleep(seconds)

    client = KeyClient(
        server.url,
        ca_file=server.ca_file,
        identity=server.identity,
        source=guest,
        suite=Suite.X25519_SEALEDBOX,
        deadline=within,
        timeout=60.0,
        sleep=sleep,
    )
    begun = time.monotonic()
    payload = client.fetch(DISK, app_document=app_document())
    assert [str(key.name) for key in payload.keys] == ["disk"]
    return Boot(time.monotonic() - begun, len(waits))


def boot_all(server: RunningServer, guests: Sequence[BareGuest], within: float) -> list[Boot]:
    with ThreadPoolExecutor(len(guests)) as pool:
        return list(pool.map(lambda guest: boot(server, guest, within), guests))


def figures(what: str, boots: Sequence[Boot]) -> str:
    seconds = sorted(each.seconds for each in boots)
    retries = sum(each.retries for each in boots)
    median, last = seconds[len(seconds) // 2], seconds[-1]
    return f"{what}: {len(boots)} guests, median {median:.1f} s, last {last:.1f} s, {retries} retries"


@pytest.mark.parametrize(
    ("interval", "within"), [(0.02, 300.0), pytest.param(10.0, 1800.0, marks=pytest.mark.nightly)]
)
def test_lesson_15_a_rack_boots_while_the_kds_throttles_and_fails(
    tmp_path: Path,
    simulated_hierarchies: Mapping[Product, AmdHierarchy],
    interval: float,
    within: float,
) -> None:
    hierarchy = simulated_hierarchies[Product.MILAN]
    roots = tmp_path / "roots.pem"
    roots.write_bytes(hierarchy.ark.pem)
    files = ImageFiles.build()
    policies = prepare_open_policy(files, tmp_path)
    chips = [
        SimulatedChip.typical(
            hierarchy,
            chip_id=simulated_chip_id(Product.MILAN, f"rack {number}".encode()),
            now=datetime.now(UTC) - timedelta(days=1),
        )
        for number in range(CHIPS)
    ]
    guests = [
        BareGuest(SimulatedMachine.launch(chip, files.description(), app_document=app_document()))
        for chip in chips
        for _ in range(GUESTS_OF_A_CHIP)
    ]
    # AMD's 429 comes without `Retry-After`, and then ten seconds are waited: too long for every day.
    forms = (RetryAfter.SECONDS, RetryAfter.NONE if interval > 1 else RetryAfter.DATE)
    faults = Faults(interval=interval, failing=0.3)
    with ExitStack() as stack:
        services = [
            stack.enter_context(
                SimulatedKds([hierarchy], chips, faults=replace(faults, retry_after=form), seed=seed)
            )
            for seed, form in enumerate(forms)
        ]
        server = stack.enter_context(
            run_server(
                tmp_path,
                policies=policies,
                development_roots=roots,
                challenge_seconds=300,
                kds_url=",".join(service.url for service in services),
            )
        )
        cold = boot_all(server, guests, within)
        came = Counter(
            asked.path
            for service in services
            for asked in service.log
            if asked.genuine and asked.path in {guest.certificate_path for guest in guests}
        )
        assert len(cold) == len(guests)
        assert set(came.values()) == {1}
        assert len(came) == CHIPS

        for service in services:
            service.faults = Faults(down=True)
        before = sum(len(service.log) for service in services)
        warm = boot_all(server, guests, within)
        assert [each.retries for each in warm] == [0] * len(guests)
        assert sum(len(service.log) for service in services) == before
        asked = Counter(str(each.status) for service in services for each in service.log)
    print(figures(f"one certificate in {interval} s", cold), figures("warm", warm), dict(asked), sep="\n")
