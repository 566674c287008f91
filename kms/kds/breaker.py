"""A circuit breaker: a service that fails again and again is left alone for a while, then tried once."""

from collections.abc import Callable
from enum import StrEnum
from typing import Final

FAILURES: Final = 5
OPEN_FOR: Final = 60.0  # seconds


class State(StrEnum):
    """Closed: requests pass. Open: none does. Half-open: one passes, and decides."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """Opens after `FAILURES` failures in a row, for `OPEN_FOR` seconds; then one probe closes or opens it.

    `monotonic` gives seconds.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._failures = 0
        self._opened_at: float | None = None
        self._probing = False

    @property
    def state(self) -> State:
        """The state now."""
        if self._opened_at is None:
            return State.CLOSED
        return State.OPEN if self.opens_in > 0 else State.HALF_OPEN

    @property
    def opens_in(self) -> float:
        """Seconds until a probe may pass; 0 unless it is open."""
        if self._opened_at is None:
            return 0.0
        return max(0.0, self._opened_at + OPEN_FOR - self._monotonic())

    @property
    def permits(self) -> bool:
        """Whether a request may pass now."""
        match self.state:
            case State.CLOSED:
                return True
            case State.HALF_OPEN:
                return not self._probing
            case State.OPEN:
                return False

    def begin(self) -> None:
        """Take note that a request passes."""
        self._probing = self.state is State.HALF_OPEN

    def withdraw(self) -> None:
        """Take note that a request ended and said nothing about the service: another may probe it."""
        self._probing = False

    def succeed(self) -> bool:
        """Take note of an answer; say whether that closed the breaker."""
        closed = self._opened_at is not None
        self._failures, self._opened_at, self._probing = 0, None, False
        return closed

    def fail(self) -> bool:
        """Take note of a failure; say whether that opened the breaker."""
        probed, self._probing = self._probing, False
        if self._opened_at is not None:
            # Requests that passed before it opened change nothing any more; a probe that fails does.
            if probed:
                self._opened_at = self._monotonic()
            return probed
        self._failures += 1
        if self._failures < FAILURES:
            return False
        self._opened_at = self._monotonic()
        return True
