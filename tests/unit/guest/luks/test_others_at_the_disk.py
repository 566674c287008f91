"""Somebody enrols a recovery key while we ask the KMS: nobody loses a key, and least of all the volume.

On a loop device: cryptsetup locks a block device otherwise than a file, where we keep it away all the time.
"""

import fcntl
import json
import os
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from typing_extensions import override

from kms.guest.luks import DiskFailed, read_header
from kms.guest.luks import locks as locks_module
from kms.guest.luks.device import open_device
from kms.guest.luks.locks import cryptsetup_lock
from kms.guest.luks.memory_file import MemoryFile
from kms.guest.luks.volume import rekey_volume, unlock_volume
from kms.guest.luks.write_back import write_back
from kms.keys.envelope import Payload
from kms.keys.names import KeyRequest
from tests.unit.guest.luks.samples import (
    CHEAP,
    DISK,
    END,
    HEADER,
    Kms,
    Recorded,
    Trial,
    key_of,
    metadata,
    needs_cryptsetup,
    opens,
    put,
    run,
    volume,
)

pytestmark = needs_cryptsetup

RECOVERY = 99
# As long as what systemd-cryptenroll writes: the metadata then fills more blocks of the header than before.
TPM = {"type": "tpm", "keyslots": ["0"], "blob": "A" * 3600}


@dataclass(frozen=True, slots=True)
class Administrator:
    """Uses the real cryptsetup on the device itself."""

    device: Path
    folder: Path

    def adds_token(self) -> None:
        run("token", "import", "--json-file", "-", str(self.device), key=json.dumps(TPM).encode())

    def adds_key(self) -> None:
        (new := self.folder / "recovery").write_bytes(key_of(RECOVERY))
        command = ("luksAddKey", "--batch-mode", *CHEAP, "--key-file", "-", str(self.device), str(new))
        run(*command, key=key_of(1))

    def adds_both(self) -> None:
        self.adds_token()
        self.adds_key()


@pytest.fixture(params=["adds_token", "adds_key", "adds_both"])
def act(request: pytest.FixtureRequest, loop: Path, tmp_path: Path) -> Callable[[], None]:
    method: Callable[[], None] = getattr(Administrator(loop, tmp_path), request.param)
    return method


def lost_nothing(loop: Path, act: Callable[[], None], *, newest: int) -> None:
    """See that what was added is there, and that the next start brings the volume to the new key."""
    for epoch in (1, newest):
        assert opens(loop, epoch)
    done = unlock_volume(
        volume(loop), fetch=(kms := Kms(current=2)).fetch, newest_epoch=kms.newest_epoch, cryptsetup=Trial()
    )
    assert (done.epoch, done.warning) == (2, None)
    assert (opens(loop, 1), opens(loop, 2)) == (False, True)
    header = read_header(loop)
    assert header.raw == header.image
    name = act.__name__
    assert opens(loop, RECOVERY) is (name != "adds_token")
    types = {token["type"] for token in metadata(header.raw)["tokens"].values()}
    assert types == {"attested-kms"} | ({"tpm"} if name != "adds_key" else set())


def test_while_an_open_volume_waits_for_the_newer_key(loop: Path, act: Callable[[], None]) -> None:
    """A unit that waits for /dev/mapper/data may enrol as soon as that is there."""

    def newest_epoch() -> int:
        act()
        return 2

    trial = Trial()
    done = unlock_volume(
        volume(loop), fetch=Kms(current=2).fetch, newest_epoch=newest_epoch, cryptsetup=trial
    )
    assert (done.epoch, done.rekeyed_from, list(trial.opened)) == (1, None, ["data"])
    assert done.warning is not None
    assert "somebody changed the header" in done.warning
    lost_nothing(loop, act, newest=1)


def test_while_rekey_waits(loop: Path, act: Callable[[], None]) -> None:
    kms = Kms(current=2)

    def fetch(keys: Sequence[KeyRequest]) -> Payload:
        if len(keys) > 1:
            act()
        return kms.fetch(keys)

    with pytest.raises(DiskFailed, match="goes on from there") as caught:
        rekey_volume(loop, DISK, fetch=fetch, cryptsetup=Trial())
    assert caught.value.reason == "disk-changed"
    lost_nothing(loop, act, newest=1)


def test_between_the_new_key_and_the_end_of_the_old_one(loop: Path, act: Callable[[], None]) -> None:
    class Interrupted(Trial):
        @override
        def kill_slot(self, header: MemoryFile, slot: int) -> None:
            act()
            Trial.kill_slot(self, header, slot)

    with pytest.raises(DiskFailed) as caught:
        rekey_volume(loop, DISK, fetch=Kms(current=2).fetch, cryptsetup=Interrupted())
    assert caught.value.reason == "disk-changed"
    lost_nothing(loop, act, newest=2)


def test_a_torn_copy_that_somebody_mended_meanwhile(loop: Path, made: bytes, act: Callable[[], None]) -> None:
    """What we read and would write over both copies is the older header by then."""
    put(loop, bytes(512))
    subprocess.run(["blockdev", "--flushbufs", str(loop)], check=True)
    kms = Kms()

    def fetch(keys: Sequence[KeyRequest]) -> Payload:
        act()
        return kms.fetch(keys)

    done = unlock_volume(volume(loop), fetch=fetch, newest_epoch=lambda: 2, cryptsetup=Trial())
    assert done.warning is not None
    assert "somebody changed the header" in done.warning
    lost_nothing(loop, act, newest=1)


def test_the_old_slot_goes_only_when_the_disk_opens_with_the_new_key(loop: Path) -> None:
    """What is tried before is what is on the disk, whatever the memory has."""
    seen: list[tuple[str, bool]] = []

    class Watched(Trial):
        @override
        def test(self, header: MemoryFile, key: bytes, *, slot: int) -> None:
            content = Path(f"/proc/self/fd/{header.descriptor}").read_bytes()
            Trial.test(self, header, key, slot=slot)
            on_disk = content == read_header(loop).raw
            seen.append((f"{'disk' if on_disk else 'memory'} opens", key == key_of(2)))

        @override
        def kill_slot(self, header: MemoryFile, slot: int) -> None:
            seen.append(("killed", True))
            Trial.kill_slot(self, header, slot)

    rekey_volume(loop, DISK, fetch=Kms(current=2).fetch, cryptsetup=Watched())
    killed = seen.index(("killed", True))
    assert seen[killed - 1] == ("disk opens", True)


def test_both_copies_are_written_whole(loop: Path) -> None:
    """Each has one checksum over all of it: a part of one fits nothing but what was read."""
    log: list[tuple[int, bytes] | None] = []
    with open_device(loop, write=True) as opened:
        device = Recorded(
            path=opened.path, descriptor=opened.descriptor, size=opened.size, number=None, log=log
        )
        area = device.read(0, END)
        changed = bytearray(area)
        changed[HEADER + 600] ^= 1
        write_back(device, area, bytes(changed), header_size=HEADER)
    assert log == [None, (HEADER, bytes(changed[HEADER : 2 * HEADER])), None, (0, area[:HEADER]), None]


def test_it_is_cryptsetup_s_own_lock(loop: Path) -> None:
    command = ["cryptsetup", "token", "add", "--key-description", "x", str(loop)]
    with open_device(loop, write=True) as device, device.without_cryptsetup():
        waiting = subprocess.Popen(command)
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                waiting.wait(1)
        except BaseException:
            waiting.kill()
            waiting.wait()
            raise
    assert waiting.wait(30) == 0


class TestLock:
    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(locks_module, "_FOLDER", tmp_path / "locks")
        return tmp_path / "locks"

    def test_leaves_nothing(self, folder: Path) -> None:
        with cryptsetup_lock("7:0"):
            assert [each.name for each in folder.iterdir()] == ["L_7:0"]
        assert list(folder.iterdir()) == []
        assert folder.stat().st_mode & 0o777 == 0o700

    def test_is_waited_for_and_not_for_ever(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(locks_module, "_WITHIN", 0.1)
        with cryptsetup_lock("7:0"), pytest.raises(DiskFailed) as caught, cryptsetup_lock("7:0"):
            pass
        assert caught.value.reason == "disk-busy"
        with cryptsetup_lock("7:0"):
            pass

    def test_of_a_file_that_was_removed_is_none(self, folder: Path) -> None:
        """Cryptsetup removes the file when it is done; whoever waited for that one starts again."""
        folder.mkdir()
        first = os.open(folder / "L_7:0", os.O_RDWR | os.O_CREAT)
        fcntl.flock(first, fcntl.LOCK_EX)
        taken = threading.Event()

        def take() -> None:
            with cryptsetup_lock("7:0"):
                taken.set()

        thread = threading.Thread(target=take)
        thread.start()
        try:
            assert not taken.wait(0.2)
            (folder / "L_7:0").unlink()
            with cryptsetup_lock("7:0"):
                os.close(first)
                assert not taken.wait(0.2)
        finally:
            thread.join()
        assert taken.is_set()

    def test_a_folder_that_is_none(self, folder: Path) -> None:
        folder.write_bytes(b"")
        with pytest.raises(DiskFailed) as caught, cryptsetup_lock("7:0"):
            pass
        assert caught.value.reason == "disk-unusable"
