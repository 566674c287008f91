"""Shares of what there is little of, so that few networks cannot hold what is for all."""

from collections import Counter


class Shares:
    """An amount of something, of which each network may hold as much as is left free.

    So a newcomer always finds some: of one flood it finds half free, of n floods one part in n + 1. (Dynamic
    thresholds: Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998, for shared buffers.)
    """

    def __init__(self, amount: int) -> None:
        self.free = amount
        self._held: Counter[str] = Counter()

    def take(self, network: str, amount: int = 1) -> bool:
        """Take some if this network may have so much more; say whether it may."""
        if self._held[network] + amount > self.free:
            return False
        self.free -= amount
        self._held[network] += amount
        return True

    def give_back(self, network: str, amount: int = 1) -> None:
        """Give back what was taken."""
        self.free += amount
        self._held[network] -= amount
        if not self._held[network]:
            del self._held[network]
