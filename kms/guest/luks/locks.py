"""Locks on a disk, taken within half a minute: udev's, and the one that `cryptsetup` changes a header under.

They are two. udev respects a lock on the device itself (systemd, "Locking Block Device Access"); `cryptsetup`
locks a file of its own for a block device, and the file itself where a file is the disk
(lib/utils_device_locking.c).
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from kms.guest.luks.errors import DiskFailed

_FOLDER: Final = Path("/run/cryptsetup")  # DEFAULT_LUKS2_LOCK_PATH
_WITHIN: Final = 30.0  # seconds
_POLL: Final = 0.05


def lock(descriptor: int, path: Path) -> None:
    """Take the lock of an open file, called `path` in the error. Raises `DiskFailed`: another has it."""
    end = time.monotonic() + _WITHIN
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise DiskFailed(f"another process keeps {path} locked", reason="disk-busy") from None
            time.sleep(_POLL)
        else:
            return


@contextmanager
def cryptsetup_lock(number: str) -> Iterator[None]:
    """Keep `cryptsetup` from the header of a block device, whose number is written ``254:16``.

    Raises:
        DiskFailed: it is not to be had.

    """
    path = _FOLDER / f"L_{number}"
    while True:
        descriptor = _open(path)
        try:
            lock(descriptor, path)
            # Who has the lock removes the file, and one that has no name any more keeps nobody away.
            if not _is_at(path, descriptor):
                continue
            try:
                yield
            finally:
                with suppress(OSError):
                    path.unlink()
            return
        finally:
            os.close(descriptor)


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)  # DEFAULT_LUKS2_LOCK_DIR_PERMS
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise DiskFailed(f"{path} cannot be opened: {error.strerror}", reason="disk-unusable") from error


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False
