"""Credentials of systemd: their names, their folder, and the real `systemd-creds` that reads them."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from kms.errors import ConfigurationError
from kms.guest import secret_file
from kms.guest.credentials import check_credential, credential_name, write_credential


@pytest.fixture
def store(memory: Path) -> Path:
    return memory / "credstore"


@pytest.mark.parametrize("name", ["disk", "db.main", "a b", "x" * 230, "...", "-x", "~", "%i"])
def test_names_that_systemd_takes(store: Path, name: str) -> None:
    assert credential_name(name) == name
    assert write_credential(name, b"secret", folder=store, allow_disk=False).read_bytes() == b"secret"


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "custom:db", "a\nb", "a\x7f", "é", "x" * 231, "../x", "a\0"]
)
def test_names_that_it_does_not_take(store: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="printable ASCII"):
        write_credential(name, b"secret", folder=store, allow_disk=False)
    assert not store.exists()


def test_a_new_one_for_this_user_only(store: Path) -> None:
    path = write_credential("disk", b"\x01" * 32, folder=store, allow_disk=False)
    assert path == store / "disk"
    assert path.read_bytes() == b"\x01" * 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(store.stat().st_mode) == 0o700


def test_after_a_rotation_the_new_key_replaces_the_old_one(store: Path) -> None:
    path = write_credential("disk", b"old", folder=store, allow_disk=False)
    with path.open("rb") as reader:  # a service that is reading it has the old one whole
        write_credential("disk", b"new", folder=store, allow_disk=False)
        assert (reader.read(), path.read_bytes()) == (b"old", b"new")
    assert list(store.iterdir()) == [path]


def test_a_link_in_its_place_leads_nowhere(store: Path, memory: Path) -> None:
    store.mkdir(mode=0o700)
    target = memory / "target"
    target.write_bytes(b"precious")
    (store / "disk").symlink_to(target)
    write_credential("disk", b"secret", folder=store, allow_disk=False)
    assert target.read_bytes() == b"precious"
    assert not (store / "disk").is_symlink()


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o1777])
def test_a_folder_that_others_write_to(store: Path, mode: int) -> None:
    store.mkdir()
    store.chmod(mode)
    with pytest.raises(ConfigurationError, match="others can write"):
        check_credential("disk", folder=store, allow_disk=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="giving folders away takes root")
def test_a_folder_of_somebody_else(store: Path) -> None:
    store.mkdir()
    os.chown(store, 12345, 12345)
    with pytest.raises(ConfigurationError, match="others can write"):
        check_credential("disk", folder=store, allow_disk=False)


def test_a_place_that_is_no_folder(store: Path, memory: Path) -> None:
    store.touch()
    with pytest.raises(ConfigurationError):
        check_credential("disk", folder=store, allow_disk=False)
    with pytest.raises(ConfigurationError):
        check_credential("disk", folder=store / "below", allow_disk=False)
    link = memory / "link"
    link.symlink_to(memory)
    with pytest.raises(ConfigurationError, match="not a folder"):
        check_credential("disk", folder=link, allow_disk=False)


def test_a_folder_of_that_name_is_in_the_way(store: Path) -> None:
    (store / "disk").mkdir(parents=True, mode=0o700)
    with pytest.raises(ConfigurationError):
        write_credential("disk", b"secret", folder=store, allow_disk=False)
    assert list(store.iterdir()) == [store / "disk"]


def test_not_on_a_disk_unless_insisted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tmp_path.stat().st_dev
    table = tmp_path / "mountinfo"
    table.write_text(f"36 35 {os.major(device)}:{os.minor(device)} / / rw shared:1 - ext4 /dev/vda rw\n")
    monkeypatch.setattr(secret_file, "_MOUNTS", table)
    store = tmp_path / "credstore"
    with pytest.raises(ConfigurationError, match="on a disk"):
        write_credential("disk", b"secret", folder=store, allow_disk=False)
    assert list(store.iterdir()) == []
    assert write_credential("disk", b"secret", folder=store, allow_disk=True).read_bytes() == b"secret"


@pytest.mark.skipif(shutil.which("systemd-creds") is None, reason="systemd-creds is not installed")
def test_the_real_systemd_creds_reads_it(store: Path) -> None:
    """What a service sees in `$CREDENTIALS_DIRECTORY`, read by systemd's own program; bytes of any value."""
    secret = bytes(range(32))
    write_credential("attested disk", secret, folder=store, allow_disk=False)
    shown = subprocess.run(
        ["systemd-creds", "cat", "attested disk"],
        env={"CREDENTIALS_DIRECTORY": str(store), "PATH": os.environ["PATH"]},
        capture_output=True,
        check=True,
    )
    assert shown.stdout == secret
