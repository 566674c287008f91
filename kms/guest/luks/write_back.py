"""Bringing a changed header back to the disk, so that a power cut at any moment leaves one that opens.

What is changed is a copy in memory. Of it are written: of the key slots area the blocks that differ, then the
second copy of the header, then the first, each on the disk before the next is begun. A torn copy has
a wrong checksum, and the other one counts (LUKS2 On-Disk Format Specification 1.1.4, section 4.5); the newer
second copy counts over the older first one by its sequence number.

What the caller must keep to: the disk is still as it was when the copy was made, and `cryptsetup` is kept
from it; a change that adds a key slot writes where the old header has none, and one that removes a key slot
is a change of its own, after the first is on the disk.
"""

from collections.abc import Iterator
from itertools import groupby
from typing import Final, Protocol

from kms.guest.luks.header import CheckedHeader

_BLOCK: Final = 4096  # bytes: what is compared and written as a whole


class Writer(Protocol):
    """A device to write to (`kms.guest.luks.device.Device`)."""

    def write(self, offset: int, data: bytes) -> None:
        """Write all of `data`."""
        ...

    def sync(self) -> None:
        """Have what was written on the disk."""
        ...


def write_back(writer: Writer, before: bytes, after: bytes, *, header_size: int) -> None:
    """Make the disk's beginning, which is `before`, into `after`, which is as long.

    `header_size` is the length of one copy of the header, in bytes.
    """
    for offset, data in _differing(before, after, 2 * header_size):
        writer.write(offset, data)
    writer.sync()
    # Each copy whole, as it has one checksum over all of it.
    for offset in (header_size, 0):
        writer.write(offset, after[offset : offset + header_size])
        writer.sync()


def repair(writer: Writer, header: CheckedHeader) -> None:
    """Make both copies of the header the one that counts, as `cryptsetup` does when it opens a volume."""
    if header.raw != header.image:
        write_back(writer, header.raw, header.image, header_size=header.size)


def _differing(before: bytes, after: bytes, start: int) -> Iterator[tuple[int, bytes]]:
    """Give each run of blocks from `start` on that differ, with its offset."""
    changed = [
        offset
        for offset in range(start, len(after), _BLOCK)
        if before[offset : offset + _BLOCK] != after[offset : offset + _BLOCK]
    ]
    for _, run in groupby(enumerate(changed), key=lambda each: each[1] - each[0] * _BLOCK):
        offsets = [offset for _, offset in run]
        yield offsets[0], after[offsets[0] : offsets[-1] + _BLOCK]
