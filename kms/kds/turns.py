"""Whose turn is it: waiting fetches are served in turn by address, not in the order of their arrival.

Otherwise one address that asks for a thousand invented chips would make everybody else wait behind them.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from itertools import islice
from typing import Final, Generic, TypeVar

MOST_LINES: Final = 16  # in which one item stands; the caller keeps to it (`kms.kds.client`)
_FAR: Final = 64  # places in a line; all that are further back are alike

Item = TypeVar("Item", bound=Hashable)


class FairQueue(Generic[Item]):
    """One line for each address. Who was served goes to the end; within a line, first come, first served.

    An item may stand in the lines of several addresses: those who want the same thing. So a certificate that
    somebody asked for first, far back in a long line, comes as soon as anybody's turn has come.
    """

    def __init__(self) -> None:
        self._lines: OrderedDict[str, dict[Item, None]] = OrderedDict()
        self._addresses: dict[Item, list[str]] = {}

    def __len__(self) -> int:
        """Give the number of items."""
        return len(self._addresses)

    def __contains__(self, item: Item) -> bool:
        """Say whether an item waits."""
        return item in self._addresses

    def add(self, address: str, item: Item) -> None:
        """Put an item at the end of an address's line, unless it stands there."""
        addresses = self._addresses.setdefault(item, [])
        if address not in addresses:
            addresses.append(address)
            self._lines.setdefault(address, {})[item] = None

    def remove(self, item: Item) -> None:
        """Take an item out of every line."""
        for address in self._addresses.pop(item, ()):
            self._take(address, item)

    def leave(self, address: str, item: Item) -> None:
        """Take an item out of one line, if it stands there and in another."""
        addresses = self._addresses.get(item, [])
        if address in addresses and len(addresses) > 1:
            addresses.remove(address)
            self._take(address, item)

    def lines(self) -> Iterator[tuple[str, Iterator[Item]]]:
        """Give the lines in the order of their turns. The queue must not change meanwhile."""
        for address, line in self._lines.items():
            yield address, iter(line)

    def served(self, address: str) -> None:
        """Put an address behind all others."""
        if address in self._lines:
            self._lines.move_to_end(address)

    def before(self, address: str, item: Item) -> int:
        """Give about how many turns come before an item's, by its place in a line, or by the line's end.

        It is for comparing lines: where in the round an address's own turn is does not count.
        """
        line = self._lines.get(address, {})
        places = (place for place, each in enumerate(islice(line, _FAR)) if each == item)
        return next(places, min(len(line), _FAR)) * len(self._lines)

    def ahead_of(self, address: str, item: Item) -> int:
        """Give about how many turns come before an item's, by its place in one line; 0 if it is not there."""
        if address not in self._addresses.get(item, ()):
            return 0
        position = list(self._lines[address]).index(item)
        # Every other line has a turn before each of ours; one turn less, if it comes later in the round.
        before = True
        ahead = position
        for each, line in self._lines.items():
            if each == address:
                before = False
            else:
                ahead += min(len(line), position + before)
        return ahead

    def _take(self, address: str, item: Item) -> None:
        line = self._lines[address]
        del line[item]
        if not line:
            del self._lines[address]
