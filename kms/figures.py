"""What is not counted but looked at, every few seconds: ages, expiries, queues and readiness as metrics."""

import asyncio
import math
import os
import resource
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

from prometheus_client import Counter
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import QueuePool

from kms import __version__
from kms.background import Background
from kms.database.collateral import CollateralDatabase
from kms.database.decisions import MOST_WAITING, DecisionStore
from kms.desk import ReleaseDesk
from kms.errors import LedgerUnavailable
from kms.http.observing import Observed
from kms.kds.breaker import State
from kms.kds.client import OUTCOMES
from kms.kds.service import CollateralService
from kms.ledger_following import FollowedLedger
from kms.policy.documents import KINDS
from kms.policy_following import FollowedPolicies
from kms.ports import Role
from kms.snp.flags import Signer
from kms.snp.kds_paths import Line
from kms.snp.product import Product
from kms.telemetry.logs import log_lines_lost
from kms.telemetry.metrics import Metrics
from kms.telemetry.reasons import NOT_READY_REASONS, OTHER, known

_EVERY: Final = 5.0  # seconds
_CERTIFICATES_EVERY: Final = 300.0  # seconds: it reads the whole store
_LEAP: Final = 5.0  # seconds
_NONE: Final = 0.0  # a time that is not there
_LINES: Final = tuple(Line(signer, product) for signer in (Signer.VCEK, Signer.VLEK) for product in Product)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What is looked at. `monotonic` gives seconds."""

    desk: ReleaseDesk
    policies: FollowedPolicies
    decisions: DecisionStore
    engine: AsyncEngine
    collateral: CollateralService
    certificates: CollateralDatabase
    ledger: FollowedLedger
    requests: Observed
    readiness: Callable[[], Awaitable[tuple[str, ...]]]
    tls_expiry: datetime
    monotonic: Callable[[], float]


class Figures:
    """Looks at the parts of a server, and sets the gauges."""

    def __init__(self, metrics: Metrics, parts: Parts) -> None:
        self._metrics = metrics
        self._parts = parts
        # How many are open, said by the listener, which comes after everything else.
        self.connections: Callable[[], int] = lambda: 0
        self._certificates_at = -math.inf
        self._sequence = 0
        self._clocks: tuple[datetime, float] | None = None
        server, collateral = metrics.server, metrics.collateral
        status = parts.collateral.status()
        look_ups = status.look_ups
        self._totals = (
            _Total(server.log_lines_lost, log_lines_lost),
            _Total(server.cpu_seconds, _processor_seconds),
            _Total(metrics.releases.not_recorded, lambda: parts.desk.stranger_budget.left_out),
            _Total(collateral.dropped, lambda: parts.collateral.status().dropped),
            _Total(collateral.lookups.labels("memory"), lambda: look_ups.memory),
            _Total(collateral.lookups.labels("store"), lambda: look_ups.store),
            _Total(collateral.lookups.labels("nowhere"), lambda: look_ups.nowhere),
        )
        server.processes.set(1)
        server.build.labels(__version__).set(1)
        server.development.set(parts.desk.development)
        server.tls_expiry.set(parts.tls_expiry.timestamp())
        metrics.database.waiting_limit.set(MOST_WAITING)
        for service in status.services:
            for outcome in OUTCOMES:
                # Counted from the first scrape on, as 0: a rate needs a value before the first one.
                collateral.kds_requests.labels(service.host, outcome)
        self._background = Background("figures", self._round)

    def start(self) -> None:
        """Start looking in the running event loop."""
        self._background.start()

    async def stop(self) -> None:
        """Stop looking."""
        await self._background.stop()

    async def _round(self) -> None:
        await self.refresh()
        await asyncio.sleep(_EVERY)

    async def refresh(self) -> None:
        """Look once."""
        now = self._parts.desk.clock()
        self._look_at_process(now)
        self._look_at_services()
        self._look_at_ledger()
        await self._look_at_readiness()
        with suppress(LedgerUnavailable):  # readiness says it
            await self._look_at_policy(now)
            await self._look_at_certificates()

    def _look_at_process(self, now: datetime) -> None:
        metrics, parts = self._metrics, self._parts
        for total in self._totals:
            total.look()
        metrics.http.in_flight.set(parts.requests.in_flight)
        metrics.http.connections.set(self.connections())
        metrics.database.waiting.set(parts.decisions.waiting)
        if isinstance(parts.engine.pool, QueuePool):
            metrics.database.connections.set(parts.engine.pool.checkedout())
        metrics.server.resident_memory.set(_resident_bytes())
        metrics.server.clock.set(now.timestamp())
        elapsed = parts.monotonic()
        if self._clocks is not None:
            then, elapsed_then = self._clocks
            if abs((now - then).total_seconds() - (elapsed - elapsed_then)) >= _LEAP:
                metrics.server.clock_leaps.inc()
        self._clocks = (now, elapsed)

    def _look_at_services(self) -> None:
        metrics, status = self._metrics.collateral, self._parts.collateral.status()
        for service in status.services:
            metrics.kds_breaker.labels(service.host).set(service.breaker is not State.CLOSED)
            metrics.kds_budget.labels(service.host).set(service.budget_left)
        metrics.kds_fetches.set(status.fetching)
        for line in _LINES:
            metrics.list_next_update.labels(_name(line)).set(_seconds(status.next_updates.get(line)))

    async def _look_at_readiness(self) -> None:
        found = {known(reason, NOT_READY_REASONS) for reason in await self._parts.readiness()}
        self._metrics.server.ready.set(not found)
        for reason in (*NOT_READY_REASONS, OTHER):
            self._metrics.server.not_ready.labels(reason).set(reason in found)

    async def _look_at_policy(self, now: datetime) -> None:
        metrics, policies = self._metrics.policy, self._parts.policies
        if policies.sequence != self._sequence:
            self._sequence = policies.sequence
            metrics.loaded.set(now.timestamp())
        metrics.sequence.set(self._sequence)
        active = await policies.active()
        for kind in KINDS.values():
            dates = () if active is None else active.policy.expiries.get(kind, ())
            to_come = [date for date in dates if date > now]
            metrics.expiry.labels(kind).set(_seconds(min(to_come, default=None)))
            metrics.expired.labels(kind).set(len(dates) - len(to_come))

    def _look_at_ledger(self) -> None:
        metrics, figures = self._metrics.ledger, self._parts.ledger.figures
        metrics.entries.set(figures.size)
        metrics.waiting.set(figures.waiting)
        metrics.checkpoint_made.set(_seconds(figures.checkpoint_made_at))
        metrics.not_authentic.set(figures.not_authentic)
        metrics.refused.set(figures.refused)

    async def _look_at_certificates(self) -> None:
        now = self._parts.monotonic()
        if now - self._certificates_at < _CERTIFICATES_EVERY:
            return
        metrics = self._metrics.collateral
        counts = {(each.line, each.role): each for each in await self._parts.certificates.counts()}
        for line in _LINES:
            for role in Role:
                count = counts.get((line, role))
                labels = (_name(line), role.value)
                metrics.stored.labels(*labels).set(0 if count is None else count.count)
                metrics.expiry.labels(*labels).set(_seconds(None if count is None else count.next_expiry))
        self._certificates_at = now


@dataclass(slots=True)
class _Total:
    """A total that somebody else counts, as a counter."""

    counter: Counter
    source: Callable[[], float]
    seen: float = field(default=0.0)

    def look(self) -> None:
        now = self.source()
        self.counter.inc(max(now - self.seen, 0.0))
        self.seen = now


def _name(line: Line) -> str:
    return f"{line.signer.value}-{line.product.value}"


def _seconds(moment: datetime | None) -> float:
    return _NONE if moment is None else moment.timestamp()


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _resident_bytes() -> int:
    # proc(5): the second number is the resident pages.
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
