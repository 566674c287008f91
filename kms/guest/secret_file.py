"""Writing keys to a file: new, 0600, and in memory unless the caller insists."""

import logging
import os
from pathlib import Path
from typing import Final

from kms.errors import ConfigurationError
from kms.guest.mounts import read_mounts

_IN_MEMORY: Final = frozenset({"tmpfs", "ramfs"})
_MOUNTS: Final = Path("/proc/self/mountinfo")
_SWAPS: Final = Path("/proc/swaps")
_log: Final = logging.getLogger(__name__)


def check_place(path: Path, *, allow_disk: bool) -> None:
    """Check that keys may be written to `path`, before anybody is asked for them.

    Raises:
        ConfigurationError: something is there already, its folder cannot be used, or is on a disk.

    """
    try:
        folder = path.parent.stat()
        exists = path.is_symlink() or path.exists()
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error
    if exists:
        raise ConfigurationError(f"{path} exists", remedy="a key file is never replaced: remove it first")
    if not allow_disk:
        require_memory(path, folder.st_dev)


def write_secret(path: Path, secret: bytes, *, allow_disk: bool) -> None:
    """Write a new file, readable by this user only; a part of one never stays behind.

    Raises:
        ConfigurationError: as `check_place`, or it cannot be written.

    """
    check_place(path, allow_disk=allow_disk)
    try:
        # O_EXCL does not follow links: nobody can have the key written to a place of their choice.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            if not allow_disk:
                # Again, of the file itself: the folder may have been another a moment ago.
                require_memory(path, os.fstat(descriptor).st_dev)
            file.write(secret)
        warn_of_swap(path)
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise ConfigurationError(f"{path}: {error.strerror}") from error
        raise


def require_memory(
    path: Path,
    device: int,
    *,
    why: str = "where a key outlives the guest",
    remedy: str = "write to a tmpfs (/run, /dev/shm), or say --allow-disk",
) -> None:
    """Refuse a place that is not in memory; `device` is `st_dev` of the file, or of the folder it will be in.

    Raises:
        ConfigurationError: it is on a disk, or nobody can tell.

    """
    if _mounted(device)[0] not in _IN_MEMORY:
        raise ConfigurationError(f"{path} is on a disk, {why}", remedy=remedy)


def warn_of_swap(path: Path) -> None:
    """Say in the log that what is in `path` may be written to a swap device, if it may."""
    kind, options = _mounted(path.stat().st_dev)
    if kind != "tmpfs" or "noswap" in options:
        return
    try:
        lines = _SWAPS.read_text(encoding="utf-8", errors="replace").splitlines()[1:]
    except OSError:  # a kernel without swap
        return
    # zram is in memory too.
    devices = [line.split()[0] for line in lines if line.strip() and not line.startswith("/dev/zram")]
    if devices:
        _log.warning(
            "%s may be written to swap (%s), which outlives the guest unless it is encrypted with a key of"
            " its own: turn it off, or mount the tmpfs with noswap",
            path,
            ", ".join(devices),
        )


def _mounted(device: int) -> tuple[str | None, frozenset[str]]:
    """Give type and options of the file system with this device number; None when it cannot be told."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        listed = _MOUNTS.read_text(encoding="utf-8", errors="replace")
    except OSError:
        listed = ""
    for mount in read_mounts(listed):
        if mount.device == wanted:
            return mount.kind, mount.options
    return None, frozenset()
