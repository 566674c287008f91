"""`kms guest fetch` on a SIMULATED kernel with every fault that its evidence can have, against a real server.

configfs-tsm is a mounted file system with the system calls of the real one, and the command a process of its
own. /dev/sev-guest is asked by an ioctl that a simulated file cannot answer: its driver is emulated in this
process.
"""

import errno
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kms.cli import run
from kms.guest.sev_guest_device import SevGuestSource
from kms.simulator.hierarchy import AmdHierarchy
from kms.simulator.kds import SimulatedKds
from kms.simulator.tsm_fuse import Faults, SimulatedTsm
from kms.snp.product import Product
from tests.conformance.own_server import Server, environment
from tests.e2e.rack import Guest, Rack
from tests.processes import ended
from tests.servers.vault import wait_until
from tests.simulated_tsm import needs_fuse, simulated_tsm
from tests.unit.guest.emulated_sev_guest import EmulatedSevGuest

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket]

Fetch = Callable[[], tuple[int, Any]]

WITHIN = 60.0  # seconds, for a command


@dataclass(frozen=True, slots=True)
class Kms:
    """A running server, and a guest that its policy allows."""

    server: Server
    guest: Guest
    identity: str
    folder: Path

    def fetch(self, *evidence: str | Path) -> list[str]:
        """Give the arguments that fetch this guest's disk key with evidence from there."""
        document = self.folder / "app.json"
        document.write_bytes(self.guest.document)
        server = ["--server", self.server.url, "--ca", str(self.server.ca), "--identity", self.identity]
        asked = ["--key", "disk", "--app-document", str(document), "--json"]
        return ["guest", "fetch", *server, *asked, *map(str, evidence)]


@pytest.fixture(scope="module")
def kms(
    tmp_path_factory: pytest.TempPathFactory, simulated_hierarchies: Mapping[Product, AmdHierarchy]
) -> Iterator[Kms]:
    folder, hierarchy = tmp_path_factory.mktemp("evidence"), simulated_hierarchies[Product.MILAN]
    rack = Rack(folder, hierarchy, chips=1)
    guest = rack.guest(0)
    with (
        SimulatedKds([hierarchy], [guest.machine.guest.chip]) as kds,
        Server(folder / "data", {**rack.settings, "KMS_KDS_URLS": kds.url}) as server,
    ):
        with server.client().http as http:
            identity = http.get("/v1/identity").json()["identity"]
        yield Kms(server, guest, identity, folder)


@pytest.fixture
def tsm(kms: Kms, tmp_path: Path) -> Iterator[tuple[SimulatedTsm, Path]]:
    mountpoint = tmp_path / "report"
    with simulated_tsm(mountpoint, kms.guest.machine) as served:
        yield served, mountpoint


def start(arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "kms", *arguments],
        env=environment({}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def answer(process: subprocess.Popen[bytes]) -> tuple[int, Any, str]:
    """Give the status, the JSON document and what was said beside it."""
    with ended(process):
        output, errors = process.communicate(timeout=WITHIN)
    return process.returncode, json.loads(output) if output else None, errors.decode()


def disk_key(document: Any) -> str:
    [key] = document["keys"]
    assert key["name"] == "disk"
    return str(key["value"])


@needs_fuse
class TestConfigfsTsm:
    def test_a_key_for_a_report_of_the_kernels(self, kms: Kms, tsm: tuple[SimulatedTsm, Path]) -> None:
        served, mountpoint = tsm
        status, document, errors = answer(start(kms.fetch("--tsm", mountpoint)))
        assert (status, errors) == (0, "")
        assert disk_key(document)
        assert served.entries == ()

    @pytest.mark.parametrize(
        ("faults", "reason", "said"),
        [
            (Faults(provider="tdx_guest"), "tsm-provider", "an Intel TDX guest"),
            (Faults(provider="vendor_guest"), "tsm-provider", "not an SEV-SNP guest"),
            (Faults(generation_step=0), "tsm-generation", "refused what was written"),
            (Faults(generation_step=2), "tsm-generation", "another process wrote"),
            (Faults(cut=600), "report-malformed", "1184 bytes, not 600"),
            (Faults(cut=0), "report-malformed", "1184 bytes, not 0"),
            (Faults(other_report_data=True), "report-data-mismatch", "not over what was asked"),
            (Faults(deny_mkdir=True), "tsm-not-permitted", "takes root"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_what_is_wrong_is_said_and_nothing_is_left_behind(
        self, kms: Kms, tsm: tuple[SimulatedTsm, Path], faults: Faults, reason: str, said: str
    ) -> None:
        served, mountpoint = tsm
        served.faults = faults
        status, document, _ = answer(start(kms.fetch("--tsm", mountpoint)))
        assert status == 2
        error = document["error"]
        assert (error["code"], error["reason"]) == ("evidence-unavailable", reason)
        assert said in error["detail"]
        assert served.entries == ()

    def test_for_people_it_is_one_sentence(self, kms: Kms, tsm: tuple[SimulatedTsm, Path]) -> None:
        served, mountpoint = tsm
        served.faults = Faults(provider="tdx_guest")
        arguments = [each for each in kms.fetch("--tsm", mountpoint) if each != "--json"]
        status, document, errors = answer(start(arguments))
        assert (status, document) == (2, None)
        assert "Intel TDX" in errors
        assert errors.count("\n") == 1

    def test_a_platform_that_is_busy_for_three_seconds_is_waited_for(
        self, kms: Kms, tsm: tuple[SimulatedTsm, Path]
    ) -> None:
        served, mountpoint = tsm
        served.faults = Faults(busy_for=3)
        began = time.monotonic()
        status, document, _ = answer(start(kms.fetch("--tsm", mountpoint)))
        assert status == 0
        assert disk_key(document)
        assert time.monotonic() - began >= 3
        assert served.entries == ()

    def test_a_platform_that_stays_busy_is_given_up(self, kms: Kms, tsm: tuple[SimulatedTsm, Path]) -> None:
        served, mountpoint = tsm
        served.faults = Faults(busy_for=WITHIN)
        status, document, _ = answer(start(kms.fetch("--tsm", mountpoint)))
        assert (status, document["error"]["reason"]) == (2, "tsm-busy")
        assert served.entries == ()

    def test_without_the_hosts_certificates_the_server_finds_them(
        self, kms: Kms, tsm: tuple[SimulatedTsm, Path]
    ) -> None:
        served, mountpoint = tsm
        served.faults = Faults(auxblob=False)
        status, document, errors = answer(start(kms.fetch("--tsm", mountpoint)))
        assert (status, errors) == (0, "")
        assert disk_key(document)
        assert served.entries == ()

    def test_a_privilege_level_below_the_floor_is_told(
        self, kms: Kms, tsm: tuple[SimulatedTsm, Path]
    ) -> None:
        served, mountpoint = tsm
        served.faults = Faults(privlevel_floor=2)
        status, document, _ = answer(start(kms.fetch("--tsm", mountpoint, "--privlevel", "1")))
        assert (status, document["error"]["reason"]) == (2, "tsm-privlevel")
        assert "2 to 3" in document["error"]["detail"]
        assert served.entries == ()

    def test_two_processes_have_an_entry_each(self, kms: Kms, tsm: tuple[SimulatedTsm, Path]) -> None:
        served, mountpoint = tsm
        served.faults = Faults(busy_for=WITHIN)
        with ThreadPoolExecutor(2) as pool:
            asked = [pool.submit(answer, start(kms.fetch("--tsm", mountpoint))) for _ in range(2)]
            wait_until(lambda: len(served.entries) == 2, within=WITHIN)
            served.faults = Faults()
            answers = [each.result() for each in asked]
        assert [status for status, *_ in answers] == [0, 0]
        assert served.entries == ()

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
    def test_who_is_stopped_leaves_nothing_behind(
        self, kms: Kms, tsm: tuple[SimulatedTsm, Path], number: signal.Signals
    ) -> None:
        served, mountpoint = tsm
        served.faults = Faults(busy_for=WITHIN)
        with ended(start(kms.fetch("--tsm", mountpoint))) as process:
            wait_until(lambda: bool(served.entries), within=WITHIN)
            process.send_signal(number)
            status, document, errors = answer(process)
        # A shell calls both the same.
        assert status in {128 + number, -number}
        assert document is None
        assert "Traceback" not in errors
        assert served.entries == ()


def test_no_configfs_and_no_device(kms: Kms, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    status, document, _ = answer(start(kms.fetch("--tsm", missing, "--device", missing / "device")))
    assert (status, document["error"]["reason"]) == (2, "evidence-interface-missing")
    assert "mount configfs" in document["error"]["detail"]


class TestDevice:
    @pytest.fixture
    def driver(self, kms: Kms, monkeypatch: pytest.MonkeyPatch) -> EmulatedSevGuest:
        simulated = kms.guest.machine.guest
        driver = EmulatedSevGuest(simulated.report, simulated.chip.certificate_table())
        monkeypatch.setattr("kms.guest.hardware.SevGuestSource", partial(SevGuestSource, ioctl=driver))
        return driver

    @pytest.fixture
    def fetch(
        self,
        kms: Kms,
        driver: EmulatedSevGuest,
        capfd: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> Fetch:
        # What pytest captures goes to a file on a disk, where keys must not be.
        monkeypatch.setattr("kms.cli.guest_outputs._is_file", lambda _: False)

        def fetch() -> tuple[int, Any]:
            status = run(kms.fetch("--evidence", "device", "--device", "/dev/null"))
            return status, json.loads(capfd.readouterr().out)

        return fetch

    def test_a_key_for_a_report_of_the_devices(self, driver: EmulatedSevGuest, fetch: Fetch) -> None:
        status, document = fetch()
        assert status == 0
        assert disk_key(document)
        assert len(driver.asked) == 2

    def test_without_the_hosts_certificates_the_server_finds_them(
        self, driver: EmulatedSevGuest, fetch: Fetch
    ) -> None:
        driver.table = b""
        status, document = fetch()
        assert status == 0
        assert disk_key(document)

    def test_a_platform_that_is_busy_for_three_seconds_is_waited_for(
        self, driver: EmulatedSevGuest, fetch: Fetch
    ) -> None:
        free = time.monotonic() + 3
        driver.busy = lambda: time.monotonic() < free
        status, document = fetch()
        assert status == 0
        assert disk_key(document)

    @pytest.mark.parametrize(
        ("faults", "reason", "said"),
        [
            ({"fail": OSError(errno.EPERM, "")}, "device-not-permitted", "root"),
            ({"status": 0x16}, "device-firmware", "INVALID_PARAM"),
            ({"report_size": 600}, "report-malformed", "1184 bytes, not 600"),
            ({"other_report_data": True}, "report-data-mismatch", "not over what was asked"),
            ({"fail": OSError(errno.ENOTTY, "")}, "device-key-lost", "reboot the guest"),
            ({"fail": OSError(errno.EIO, ""), "exitinfo2": 3 << 32}, "device-host", "VMM error 3"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_what_is_wrong_is_said(
        self, driver: EmulatedSevGuest, fetch: Fetch, faults: dict[str, Any], reason: str, said: str
    ) -> None:
        for name, value in faults.items():
            setattr(driver, name, value)
        status, document = fetch()
        assert status == 2
        error = document["error"]
        assert (error["code"], error["reason"]) == ("evidence-unavailable", reason)
        assert said in error["detail"]
