"""LUKS2 volumes in files, made by the real `cryptsetup`, and hosts who change them."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from kms.guest.config import VolumeConfig
from kms.guest.errors import Problem, Refused
from kms.guest.luks.cryptsetup import Cryptsetup
from kms.guest.luks.device import Device
from kms.guest.luks.memory_file import MemoryFile
from kms.identifiers import AppId
from kms.keys.envelope import Payload
from kms.keys.names import DSTACK_KINDS, KeyRequest
from kms.keys.released import ReleasedKey

needs_cryptsetup = pytest.mark.skipif(shutil.which("cryptsetup") is None, reason="takes cryptsetup")

MIB = 1 << 20
HEADER = 0x4000  # bytes of one copy, as cryptsetup makes it
END = 2 * HEADER + MIB  # of the key slots area, as `make` makes it
AREA = 2 * MIB  # where the data begins
SIZE = 20 * MIB  # the whole disk
CHEAP = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")
DISK = KeyRequest.parse("disk", "app")


def key_of(epoch: int) -> bytes:
    """Give the disk key of an epoch: 32 bytes, with what a careless program would stop at."""
    return b"\n\0" + hashlib.sha256(b"disk key %d" % epoch).digest()[2:]


def run(*arguments: str, key: bytes = b"", status: int = 0) -> bytes:
    """Run the real cryptsetup."""
    done = subprocess.run(["cryptsetup", *arguments], input=key, capture_output=True, check=False)
    assert done.returncode == status, (arguments, done)
    return done.stdout


def opens(disk: Path, epoch: int) -> bool:
    """Say whether the key of an epoch opens what is on the disk, as cryptsetup sees it."""
    command = ["cryptsetup", "open", "--test-passphrase", "--key-file", "-", str(disk)]
    return subprocess.run(command, input=key_of(epoch), capture_output=True, check=False).returncode == 0


def make(disk: Path, *options: str, epoch: int | None = 1) -> Path:
    """Make a volume by hand; with `epoch` it has our token."""
    blank(disk)
    small = ("--luks2-keyslots-size", "1m", "--offset", str(AREA // 512))
    usual = ("luksFormat", "--batch-mode", "--type", "luks2", "--key-size", "512", *small, *CHEAP)
    run(*usual, *options, "--key-file", "-", str(disk), key=key_of(epoch or 1))
    if epoch is not None:
        add_token(disk, slot=0, epoch=epoch)
    return disk


def blank(disk: Path, size: int = SIZE) -> Path:
    disk.write_bytes(b"")
    with disk.open("r+b") as file:
        file.truncate(size)
    return disk


def add_token(disk: Path, *, slot: int, epoch: int, key: str = "disk@app") -> None:
    token = {"type": "attested-kms", "keyslots": [str(slot)], "epoch": epoch, "key": key}
    run("token", "import", "--json-file", "-", str(disk), key=json.dumps(token).encode())


def metadata(area: bytes, at: int = 0) -> dict[str, Any]:
    """Give the JSON of one copy of the header."""
    size = int.from_bytes(area[at + 8 : at + 16], "big")
    found = json.loads(area[at + 4096 : at + size].rstrip(b"\0"))
    assert isinstance(found, dict)
    return found


def with_text(area: bytes, text: bytes, *, copies: Sequence[int] = (0, 1)) -> bytes:
    """Put this JSON text into copies of the header, with checksums that are right: anybody can."""
    changed = bytearray(area)
    size = int.from_bytes(area[8:16], "big")
    for copy in copies:
        at = copy * size
        changed[at + 4096 : at + size] = text.ljust(size - 4096, b"\0")
        seal(changed, at, size)
    return bytes(changed)


def seal(area: bytearray, at: int, size: int = HEADER) -> None:
    """Compute the checksum of a copy of the header."""
    area[at + 448 : at + 512] = bytes(64)
    area[at + 448 : at + 512] = hashlib.sha256(area[at : at + size]).digest().ljust(64, b"\0")


def edited(area: bytes, edit: Callable[[dict[str, Any]], object]) -> bytes:
    """Change the metadata of both copies."""
    document = metadata(area)
    edit(document)
    return with_text(area, json.dumps(document).encode())


def put(disk: Path, area: bytes) -> Path:
    """Write the beginning of a disk."""
    with disk.open("r+b") as file:
        file.write(area)
    return disk


class Trial(Cryptsetup):
    """The real program, but that opening only tries the key: this needs no device mapper.

    `opened` is what the kernel would have. The mapping itself is tried in a virtual machine.
    """

    def __init__(self, *, cipher: str = "aes-xts-plain64") -> None:
        super().__init__()
        self.opened: dict[str, str] = {}
        self._cipher = cipher

    @override
    def open(self, header: MemoryFile, device: Path, name: str, key: bytes) -> None:
        self._open(header, key, "--test-passphrase", "--header", header.path, str(device))
        document = metadata(Path(f"/proc/self/fd/{header.descriptor}").read_bytes())
        sector = int(document["segments"]["0"]["offset"]) // 512
        self.opened[name] = f"0 100 crypt {self._cipher} :64:logon:x 0 {device} {sector} 1 sector_size:4096"

    @override
    def close(self, name: str) -> None:
        del self.opened[name]

    @override
    def tables(self) -> str:
        return "\n".join(f"{name}: {table}" for name, table in self.opened.items()) or "No devices found"


@dataclass
class Kms:
    """Releases disk keys of its epochs, as far as they are not over."""

    current: int = 1
    over: set[int] = field(default_factory=set)
    asked: list[list[int | None]] = field(default_factory=list)

    def fetch(self, keys: Sequence[KeyRequest]) -> Payload:
        self.asked.append([key.epoch for key in keys])
        if self.over.intersection(key.epoch for key in keys):
            raise Refused(Problem(status=403, code="epoch-unavailable", reasons=("epoch-unavailable",)))
        released = [
            ReleasedKey(
                name=key.name,
                scope=key.scope,
                epoch=None if key.name.kind in DSTACK_KINDS else epoch,
                value=key_of(epoch),
            )
            for key in keys
            for epoch in [key.epoch or self.current]
        ]
        return Payload(release_id="r", app_id=AppId(b"\xa1" * 20), keys=tuple(released), identity=bytes(32))

    def newest_epoch(self) -> int | None:
        return self.current


def volume(
    disk: Path, *, format_blank: bool = False, rotate: bool = True, key: KeyRequest = DISK
) -> VolumeConfig:
    return VolumeConfig(name="data", device=disk, key=key, format_blank=format_blank, rotate=rotate)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded(Device):
    """A device that keeps what was written to it: places and bytes, and None for each sync."""

    log: list[tuple[int, bytes] | None]

    @override
    def write(self, offset: int, data: bytes) -> None:
        self.log.append((offset, data))
        Device.write(self, offset, data)

    @override
    def sync(self) -> None:
        self.log.append(None)
        Device.sync(self)
