"""The order of recording: every place up to the checkpoint's was given, and what it was given to is there.

The tree only knows what was taken into it. An entry that was promised to a guest and removed before the next
checkpoint leaves a place at which there is nothing.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Final

_PAGE: Final = 4096  # places in one integer of bits: a million places are 128 kB, wherever they are


class Places:
    """Finds the places at which nothing is recorded, among 1 to `last`."""

    def __init__(self, last: int) -> None:
        self.last = last
        self._before = 0
        self._pages: defaultdict[int, int] = defaultdict(int)

    def take(self, place: int) -> None:
        """Take the place of something that is recorded."""
        if 1 <= place <= self.last:
            self._pages[place // _PAGE] |= 1 << place % _PAGE

    def follows(self, place: int) -> bool:
        """Say whether the place of a leaf is after that of the leaf before it."""
        before, self._before = self._before, place
        return place > before

    def empty(self) -> Iterator[tuple[int, int]]:
        """Give the ranges of places (first, last) at which there is nothing."""
        expected = 1
        for place in self._taken():
            if place > expected:
                yield expected, place - 1
            expected = place + 1
        if expected <= self.last:
            yield expected, self.last

    def _taken(self) -> Iterator[int]:
        for page, bits in sorted(self._pages.items()):
            yield from (page * _PAGE + offset for offset in range(_PAGE) if bits >> offset & 1)
