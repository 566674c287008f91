"""Every way to change one place of some bytes."""

from collections.abc import Iterator, Sequence

SIGNATURE_LENGTH = 144  # R and S of a report, 72 bytes each


def bit_flips(data: bytes, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Give each single-bit flip of the bytes from `start` to before `end`, with its place."""
    yield from byte_changes(data, start, end, masks=[1 << bit for bit in range(8)])


def byte_changes(
    data: bytes, start: int, end: int | None = None, *, masks: Sequence[int]
) -> Iterator[tuple[int, bytes]]:
    """Give the data with one byte changed by each mask in turn, with its place."""
    for place in range(start, len(data) if end is None else end):
        for mask in masks:
            changed = bytearray(data)
            changed[place] ^= mask
            yield place, bytes(changed)
