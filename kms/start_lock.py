"""One process at a time makes or changes the files of a data folder."""

import asyncio
import fcntl
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from kms.errors import ConfigurationError

_LOCK_FILE: Final = "start.lock"
_LOCK_WITHIN: Final = 60.0  # seconds
_POLL: Final = 0.05


@asynccontextmanager
async def alone_in(data_dir: Path) -> AsyncIterator[None]:
    """Make the data folder, 0700, and be the only one who makes its files while the context lasts.

    Of two servers that start on one folder at once, the second finds what the first has made: one root key,
    one CA, one schema. The lock ends with its process, whatever ends that.

    Raises:
        ConfigurationError: the folder cannot be made or written, or another process is busy with it for long.

    """
    descriptor = _open(data_dir)
    try:
        await _lock(descriptor, data_dir)
        yield
    finally:
        os.close(descriptor)


def _open(data_dir: Path) -> int:
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(data_dir / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(
            f"the data folder {data_dir} cannot be made or written: {error.strerror}",
            remedy="set KMS_DATA_DIR to a folder that this user can write",
        ) from error


async def _lock(descriptor: int, data_dir: Path) -> None:
    end = time.monotonic() + _LOCK_WITHIN
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise ConfigurationError(
                    f"another process has been starting on the data folder {data_dir} for a minute",
                    remedy="see what holds it up, or end it",
                ) from None
            await asyncio.sleep(_POLL)
        else:
            return
