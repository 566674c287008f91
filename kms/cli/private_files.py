"""Reading files that hold what only their owner may know: operators' tokens and signing keys."""

import os
import stat
from pathlib import Path
from typing import Final

from kms.cli.output import Unreadable
from kms.errors import ConfigurationError

_FOREIGN_BITS: Final = 0o077
_AT_MOST: Final = 64 << 10  # bytes


def read_private(path: Path, *, what: str) -> bytes:
    """Read a file that nobody but its owner can read; `what` names it in messages.

    Raises:
        Unreadable: it cannot be read, or is too long to be what it should be.
        ConfigurationError: others can read or replace what is in it.

    """
    try:
        # The mode is that of the file that is read: what the path names may be another a moment later.
        # Not blocking: a pipe in its place would hang the command.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Unreadable(f"{path}: not a regular file")
            mode = stat.S_IMODE(status.st_mode)
            if mode & _FOREIGN_BITS:
                raise ConfigurationError(
                    f"{path}: others than its owner can use this {what} (its mode is {mode:04o})",
                    remedy=f"chmod 600 {path}; if others could read it until now, replace the {what}",
                )
            data = file.read(_AT_MOST + 1)
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from error
    if len(data) > _AT_MOST:
        raise Unreadable(f"{path}: longer than any {what}")
    return data
