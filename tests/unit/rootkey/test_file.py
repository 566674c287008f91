import asyncio
import base64
import hmac
import json
import os
import socket
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kms.errors import ConfigurationError, RootKeyUnavailable
from kms.keys.root_messages import Mode
from kms.rootkey.file import FileRootKey, RootKeyMissing, create

NOW = datetime(2026, 1, 2, 3, 4, 5, 999_999, tzinfo=UTC)
SECRET = bytes(range(1, 33))


def fixed(length: int) -> bytes:
    return SECRET[:length]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "root.key"
    create(file, Mode.PRODUCTION, NOW, fixed)
    return file


def refused(path: Path, mode: Mode = Mode.PRODUCTION) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        FileRootKey.load(path, mode)
    text = caught.value.detail + caught.value.remedy
    assert SECRET.hex() not in text
    assert base64.b64encode(SECRET).decode()[:12] not in text
    return caught.value


async def test_what_is_created_loads_and_computes_the_prf(path: Path) -> None:
    root = FileRootKey.load(path, Mode.PRODUCTION)
    assert await root.epochs() == (1,)
    assert await root.prf(1, b"message") == hmac.digest(SECRET, b"message", "sha512")


def test_the_file_is_as_documented(path: Path) -> None:
    assert path.stat().st_mode & 0o7777 == 0o600
    document = json.loads(path.read_text())
    assert list(document) == ["format", "version", "mode", "created_at", "epochs", "checksum"]
    assert document["format"] == "attested-kms/root-key"
    assert document["version"] == 1
    assert document["mode"] == "production"
    assert document["created_at"] == "2026-01-02T03:04:05Z"
    assert document["epochs"] == [
        {"epoch": 1, "secret": base64.urlsafe_b64encode(SECRET).decode().rstrip("=")}
    ]
    assert len(bytes.fromhex(document["checksum"])) == 32


def test_nothing_else_is_left_in_the_folder(path: Path) -> None:
    assert list(path.parent.iterdir()) == [path]


def test_a_umask_cannot_open_the_file(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        create(tmp_path / "new" / "root.key", Mode.PRODUCTION, NOW, fixed)
    finally:
        os.umask(before)
    assert (tmp_path / "new" / "root.key").stat().st_mode & 0o7777 == 0o600
    assert (tmp_path / "new").stat().st_mode & 0o7777 == 0o700


def test_missing_folders_are_made_private_and_existing_ones_left_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    create(tmp_path / "a" / "b" / "root.key", Mode.PRODUCTION, NOW, fixed)
    assert tmp_path.stat().st_mode & 0o7777 == 0o755
    assert [(tmp_path / name).stat().st_mode & 0o7777 for name in ("a", "a/b")] == [0o700, 0o700]


def test_an_existing_file_is_never_replaced(path: Path) -> None:
    """Field lesson 30: roots made again over others lose every key."""
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="already there"):
        create(path, Mode.PRODUCTION, NOW, os.urandom)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_dangling_link_is_not_followed_when_creating(tmp_path: Path) -> None:
    (tmp_path / "root.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match="already there"):
        create(tmp_path / "root.key", Mode.PRODUCTION, NOW, fixed)
    assert not (tmp_path / "elsewhere").exists()


def test_of_servers_that_start_at_once_one_makes_the_root(tmp_path: Path) -> None:
    outcomes: list[str] = []
    barrier = threading.Barrier(8)

    def start() -> None:
        barrier.wait()
        try:
            create(tmp_path / "new" / "root.key", Mode.PRODUCTION, NOW, os.urandom)
            outcomes.append("made")
        except ConfigurationError:
            outcomes.append("refused")

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["made"] + ["refused"] * 7
    FileRootKey.load(tmp_path / "new" / "root.key", Mode.PRODUCTION)


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigurationError, match="No space left"):
        create(tmp_path / "root.key", Mode.PRODUCTION, NOW, fixed)
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_synced_before_it_has_its_name_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, link = os.fsync, os.link

    def record_fsync(descriptor: int) -> None:
        steps.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")  # noqa: PTH112
        fsync(descriptor)

    def record_link(source: Path, target: Path) -> None:
        steps.append("link")
        link(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "link", record_link)
    create(tmp_path / "root.key", Mode.PRODUCTION, NOW, fixed)
    assert steps == ["file", "link", "folder"]


def test_bad_randomness_makes_no_root(tmp_path: Path) -> None:
    for random in (bytes, lambda n: b"\1" * (n - 1)):
        with pytest.raises(ValueError, match="32 bytes"):
            create(tmp_path / "root.key", Mode.PRODUCTION, NOW, random)
    with pytest.raises(ValueError, match="zone"):
        create(tmp_path / "root.key", Mode.PRODUCTION, NOW.replace(tzinfo=None), fixed)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(RootKeyMissing, match="no root key file"):
        FileRootKey.load(tmp_path / "none" / "root.key", Mode.PRODUCTION)


def test_the_other_mode_is_refused_both_ways(tmp_path: Path, path: Path) -> None:
    assert "made for production mode" in refused(path, Mode.DEVELOPMENT).detail
    create(tmp_path / "dev.key", Mode.DEVELOPMENT, NOW, fixed)
    assert "made for development mode" in refused(tmp_path / "dev.key").detail


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o660, 0o610, 0o601, 0o644, 0o777])
def test_a_file_that_others_can_use_is_refused(path: Path, bits: int) -> None:
    """Field lesson 31."""
    path.chmod(bits)
    error = refused(path)
    assert f"mode {bits:04o}" in error.detail
    assert "chmod 0600" in error.remedy


def test_a_read_only_file_is_fine(path: Path) -> None:
    path.chmod(0o400)
    FileRootKey.load(path, Mode.PRODUCTION)


def test_a_file_of_another_user_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    assert "another user" in refused(path).detail


def test_links_folders_fifos_and_sockets_are_refused(path: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(path)
    (tmp_path / "folder").mkdir(mode=0o700)
    os.mkfifo(tmp_path / "fifo", 0o600)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        for name in ("link", "folder", "fifo", "s"):
            error = refused(tmp_path / name)
            assert not isinstance(error, RootKeyMissing)


def test_a_huge_file_is_refused(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" " * (1 << 20))
    assert "longer" in refused(path).detail


@pytest.mark.parametrize("keep", [0, 1, 50, 200, -3])
def test_a_short_file_is_refused(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])
    error = refused(path)
    assert "damaged" in error.detail
    assert "backup" in error.remedy


async def test_an_epoch_that_does_not_exist_is_unavailable(path: Path) -> None:
    root = FileRootKey.load(path, Mode.PRODUCTION)
    for epoch in (0, 2, -1):
        with pytest.raises(RootKeyUnavailable) as caught:
            await root.prf(epoch, b"")
        assert caught.value.reason == "root-epoch-missing"


def test_closing_wipes_the_secrets(path: Path) -> None:
    root = FileRootKey.load(path, Mode.PRODUCTION)
    held = list(root._secrets.values())
    root.close()
    assert [bytes(secret) for secret in held] == [bytes(32)]
    with pytest.raises(RootKeyUnavailable):
        asyncio.run(root.prf(1, b""))


def test_the_repr_holds_no_secret(path: Path) -> None:
    assert repr(FileRootKey.load(path, Mode.PRODUCTION)) == "FileRootKey(epochs=1)"
