"""The guest's systemd units, judged by systemd, and held against what they start."""

import re
import sys
from pathlib import Path
from typing import Final

import pytest

from kms.cli import guest
from tests.unit.deployment.test_units import ROOT, program, run

FOLDER: Final = ROOT / "kms" / "guest" / "hooks" / "systemd"
KMS: Final = "/opt/attested-kms/bin/kms"
MOST_EXPOSED: Final = "30"  # of 100, by systemd-analyze's own measure: 23 when this was written
SERVICES: Final = sorted(FOLDER.glob("*.service"))
SOCKETS: Final = sorted(FOLDER.glob("*.socket"))


def named(path: Path) -> str:
    return path.name


def settings(path: Path, name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", path.read_text(), re.MULTILINE)


def test_each_socket_has_its_service() -> None:
    assert [each.stem for each in SERVICES] == [each.stem for each in SOCKETS]
    assert len(SERVICES) == 2


def test_the_units_are_units(tmp_path: Path) -> None:
    analyze = program("systemd-analyze", "systemd")
    for each in [*SERVICES, *SOCKETS]:
        (tmp_path / each.name).write_text(each.read_text().replace(KMS, sys.executable))
    done = run(analyze, "verify", "--man=no", *sorted(tmp_path.iterdir()))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unit", SERVICES, ids=named)
def test_a_service_is_exposed_to_little(unit: Path) -> None:
    analyze = program("systemd-analyze", "systemd")
    done = run(analyze, "security", "--offline=true", f"--threshold={MOST_EXPOSED}", "--no-pager", unit)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("unit", SERVICES, ids=named)
def test_a_service_starts_what_there_is_and_keeps_what_evidence_takes(unit: Path) -> None:
    [started] = settings(unit, "ExecStart")
    words = started.removeprefix(f"{KMS} guest ").split()
    assert guest.parser().parse_args(words).idle > 0
    # Evidence is asked for by making a folder in configfs, or of the device.
    assert settings(unit, "ProtectKernelTunables") == []
    assert "/dev/sev-guest rw" in settings(unit, "DeviceAllow")
    assert settings(unit, "PrivateDevices") == []
    # /proc/cmdline, where a measured command line names the server.
    assert settings(unit, "ProcSubset") == []


def test_the_agent_waits_for_no_disk_and_no_network() -> None:
    """Whatever waits for the disks would wait for the agent, which waits for it."""
    unit = FOLDER / "attested-kms-agent.service"
    assert settings(unit, "DefaultDependencies") == ["no"]
    assert (
        settings(unit, "PrivateTmp") == []
    )  # systemd.exec(5): it implies After=systemd-tmpfiles-setup.service
    assert "network" not in " ".join(settings(unit, "After") + settings(unit, "Wants"))


def test_only_root_reaches_the_agent() -> None:
    modes = {each.stem: settings(each, "SocketMode") for each in SOCKETS}
    assert modes == {"attested-kms-agent": ["0600"], "attested-kms-keys": ["0666"]}
