"""Whose turn is it: waiting fetches are served in turn by address, not in the order of their arrival.

Otherwise one address that asks for a thousand invented chips would make everybody else wait behind them.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Final, Generic, TypeVar

MOST_LINES: Final = 16  # in which one item stands

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
        """Put an item at the end of an address's line, unless it stands there or in enough others."""
        addresses = self._addresses.setdefault(item, [])
        if address not in addresses and len(addresses) < MOST_LINES:
            addresses.append(address)
            self._lines.setdefault(address, {})[item] = None

    def remove(self, item: Item) -> None:
        """Take an item out of every line."""
        for address in self._addresses.pop(item, ()):
            line = self._lines[address]
            del line[item]
            if not line:
                del self._lines[address]

    def lines(self) -> Iterator[tuple[str, Iterator[Item]]]:
        """Give the lines in the order of their turns. The queue must not change meanwhile."""
        for address, line in self._lines.items():
            yield address, iter(line)

    def served(self, address: str) -> None:
        """Put an address behind all others."""
        if address in self._lines:
            self._lines.move_to_end(address)

    def ahead_of(self, item: Item) -> int:
        """Give about how many turns come before an item's, by the first line in which it stands."""
        addresses = self._addresses.get(item)
        if not addresses:
            return 0
        position = list(self._lines[addresses[0]]).index(item)
        # Every other line has a turn before each of ours; one turn less, if it comes later in the round.
        before = True
        ahead = position
        for address, line in self._lines.items():
            if address == addresses[0]:
                before = False
            else:
                ahead += min(len(line), position + before)
        return ahead
