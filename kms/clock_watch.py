"""Notices that this machine's clock leapt, where nobody else's clock is there to compare it with.

A decision carries its time, certificates and challenges are judged by it: with a clock that is an hour off,
nobody could say later when anything was decided. So a leap stops the record until the clock is back, or has
shown the new time for so long that the leap was a correction.
"""

import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

import structlog

from kms.ports import Clock

_log = structlog.get_logger("kms.clock")

MOST: Final = timedelta(minutes=2)  # what a clock that is kept right is never moved by at once
BELIEVED_AFTER: Final = 600.0  # seconds


def since_boot() -> float:
    """Give seconds since the machine started, those that it slept included (clock_gettime(2))."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class ClockWatch:
    """Compares the clock with what cannot leap. `elapsed` gives seconds."""

    def __init__(self, clock: Clock, *, elapsed: Callable[[], float] = since_boot) -> None:
        self._clock = clock
        self._elapsed = elapsed
        self._started_at = self._start()
        self._leapt: tuple[datetime, float] | None = None  # what the start would have been, and since when

    def leapt(self) -> bool:
        """Say whether the clock shows another time than it did, and not for long yet."""
        start, elapsed = self._start(), self._elapsed()
        if abs(start - self._started_at) <= MOST:
            self._leapt = None
            return False
        if self._leapt is None or abs(start - self._leapt[0]) > MOST:
            _log.error("clock-leapt", seconds=round((start - self._started_at).total_seconds()))
            self._leapt = start, elapsed
        if elapsed - self._leapt[1] < BELIEVED_AFTER:
            return True
        _log.warning("clock-believed", seconds=round((start - self._started_at).total_seconds()))
        self._started_at, self._leapt = start, None
        return False

    def _start(self) -> datetime:
        return self._clock() - timedelta(seconds=self._elapsed())
