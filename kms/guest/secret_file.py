"""Writing keys to a file: new, 0600, and in memory unless the caller insists."""

import os
from pathlib import Path
from typing import Final

from kms.errors import ConfigurationError

_IN_MEMORY: Final = frozenset({"tmpfs", "ramfs"})
_MOUNTS: Final = Path("/proc/self/mountinfo")


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
        _require_memory(path, folder.st_dev)


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
                _require_memory(path, os.fstat(descriptor).st_dev)
            file.write(secret)
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise ConfigurationError(f"{path}: {error.strerror}") from error
        raise


def _require_memory(path: Path, device: int) -> None:
    if _file_system(device) not in _IN_MEMORY:
        raise ConfigurationError(
            f"{path} is on a disk, where a key outlives the guest",
            remedy="write to a tmpfs (/run, /dev/shm), or say --allow-disk",
        )


def _file_system(device: int) -> str | None:
    """Give the type of the mounted file system with this device number; None when it cannot be told."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = _MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        # proc_pid_mountinfo(5): id parent major:minor root point options [optional]... - type source options
        mount, dash, kind = line.partition(" - ")
        fields = mount.split(" ")
        if dash and len(fields) > 2 and fields[2] == wanted:
            return kind.split(" ", 1)[0]
    return None
