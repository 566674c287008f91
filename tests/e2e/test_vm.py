"""`make vm-demo` as it is run: a whole machine under software emulation, from power-on to an open disk."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.nightly, pytest.mark.xdist_group("vm")]

_WITHIN = 3000  # seconds: minutes for the first Debian, and each boot is slow
_INSTALLS = shutil.which("apt-get") is not None or shutil.which("qemu-system-x86_64") is not None

# Name of the boot: powered itself off, releases, refusals, disk written to.
_EXPECTED = {
    "first-boot": (True, 1, [], True),
    "second-boot": (True, 1, [], True),
    "systemd": (True, 4, [], False),
    "other-command-line": (True, 0, ["measurement-unknown"], False),
    "unmeasured-command-line": (False, 0, [], False),
    "other-workload": (True, 0, [], False),
    "impostor": (True, 1, [], False),
}


@dataclass(frozen=True)
class Run:
    document: Mapping[str, Any]
    told: str
    folder: Path

    def console(self, name: str) -> str:
        return (self.folder / "machine" / f"{name}.console.log").read_text(encoding="utf-8", errors="replace")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    if os.geteuid() != 0 or not _INSTALLS:
        pytest.skip("make vm-demo takes root, QEMU and mmdebstrap")
    folder = tmp_path_factory.mktemp("vm") / "run"
    done = subprocess.run(
        [sys.executable, "-m", "vm", "--json", "--keep", str(folder)],
        capture_output=True,
        text=True,
        timeout=_WITHIN,
        check=False,
    )
    folder.with_name("told.txt").write_text(done.stderr, "utf-8")
    assert done.returncode == 0, done.stderr
    yield Run(json.loads(done.stdout), done.stderr, folder)
    shutil.rmtree(folder / "root")  # half a gigabyte, which pytest would keep


def test_every_boot_ends_as_it_must(run: Run) -> None:
    assert run.document["as_it_must_be"] is True
    assert run.document["wrong"] == []
    assert {
        each["name"]: (each["powered_off"], each["released"], each["refused"], each["disk_written"])
        for each in run.document["boots"]
    } == _EXPECTED


def test_the_second_boot_reads_what_the_first_one_wrote(run: Run) -> None:
    marker = "vm-demo: the secret on the volume is "
    assert marker not in run.console("first-boot")
    secrets = {run.console(name).partition(marker)[2].split()[0] for name in ("second-boot", "systemd")}
    assert len(secrets) == 1
    assert all(secret.startswith("demo-") for secret in secrets)


@pytest.mark.parametrize("name", ["other-command-line", "other-workload", "impostor"])
def test_a_refused_machine_powers_off_with_a_shut_disk(run: Run, name: str) -> None:
    console = run.console(name)
    assert "the disks stay shut; powering off" in console
    assert "vm-demo:" not in console
    assert "(initramfs)" not in console


def test_the_firmware_starts_nothing_that_was_not_measured(run: Run) -> None:
    assert "Loading, please wait" in run.console("first-boot")
    assert "Loading, please wait" not in run.console("unmeasured-command-line")


def test_the_key_is_on_no_disk_and_in_no_log(run: Run) -> None:
    searched = run.document["searched"]
    assert searched["files"] > 1000
    assert sorted(searched["found"]) == [
        f"machine/{name}.console.log: secret in raw" for name in ("second-boot", "systemd")
    ]


def test_the_disk_is_a_luks2_volume(run: Run) -> None:
    assert (run.folder / "machine" / "disk.img").read_bytes()[:8] == b"LUKS\xba\xbe\x00\x02"


def test_the_size_of_the_initrds_is_told(run: Run) -> None:
    sizes = run.document["initrd_bytes"]
    assert sizes["without ours"] < sizes["initramfs-tools"] < 64 << 20
    assert sizes["dracut"] < 96 << 20


def test_it_says_loudly_that_it_is_simulated(run: Run) -> None:
    assert run.document["simulated"] is True
    assert "DEVELOPMENT MODE" in run.told
    assert "NOT encrypted" in run.told
