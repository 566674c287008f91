"""The limit of all addresses together: those that took much are refused first."""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from kms.addresses import network_of
from kms.errors import RateLimited

TOTAL_RATE_LIMITED: Final = "total-rate-limited"
_MOST_NETWORKS: Final = 100_000


@dataclass(slots=True)
class _Meter:
    """What a network took lately; it fades."""

    level: float
    at: float


class TotalLimit:
    """A token bucket that all share, and that strangers keep nobody from. `monotonic` gives seconds.

    Taking first come, first served, a flood would have every token. So a network is only served while it took
    no more lately than what is left for all ("lately" fades over the time in which the empty bucket fills):
    of n that flood, each gets an n-th, and who takes less than that is always served. Only networks without
    number, each with a request or two, can use it up; then everybody has to come again.
    """

    def __init__(self, per_second: int, burst: int, monotonic: Callable[[], float]) -> None:
        self._per_second = per_second
        self._burst = float(max(burst, 1))
        self._fades_within = self._burst / per_second
        self._monotonic = monotonic
        self._left = self._burst
        self._at = monotonic()
        self._meters: OrderedDict[str, _Meter] = OrderedDict()

    def take(self, address: str) -> None:
        """Take a token.

        Raises:
            RateLimited: this network took too much lately for what is left.

        """
        now = self._monotonic()
        self._left = min(self._left + (now - self._at) * self._per_second, self._burst)
        self._at = now
        network = network_of(address)
        meter = self._meters.get(network) or _Meter(0.0, now)
        taken = meter.level * math.exp((meter.at - now) / self._fades_within)
        if taken + 1 > self._left:
            raise RateLimited(
                "all addresses together ask too often",
                reason=TOTAL_RATE_LIMITED,
                retry_after=math.ceil(self._fades_within * (1 - self._left / (taken + 1))),
            )
        self._left -= 1
        self._meters[network] = _Meter(taken + 1, now)
        self._meters.move_to_end(network)
        if len(self._meters) > _MOST_NETWORKS:
            self._meters.popitem(last=False)
