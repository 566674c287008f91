"""Token buckets by key: how often whoever the key names may do something."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

_MOST_KEYS: Final = 100_000
_SECOND: Final = 1_000_000_000  # nanoseconds


class Buckets:
    """A token bucket for each key. `monotonic` gives seconds.

    Each bucket is one number: the time at which it would be full again (GCRA), in whole nanoseconds, because
    rounding would cost tokens. The oldest keys are forgotten first, which only gives them a full bucket.

    What was taken is also counted until somebody asks for it (`heavy`): who shares a limit with other servers
    tells them, and charges here what was taken there.
    """

    def __init__(self, per_second: int, burst: int, monotonic: Callable[[], float]) -> None:
        self._interval = max(_SECOND // per_second, 1)
        self._burst = max(burst, 1)
        self._tolerance = self._interval * self._burst
        self._monotonic = monotonic
        self._full_at: OrderedDict[str, int] = OrderedDict()
        self._taken: dict[str, int] = {}

    def retry_after(self, key: str) -> float | None:
        """Take a token; None if there was one, else the seconds until there is one again."""
        now = self._now()
        full_at = max(self._full_at.get(key, now), now) + self._interval
        if full_at - now > self._tolerance:
            return (full_at - now - self._tolerance) / _SECOND
        self._put(key, full_at)
        self._taken[key] = self._taken.get(key, 0) + 1
        return None

    def has(self, key: str) -> bool:
        """Say whether there is a token, and take none."""
        now = self._now()
        return max(self._full_at.get(key, now), now) + self._interval - now <= self._tolerance

    def give_back(self, key: str) -> None:
        """Give back the token that `retry_after` just took: what it was taken for does not count."""
        if key in self._full_at:
            self._full_at[key] -= self._interval
        if key in self._taken:
            self._taken[key] -= 1

    def charge(self, key: str, tokens: int) -> None:
        """Take tokens that were given elsewhere, also more than there are.

        Whatever is said to have been taken, nobody waits longer than twice what a bucket needs to fill.
        """
        now = self._now()
        full_at = max(self._full_at.get(key, now), now) + tokens * self._interval
        self._put(key, min(full_at, now + 2 * self._tolerance))

    def heavy(self, part: int, most: int) -> dict[str, int]:
        """Give who took at least a `part`-th of the burst here since they were given last, and how much.

        At most `most` keys, the heaviest; the others keep their count for the next time. Who has a full
        bucket again is forgotten.
        """
        now, enough = self._now(), max(self._burst // part, 1)
        self._taken = {key: taken for key, taken in self._taken.items() if self._full_at.get(key, 0) > now}
        found = sorted(((taken, key) for key, taken in self._taken.items() if taken >= enough), reverse=True)[
            :most
        ]
        for _, key in found:
            del self._taken[key]
        return {key: taken for taken, key in found}

    def _now(self) -> int:
        return int(self._monotonic() * _SECOND)

    def _put(self, key: str, full_at: int) -> None:
        self._full_at[key] = full_at
        self._full_at.move_to_end(key)
        if len(self._full_at) > _MOST_KEYS:
            forgotten, _ = self._full_at.popitem(last=False)
            self._taken.pop(forgotten, None)
