"""What can be wrong with a key distribution service: settings of the SIMULATED one, while it runs."""

import math
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from enum import StrEnum
from typing import Final

FAILURES: Final = (500, 502, 503, 504)  # the statuses of `Faults.failing`


class RetryAfter(StrEnum):
    """What a 429 says about when to come again: the two forms of RFC 9110, section 10.2.3, or nothing."""

    NONE = "none"
    SECONDS = "seconds"
    DATE = "date"


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """How the service misbehaves; by default it does not. Combined, they act in the order given here."""

    latency: float = 0.0
    """Seconds before anything is answered; an hour is a service that is silent."""
    down: bool = False
    """Every connection is reset as soon as something is asked on it."""
    failing: float = 0.0
    """The share of requests, 0 to 1, that are answered with one of `FAILURES`."""
    redirect: str | None = None
    """Every request is answered 302 to this address."""
    interval: float = 0.0
    """AMD's throttle: seconds that must pass from one answer about a VCEK to the next; until then, 429.

    AMD's service hands an address about one certificate in 10 s. An answer "404" counts: invented chip ids
    use up the throttle too.
    """
    retry_after: RetryAfter = RetryAfter.SECONDS
    """How a 429 says when to come again."""
    wrong_certificate: bool = False
    """Asked for a VCEK, it gives the genuine one of another chip at the same TCB."""
    garbage: bool = False
    """200, with bytes that are neither a certificate nor a list."""
    oversized: bool = False
    """200, with a body that never ends."""
    cut: bool = False
    """The connection ends in the middle of the body."""
    drip: float | None = None
    """Bytes of the body in a second."""

    def __post_init__(self) -> None:
        if not 0 <= self.failing <= 1 or min(self.latency, self.interval) < 0:
            raise ValueError("`failing` is a share, 0 to 1; times are not negative")
        if self.drip is not None and self.drip <= 0:
            raise ValueError("`drip` is more than 0 bytes in a second")


class Throttle:
    """At most one answer in an interval, for everybody together: all its clients have one address."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = -math.inf

    def take(self, interval: float) -> float:
        """Take the turn and give 0, or give the seconds until there is one."""
        with self._lock:
            now = time.monotonic()
            wait = self._last + interval - now
            if wait > 0:
                return wait
            self._last = now
            return 0.0


def retry_after_header(form: RetryAfter, wait: float, now: datetime) -> dict[str, str]:
    """Give the header of a 429 for a wait in seconds, rounded up to whole ones: never too early."""
    match form:
        case RetryAfter.SECONDS:
            return {"Retry-After": str(math.ceil(wait))}
        case RetryAfter.DATE:
            moment = now.astimezone(UTC) + timedelta(seconds=wait)
            if moment.microsecond:
                moment = moment.replace(microsecond=0) + timedelta(seconds=1)
            return {"Retry-After": format_datetime(moment, usegmt=True)}
        case RetryAfter.NONE:
            return {}
