"""One key distribution service: what it allows now, and how it has answered lately."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from urllib.parse import urlsplit

import structlog

from kms.errors import ConfigurationError
from kms.kds.breaker import Breaker, State
from kms.kds.pace import Bucket
from kms.ports import Clock

_log = structlog.get_logger("kms.collateral")

_MOST_AT_ONCE: Final = 8
# After a 429 requests go out one at a time, for so many seconds after the hold. Else everybody who waited for
# its end would ask at once, and all but one of them would get the next 429.
_GENTLY: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointStatus:
    """What is known of a service. Times are None where there was no such thing yet, or none is in force."""

    url: str
    host: str
    breaker: State
    open_until: datetime | None
    held_until: datetime | None
    budget_left: float
    in_flight: int
    last_success: datetime | None
    last_failure: datetime | None
    last_failure_kind: str | None


class Endpoint:
    """A base URL with its breaker, its budget, and the hold that its last 429 asked for.

    Raises:
        ConfigurationError: the URL is not plain http or https.

    """

    def __init__(
        self, url: str, *, per_second: float, burst: float, clock: Clock, monotonic: Callable[[], float]
    ) -> None:
        self.url = url.rstrip("/")
        self.host = _checked_host(self.url)
        # How long a turn takes, roughly, in seconds: to say to whoever waits when to come again.
        self.spacing = 1.0 / per_second
        self._every = self.spacing
        self._clock = clock
        self._monotonic = monotonic
        self._breaker = Breaker(monotonic)
        self._bucket = Bucket(per_second, burst, monotonic)
        self._in_flight = 0
        self._held_until = -math.inf
        self._gently_until = -math.inf
        self._last_success: datetime | None = None
        self._last_failure: tuple[datetime, str] | None = None

    @property
    def shut(self) -> bool:
        """Whether its breaker is open: nobody waits for that."""
        return self._breaker.state is State.OPEN

    @property
    def delay(self) -> float:
        """Seconds that breaker, hold and budget demand, whatever is in flight."""
        return max(self._held_until - self._monotonic(), self._bucket.wait, self._breaker.opens_in, 0.0)

    @property
    def wait(self) -> float:
        """Seconds until it may be asked: 0 now, infinite until a request that is in flight has ended."""
        most = _MOST_AT_ONCE if self._monotonic() >= self._gently_until else 1
        if self._in_flight >= most or not (self._breaker.permits or self.shut):
            return math.inf
        return self.delay

    def begin(self) -> None:
        """Take a token and a place in flight: a request goes out."""
        self._bucket.take()
        self._breaker.begin()
        self._in_flight += 1

    def end(self, *, used: bool) -> None:
        """Give the place back; the token as well, if no request went out."""
        self._in_flight -= 1
        self._breaker.withdraw()
        if not used:
            self._bucket.give_back()

    def succeeded(self) -> None:
        """Take note of an answer that shows the service to be well, a 404 included."""
        self._last_success = self._clock()
        # What a 429 asked for is halved with each answer: nobody says how fast one may ask.
        self.spacing = max(self.spacing / 2, self._every)
        if self._breaker.succeed():
            _log.info("kds-breaker-closed", host=self.host)

    def failed(self, kind: str) -> None:
        """Take note of a failure."""
        self._last_failure = (self._clock(), kind)
        if self._breaker.fail():
            _log.warning("kds-breaker-opened", host=self.host, failure=kind)

    def hold(self, seconds: float) -> None:
        """Send nothing more until so many seconds have passed."""
        until = self._monotonic() + seconds
        if until > self._held_until:
            _log.warning("kds-throttled", host=self.host, seconds=round(seconds, 1))
            self._held_until = until
            self._gently_until = until + _GENTLY
            self.spacing = max(seconds, self._every)

    def status(self) -> EndpointStatus:
        """Describe it, for operators."""
        now = self._monotonic()
        failed_at, kind = self._last_failure or (None, None)
        return EndpointStatus(
            url=self.url,
            host=self.host,
            breaker=self._breaker.state,
            open_until=self._moment(self._breaker.opens_in),
            held_until=self._moment(self._held_until - now),
            budget_left=round(self._bucket.left, 3),
            in_flight=self._in_flight,
            last_success=self._last_success,
            last_failure=failed_at,
            last_failure_kind=kind,
        )

    def _moment(self, seconds: float) -> datetime | None:
        return None if seconds <= 0 else self._clock() + timedelta(seconds=seconds)


def _checked_host(url: str) -> str:
    remedy = "write base URLs as https://HOST[:PORT][/PATH]"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ConfigurationError("a key distribution service's URL is none", remedy=remedy) from None
    # Plain http is as good: what is answered carries AMD's signatures, and is verified before it is kept.
    if parts.scheme not in {"https", "http"} or not host:
        raise ConfigurationError("a key distribution service's URL is not http or https", remedy=remedy)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigurationError(
            "a key distribution service's URL has a user, query or fragment", remedy=remedy
        )
    return host if port is None else f"{host}:{port}"
