"""Answers at once for a Vault that keeps failing, so that nobody queues up in front of it."""

import time
from collections.abc import Callable
from typing import Final

from kms.errors import RootKeyUnavailable

_FAILURES: Final = 3  # in a row; one lost connection is no outage
_LOOK_EVERY: Final = 1.0  # seconds


class Breaker:
    """Open after some failures in a row; closed by the first success.

    While it is open, one caller a second goes through to look, even where the one before has no answer yet: a
    call that hangs until its time is over must not hold back the one that would find Vault well again.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._last: RootKeyUnavailable | None = None
        self._next_look = 0.0

    def check(self) -> None:
        """Let the caller go on to Vault, or raise what the last one met there (`RootKeyUnavailable`)."""
        if self._last is None or self._failures < _FAILURES:
            return
        if self._clock() < self._next_look:
            raise _again(self._last)
        self._next_look = self._clock() + _LOOK_EVERY

    def succeeded(self) -> None:
        """Vault answered."""
        self._failures = 0
        self._last = None

    def failed(self, failure: RootKeyUnavailable) -> None:
        """Vault did not answer, or serves nobody."""
        self._failures += 1
        # Not the error itself: what it was raised with would stay in memory with it, tokens and all.
        self._last = _again(failure)
        if self._failures == _FAILURES:
            self._next_look = self._clock() + _LOOK_EVERY


def _again(failure: RootKeyUnavailable) -> RootKeyUnavailable:
    return RootKeyUnavailable(failure.detail, reason=failure.reason, retry_after=failure.retry_after)
