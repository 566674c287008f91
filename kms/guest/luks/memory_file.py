"""Files that are in memory only, for a program that this process starts: headers and keys."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MemoryFile:
    """A file without a name, gone when nobody has it open. A child process finds it under `path`."""

    descriptor: int

    @property
    def path(self) -> str:
        """Its path in a process that inherits the descriptor."""
        return f"/proc/self/fd/{self.descriptor}"

    @property
    def size(self) -> int:
        """Its length now, in bytes."""
        return os.fstat(self.descriptor).st_size


@contextmanager
def memory_file(content: bytes) -> Iterator[MemoryFile]:
    """Give a file with this content; afterwards it is overwritten with zeros."""
    descriptor = os.memfd_create("attested-kms", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield MemoryFile(descriptor)
    finally:
        os.pwrite(descriptor, bytes(os.fstat(descriptor).st_size), 0)
        os.close(descriptor)
