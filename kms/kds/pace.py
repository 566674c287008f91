"""How often may a service be asked: budgets, what it says itself (`Retry-After`), and each address's share.

AMD's key distribution service gives an address about one certificate in 10 s, and 429 beyond that (field
lesson 15). Whoever makes us ask for what does not exist must not use that up for everybody else.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

LONGEST_HOLD: Final = 3600.0  # seconds: a service that says "next year" is asked again after this
HOLD_WITHOUT_HEADER: Final = 10.0  # AMD's throttle, as observed
_SHORTEST_HOLD: Final = 1.0
_MOST_ADDRESSES: Final = 10_000
_DIGITS: Final = 9


class Bucket:
    """A token bucket, full at first. It may be in debt: what is charged afterwards delays the next token.

    `per_second` and `burst` are positive; `monotonic` gives seconds. A debt is at most `burst` tokens.
    """

    def __init__(self, per_second: float, burst: float, monotonic: Callable[[], float]) -> None:
        self._per_second = per_second
        self._burst = burst
        self._monotonic = monotonic
        self._level = burst
        self._at = monotonic()

    @property
    def left(self) -> float:
        """The tokens that are there; negative in debt."""
        now = self._monotonic()
        self._level = min(self._burst, self._level + (now - self._at) * self._per_second)
        self._at = now
        return self._level

    @property
    def wait(self) -> float:
        """Seconds until there is a token; 0 when there is one."""
        missing = 1.0 - self.left
        # Rounding must not leave a wait too short to pass.
        return missing / self._per_second if missing > 1e-9 else 0.0

    def take(self, tokens: float = 1.0) -> None:
        """Take tokens, into debt if need be."""
        self._level = max(self.left - tokens, -self._burst)

    def give_back(self) -> None:
        """Give a token back that was not used."""
        self._level = min(self.left + 1.0, self._burst)


class Shares:
    """A bucket for each address: half of the budget of one service, for all services together.

    So one address can never use up what the others need. The addresses that were not seen for longest are
    forgotten first, which only gives them a full share again: who has that many addresses still meets the
    budget of each service, and waits in turn (`kms.kds.turns`).
    """

    def __init__(self, per_second: float, burst: float, monotonic: Callable[[], float]) -> None:
        self._per_second = per_second / 2
        self._burst = max(1.0, burst / 2)
        self._monotonic = monotonic
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def wait(self, address: str) -> float:
        """Give the seconds until this address may ask again; 0 when it may now."""
        bucket = self._buckets.get(address)
        return 0.0 if bucket is None else bucket.wait

    def take(self, address: str, tokens: float = 1.0) -> None:
        """Take tokens from an address's share, into debt if need be."""
        bucket = self._buckets.get(address)
        if bucket is None:
            bucket = self._buckets[address] = Bucket(self._per_second, self._burst, self._monotonic)
        self._buckets.move_to_end(address)
        bucket.take(tokens)
        if len(self._buckets) > _MOST_ADDRESSES:
            self._buckets.popitem(last=False)

    def give_back(self, address: str) -> None:
        """Give a token back that was not used."""
        bucket = self._buckets.get(address)
        if bucket is not None:
            bucket.give_back()


def hold_of(header: str | None, now: datetime) -> float:
    """Give the seconds for which `Retry-After` asks to be left alone (RFC 9110, section 10.2.3).

    Whole seconds or an HTTP date; at least 1 s and at most an hour. What is missing or unreadable counts as
    AMD's throttle.
    """
    text = (header or "").strip()
    seconds = HOLD_WITHOUT_HEADER
    if text.isascii() and text.isdigit():
        seconds = float(text[:_DIGITS]) if len(text) <= _DIGITS else math.inf
    elif text:
        try:
            moment = parsedate_to_datetime(text)
        except (ValueError, TypeError, OverflowError):
            moment = None
        if moment is not None:
            # A date without a zone is in UTC here: HTTP dates have no other.
            moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
            seconds = (moment - now).total_seconds()
    return min(max(seconds, _SHORTEST_HOLD), LONGEST_HOLD)
