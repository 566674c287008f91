"""A block device, or a file in place of one, read and written at offsets."""

import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from kms.guest.luks.errors import DiskFailed
from kms.guest.luks.locks import cryptsetup_lock, lock


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """An open device. `path` has no links in it, `size` is in bytes.

    `number` is that of a block device as the device mapper writes it (``254:16``); None for a file.
    """

    path: Path
    descriptor: int
    size: int
    number: str | None

    def read(self, offset: int, length: int) -> bytes:
        """Read up to `length` bytes; fewer only at the device's end. Raises `DiskFailed`."""
        parts: list[bytes] = []
        end = offset + length
        try:
            while part := os.pread(self.descriptor, end - offset, offset):
                parts.append(part)
                offset += len(part)
        except OSError as error:
            raise _failed(self.path, "read", error) from error
        return b"".join(parts)

    def write(self, offset: int, data: bytes) -> None:
        """Write all of `data`. Raises `DiskFailed`."""
        rest = memoryview(data)
        try:
            while rest:
                written = os.pwrite(self.descriptor, rest, offset)
                rest, offset = rest[written:], offset + written
        except OSError as error:
            raise _failed(self.path, "written", error) from error

    def without_cryptsetup(self) -> AbstractContextManager[None]:
        """Keep `cryptsetup` from changing the header, on a device that was opened to write.

        Its lock of a file is the one that was taken then. Raises `DiskFailed` on entering.
        """
        return nullcontext() if self.number is None else cryptsetup_lock(self.number)

    def is_behind(self, number: str) -> bool:
        """Say whether the block device of this number is this one, or for a file the loop device over it."""
        if self.number is not None:
            return number == self.number
        try:
            backing = Path(f"/sys/dev/block/{number}/loop/backing_file").read_text("utf-8")
        except OSError:
            return False
        return backing.rstrip("\n") == str(self.path)

    def sync(self) -> None:
        """Have what was written on the disk. Raises `DiskFailed`."""
        try:
            os.fsync(self.descriptor)
        except OSError as error:
            raise _failed(self.path, "written", error) from error


@contextmanager
def open_device(path: Path, *, write: bool = False) -> Iterator[Device]:
    """Open a device, and with `write` be the only one of us at it: udev keeps away from it as well.

    Raises:
        DiskFailed: it cannot be opened, is neither a block device nor a file, or another process keeps it.

    """
    try:
        # Links are followed once: whatever /dev/disk/by-id/… points to later, this is the device.
        real = path.resolve(strict=True)
        # O_NONBLOCK: a pipe in the device's place must not hang the boot.
        descriptor = os.open(real, (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _failed(path, "opened", error) from error
    except RuntimeError as error:  # what `resolve` says before Python 3.13
        raise DiskFailed(f"{path} cannot be opened: its links go round", reason="disk-unusable") from error
    try:
        status = os.fstat(descriptor)
        if not (stat.S_ISBLK(status.st_mode) or stat.S_ISREG(status.st_mode)):
            raise DiskFailed(f"{path} is no block device", reason="not-a-disk")
        if write:
            lock(descriptor, path)
        is_block = stat.S_ISBLK(status.st_mode)
        yield Device(
            path=real,
            descriptor=descriptor,
            size=os.lseek(descriptor, 0, os.SEEK_END),
            number=f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}" if is_block else None,
        )
    finally:
        os.close(descriptor)


def _failed(path: Path, done: str, error: OSError) -> DiskFailed:
    return DiskFailed(f"{path} cannot be {done}: {error.strerror}", reason="disk-unusable")
