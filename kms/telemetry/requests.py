"""Counting requests, as `kms.http.observing` reports them."""

from collections.abc import Iterable
from typing import Final

from prometheus_client import Counter, Histogram

from kms.telemetry.metrics import Metrics

_NONE: Final = "none"
# Counted from the first scrape on, as 0: a rate needs a value before the first one.
_LIMITS: Final = ("address", "total", "chip", "app", "server-busy")
_FAILURES: Final = (500, 503)


class Requests:
    """Counts by route template and status, and measures what has a time: the routes of a release, `timed`."""

    def __init__(self, metrics: Metrics, timed: Iterable[str]) -> None:
        self._counters = metrics.http.requests
        self._counted: dict[tuple[str | None, int | None], Counter] = {}
        self._timed: dict[str | None, Histogram] = {each: metrics.http.seconds.labels(each) for each in timed}
        for route in self._timed:
            self._begin(route)
        self._limited: dict[str | None, Counter] = {
            each: metrics.http.limited.labels(each) for each in _LIMITS
        }

    def report(
        self, route: str | None, status: int | None, seconds: float | None, limited_by: str | None
    ) -> None:
        """Count one. All but the seconds are the server's own words, so there are only so many."""
        counted = self._counted.get((route, status))
        if counted is None:
            # Of other routes there are many, most of which are never asked for.
            self._begin(route)
            counted = self._count_of(route, status)
        counted.inc()
        if seconds is not None and route in self._timed:
            self._timed[route].observe(seconds)
        if limited_by in self._limited:
            self._limited[limited_by].inc()

    def _begin(self, route: str | None) -> None:
        for status in _FAILURES:
            self._count_of(route, status)

    def _count_of(self, route: str | None, status: int | None) -> Counter:
        """Give the counter, which is there from now on."""
        counted = self._counters.labels(route or _NONE, _NONE if status is None else str(status))
        self._counted[route, status] = counted
        return counted
