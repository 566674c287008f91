"""Key files: new, private, in memory."""

import logging
import os
import stat
from pathlib import Path

import pytest

from kms.errors import ConfigurationError
from kms.guest import secret_file
from kms.guest.secret_file import check_place, write_secret


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


class TestSwap:
    """A tmpfs is in memory until the kernel swaps it out: to a disk that the host keeps."""

    HEAD = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"

    @staticmethod
    def written(
        folder: Path, monkeypatch: pytest.MonkeyPatch, *, swaps: str, mounted: str = "tmpfs tmpfs rw,size=1k"
    ) -> None:
        device = folder.stat().st_dev
        (folder / "mountinfo").write_text(f"36 35 {os.major(device)}:{os.minor(device)} / / rw - {mounted}\n")
        (folder / "swaps").write_text(swaps)
        monkeypatch.setattr(secret_file, "_MOUNTS", folder / "mountinfo")
        monkeypatch.setattr(secret_file, "_SWAPS", folder / "swaps")
        write_secret(folder / "disk.key", b"secret", allow_disk=False)

    def test_it_is_said_and_the_key_is_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        swaps = f"{self.HEAD}/dev/vda2  partition\t1048572\t0\t-2\n/dev/zram0 partition\t1\t0\t5\n"
        self.written(tmp_path, monkeypatch, swaps=swaps)
        [record] = caplog.records
        assert record.levelno == logging.WARNING
        assert "/dev/vda2" in record.getMessage()
        assert "zram" not in record.getMessage()
        assert (tmp_path / "disk.key").read_bytes() == b"secret"

    @pytest.mark.parametrize(
        ("swaps", "mounted"),
        [
            (HEAD, "tmpfs tmpfs rw"),
            ("", "tmpfs tmpfs rw"),
            (HEAD + "/dev/zram0 partition 1 0 5\n", "tmpfs tmpfs rw"),
            (HEAD + "/dev/vda2 partition 1 0 5\n", "tmpfs tmpfs rw,noswap,size=1k"),
            (HEAD + "/dev/vda2 partition 1 0 5\n", "ramfs ramfs rw"),
        ],
        ids=["none", "no procfs", "in memory", "noswap", "ramfs"],
    )
    def test_nothing_is_said_where_nothing_can_happen(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        swaps: str,
        mounted: str,
    ) -> None:
        self.written(tmp_path, monkeypatch, swaps=swaps, mounted=mounted)
        assert caplog.records == []
