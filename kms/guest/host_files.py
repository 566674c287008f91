"""Reading what the host delivers: a share or a device may hold anything, of any length, also a pipe."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from kms.errors import ConfigurationError

_PART: Final = 1 << 20


class TooLong(ConfigurationError):
    """There is more than was allowed."""


def read_parts(path: Path, *, at_most: int) -> Iterator[bytes]:
    """Read a file, or a whole block device, of at most `at_most` bytes, in parts of at most 1 MiB.

    Raises:
        TooLong: it is longer.
        ConfigurationError: it cannot be read, or is something else, such as a pipe without a writer.

    """
    try:
        # O_NONBLOCK: opening a pipe must not hang the boot.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            mode = os.fstat(descriptor).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
                raise ConfigurationError(f"{path} is neither a file nor a block device")
            length = 0
            while part := file.read(_PART):
                length += len(part)
                if length > at_most:
                    raise TooLong(f"{path} is longer than {at_most} bytes")
                yield part
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error
