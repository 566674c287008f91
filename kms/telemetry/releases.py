"""Following releases: how long each step takes, and how they end. Implements `kms.ports.Progress`.

On the way of every release, so it is some appends and sums; what costs more happens at the end.
"""

from time import perf_counter_ns, time_ns
from typing import Final, Protocol

import structlog

from kms.ports import Step
from kms.snp.product import Product
from kms.telemetry.metrics import Metrics
from kms.telemetry.reasons import OTHER, REFUSAL_REASONS, known

_log = structlog.get_logger("kms.telemetry")

UNKNOWN_PRODUCT: Final = "unknown"
_NANOSECONDS: Final = 1e-9
# Counted from the first scrape on, as 0: a rate needs a value before the first one.
_EXPECTED: Final = (
    *("evidence-untrusted", "measurement-unknown", "policy-denied", "epoch-unavailable"),
    "collateral-unavailable",
)
_MOST_CODES: Final = 64

# A step and when it began, in nanoseconds of `perf_counter_ns`.
Mark = tuple[Step, int]


class Spans(Protocol):
    """Who makes spans of a release that has ended."""

    def release(
        self, release_id: str, marks: list[Mark], ended: tuple[int, int], code: str | None, product: str
    ) -> None:
        """Take the steps; `ended` is (`perf_counter_ns`, nanoseconds since 1970) of the end."""
        ...


class Releases:
    """What all releases have in common: the metrics, resolved once, and who makes spans, if anybody does."""

    def __init__(self, metrics: Metrics, spans: Spans | None = None) -> None:
        products = [*(each.value for each in Product), UNKNOWN_PRODUCT]
        self.spans = spans
        self._metrics = metrics.releases
        self._steps = metrics.releases.steps
        self._released = {each: self._metrics.released.labels(each) for each in products}
        self._refused = {
            (code, each): self._metrics.refused.labels(code, each) for code in _EXPECTED for each in products
        }
        self._reasons = {each: self._metrics.reasons.labels(each) for each in ("measurement-unknown", OTHER)}

    def follow(self, release_id: str) -> "FollowedRelease":
        """Follow one; for `ReleaseDesk.follow`."""
        return FollowedRelease(self, release_id)

    def count(
        self, marks: list[Mark], ended: int, code: str | None, product: str, reasons: tuple[str, ...]
    ) -> None:
        """Count one that has ended. A step that was begun again adds up."""
        spent: dict[Step, int] = {}
        until = ended
        for step, began in reversed(marks):
            spent[step] = spent.get(step, 0) + until - began
            until = began
        for step, nanoseconds in spent.items():
            self._steps[step].observe(nanoseconds * _NANOSECONDS)
        if code is None:
            self._released[product].inc()
            return
        refused = self._refused.get((code, product))
        if refused is None:
            if len(self._refused) >= _MOST_CODES * len(self._released):
                code = OTHER
            refused = self._refused[code, product] = self._metrics.refused.labels(code, product)
        refused.inc()
        for reason in reasons:
            label = known(reason, REFUSAL_REASONS)
            counted = self._reasons.get(label)
            if counted is None:
                counted = self._reasons[label] = self._metrics.reasons.labels(label)
            counted.inc()


class FollowedRelease:
    """One release. What goes wrong here is logged and never becomes the guest's problem."""

    __slots__ = ("_id", "_marks", "_of")

    def __init__(self, of: Releases, release_id: str) -> None:
        self._of = of
        self._id = release_id
        self._marks: list[Mark] = []

    def at(self, step: Step) -> None:
        """Note that a step begins."""
        self._marks.append((step, perf_counter_ns()))

    def end(self, code: str | None, product: Product | None, reasons: tuple[str, ...]) -> None:
        """Note how it ended."""
        ended = perf_counter_ns()
        name = UNKNOWN_PRODUCT if product is None else product.value
        try:
            self._of.count(self._marks, ended, code, name, reasons)
            if self._of.spans is not None:
                self._of.spans.release(self._id, self._marks, (ended, time_ns()), code, name)
        except Exception as error:  # noqa: BLE001 -- the keys on their way are recorded already
            _log.error("release-not-measured", exc_info=error)
