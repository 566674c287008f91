import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kms.guest.luks.device import Device
from tests.unit.guest.luks import samples


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Give the beginning of a disk with a volume of epoch 1, made by cryptsetup."""
    disk = samples.make(tmp_path_factory.mktemp("luks") / "disk")
    return disk.read_bytes()[: samples.END]


@pytest.fixture
def disk(tmp_path: Path, made: bytes) -> Path:
    return samples.put(samples.blank(tmp_path / "disk"), made)


@pytest.fixture
def loop(disk: Path) -> Iterator[Path]:
    """Give the disk as a block device, which cryptsetup locks otherwise than a file."""
    command = ["losetup", "--find", "--show", str(disk)]
    try:
        attached = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("takes losetup")
    if attached.returncode != 0:
        pytest.skip(f"takes a loop device: {attached.stderr.strip()}")
    device = attached.stdout.strip()
    try:
        yield Path(device)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@pytest.fixture(autouse=True)
def _files_are_their_own_loop_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file's mapping is over a loop device; `samples.Trial` names the file itself instead."""
    monkeypatch.setattr(Device, "is_behind", lambda device, number: number == str(device.path))
