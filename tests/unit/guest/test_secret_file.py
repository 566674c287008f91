"""Key files: new, private, in memory."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from kms.errors import ConfigurationError
from kms.guest import secret_file
from kms.guest.secret_file import check_place, write_secret

MEMORY = Path("/dev/shm")  # noqa: S108 -- the point of the test


@pytest.fixture
def memory() -> Iterator[Path]:
    if not MEMORY.is_dir():
        pytest.skip("no tmpfs at /dev/shm")
    with TemporaryDirectory(dir=MEMORY) as folder:
        yield Path(folder)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    device = tmp_path.stat().st_dev
    table = tmp_path / "mountinfo"
    table.write_text(f"36 35 {os.major(device)}:{os.minor(device)} / / rw shared:1 - ext4 /dev/vda rw\n")
    monkeypatch.setattr(secret_file, "_MOUNTS", table)
    return tmp_path


def test_a_new_file_in_memory_for_this_user_only(memory: Path) -> None:
    path = memory / "disk.key"
    write_secret(path, b"\x01" * 32, allow_disk=False)
    assert path.read_bytes() == b"\x01" * 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_not_on_a_disk_unless_insisted(disk: Path) -> None:
    path = disk / "disk.key"
    with pytest.raises(ConfigurationError, match="on a disk"):
        write_secret(path, b"secret", allow_disk=False)
    assert not path.exists()
    write_secret(path, b"secret", allow_disk=True)
    assert path.read_bytes() == b"secret"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_system_that_nobody_can_name_counts_as_a_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secret_file, "_MOUNTS", tmp_path / "missing")
    with pytest.raises(ConfigurationError, match="on a disk"):
        check_place(tmp_path / "disk.key", allow_disk=False)


def test_an_existing_file_is_never_replaced(disk: Path) -> None:
    path = disk / "disk.key"
    path.write_bytes(b"precious")
    with pytest.raises(ConfigurationError, match="exists"):
        write_secret(path, b"secret", allow_disk=True)
    assert path.read_bytes() == b"precious"


def test_a_link_leads_nowhere(disk: Path) -> None:
    path, target = disk / "disk.key", disk / "elsewhere"
    path.symlink_to(target)
    with pytest.raises(ConfigurationError, match="exists"):
        write_secret(path, b"secret", allow_disk=True)
    assert not target.exists()


def test_a_folder_that_is_not_there(disk: Path) -> None:
    with pytest.raises(ConfigurationError):
        check_place(disk / "missing" / "disk.key", allow_disk=True)


def test_a_part_of_a_key_does_not_stay(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> object:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdopen", fail)
    with pytest.raises(ConfigurationError, match="No space"):
        write_secret(disk / "disk.key", b"secret", allow_disk=True)
    assert not (disk / "disk.key").exists()
