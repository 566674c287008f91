"""Revocation lists are renewed before guests would have to wait for them."""

from collections.abc import Callable
from typing import Final

from kms.kds.fetching import Attempt, Fetches
from kms.kds.memory import Memory
from kms.ports import Clock
from kms.snp.kds_paths import Line, RevocationListOf

OURSELVES: Final = "the server"  # no address: the share of nobody else

# Seconds, each a range from which one is drawn, so that many servers do not ask at the same moment.
_AFTER_START: Final = (0.0, 600.0)
_EVERY: Final = (0.9 * 24 * 3600, 24 * 3600.0)
_AFTER_FAILURE: Final = (600.0, 1200.0)
_WHEN_PAST: Final = (60.0, 120.0)
_BEFORE_NEXT_UPDATE: Final = (1800.0, 3600.0)


class Renewals:
    """Begins a fetch of each line's list about daily, and shortly before the next update that it names.

    The lines are those of stored lists, and those of which a guest needed one (`saw`).
    """

    def __init__(
        self,
        fetches: Fetches,
        memory: Memory,
        clock: Clock,
        monotonic: Callable[[], float],
        random: Callable[[], float],
    ) -> None:
        self._fetches = fetches
        self._memory = memory
        self._clock = clock
        self._monotonic = monotonic
        self._random = random
        self._seen: set[Line] = set()
        # When to ask next, and after which attempt that was planned.
        self._plans: dict[Line, tuple[Attempt | None, float]] = {}

    def saw(self, line: Line) -> None:
        """Take note that a guest needs the list of a line."""
        self._seen.add(line)

    def begin_what_is_due(self) -> None:
        """Begin, or keep alive, the fetches that are due. It does not wait for them."""
        for line in self._seen | self._memory.lines_with_lists():
            attempt = self._fetches.attempts.get(line)
            plan = self._plans.get(line)
            if plan is None or plan[0] is not attempt:
                plan = self._plans[line] = (attempt, self._next(line, attempt))
            if plan[1] <= self._monotonic():
                self._fetches.begin(RevocationListOf(line), OURSELVES)

    def _next(self, line: Line, attempt: Attempt | None) -> float:
        now = self._monotonic()
        left = self._seconds_left(line)
        if left <= 0:
            return now if attempt is None else attempt.at + self._draw(_WHEN_PAST)
        if attempt is None:
            wait = self._draw(_AFTER_START)
        elif attempt.good:
            wait = self._draw(_EVERY)
        else:
            wait = self._draw(_AFTER_FAILURE)
        # Not at once again for a list that is about to end already when it comes.
        soon = max(left - self._draw(_BEFORE_NEXT_UPDATE), self._draw(_WHEN_PAST))
        return min((now if attempt is None else attempt.at) + wait, now + soon)

    def _seconds_left(self, line: Line) -> float:
        """Give the seconds until the next update of the line's lists; a list that names none has a day."""
        now = self._clock()
        ends = [each.list.next_update for each in self._memory.lists_of(line)]
        left = [(end - now).total_seconds() for end in ends if end is not None]
        return max(left, default=_EVERY[1] if ends else 0.0)

    def _draw(self, bounds: tuple[float, float]) -> float:
        low, high = bounds
        return low + (high - low) * self._random()
