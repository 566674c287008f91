"""Single flight: at most one fetch of the same thing, going on while those who asked for it come and go."""

import asyncio
import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

import structlog

from kms.errors import CollateralUnavailable, CollateralUnknown
from kms.kds.job import Job, Outcome, Settled, kind_of
from kms.kds.turns import MOST_LINES
from kms.kds.worker import Means, Worker
from kms.snp.kds_paths import ChainOf, Line, RevocationListOf, Wanted

_log = structlog.get_logger("kms.collateral")

_MOST_FOR_ONE: Final = 64  # fetches that one address began
_MOST: Final = 4_096  # fetches of all
_MOST_WAITING: Final = 256  # requests; half of what the server works on at once (kms.http.limits)
_ABANDONED_AFTER: Final = 120.0  # seconds without anybody asking again
_UNKNOWN_FOR: Final = 60.0  # seconds that a 404 is remembered
_MOST_UNKNOWN: Final = 10_000
# Seconds of `Retry-After`. A guest that comes back later than `_ABANDONED_AFTER` finds its fetch dropped.
_LATEST: Final = 100
_AFTER_FAILURE: Final = (2.0, 10.0)


@dataclass(frozen=True, slots=True)
class Attempt:
    """The last time that a revocation list was asked for (`monotonic` seconds), and whether one came."""

    at: float
    good: bool


@dataclass(slots=True)
class _Flight:
    job: Job
    task: "asyncio.Task[Settled]"
    alarm: asyncio.TimerHandle


class Fetches:
    """The fetches of one server process. `patience` is how many seconds a caller waits at most."""

    def __init__(self, means: Means, *, patience: float) -> None:
        self._kds = means.kds
        self._memory = means.memory
        self._patience = patience
        self._worker = Worker(means=means, fetch_chain=self._fetch_chain)
        self._flights: dict[Wanted, _Flight] = {}
        self._begun: dict[str, int] = {}
        self._waiting = 0
        self._unknown: OrderedDict[Wanted, float] = OrderedDict()
        self.attempts: dict[Line, Attempt] = {}

    def __len__(self) -> int:
        """Give the number of fetches that go on."""
        return len(self._flights)

    async def fetch(self, wanted: Wanted, address: str) -> None:
        """Wait for a fetch, which goes on without us if it takes too long.

        Raises:
            CollateralUnknown: every service says so, or did within the last minute.
            CollateralUnavailable: not yet, or not now.

        """
        if self._is_known_missing(wanted):
            raise CollateralUnknown(f"no service knows this {kind_of(wanted)}")
        flight = self.begin(wanted, address)
        # A guest that waits holds one of the server's places. Strangers who invent chips must not hold them
        # all: beyond so many, guests are told at once to come again, and the fetch goes on.
        patience = self._patience if self._waiting < _MOST_WAITING else 0
        self._waiting += 1
        try:
            # Not `wait_for`: a guest that goes away, or whose time is up, must not end what others wait for.
            done, _ = await asyncio.wait({flight.task}, timeout=patience)
        finally:
            self._waiting -= 1
        if not done:
            raise CollateralUnavailable(
                f"still waiting for a {kind_of(wanted)}",
                retry_after=self._seconds(self._kds.expected_wait(flight.job.addresses, flight.job.asker)),
            )
        if flight.task.cancelled():
            raise CollateralUnavailable("the fetch was given up")
        settled = flight.task.result()
        if settled.outcome is Outcome.UNKNOWN:
            raise CollateralUnknown(settled.detail)
        if settled.outcome is Outcome.UNAVAILABLE:
            low, high = _AFTER_FAILURE
            jitter = low + (high - low) * self._kds.random()
            raise CollateralUnavailable(
                settled.detail, retry_after=self._seconds(settled.at_least + jitter, jitter=False)
            )

    def begin(self, wanted: Wanted, address: str, *, bounded: bool = True) -> _Flight:
        """Join a fetch, or begin it.

        Raises:
            CollateralUnavailable: there are too many, of this address or of all; not unless `bounded`.

        """
        flight = self._flights.get(wanted)
        if flight is not None:
            self._join(flight, address)
            return flight
        if bounded and (len(self._flights) >= _MOST or self._begun.get(address, 0) >= _MOST_FOR_ONE):
            raise CollateralUnavailable(
                "too many fetches wait", retry_after=self._seconds(self._kds.crowd_wait())
            )
        job = Job(wanted, self._kds.new_asker(), [address], had=self._had(wanted))
        task = asyncio.create_task(self._settle(job))
        flight = _Flight(job, task, _abandon_later(task))
        self._flights[wanted] = flight
        self._begun[address] = self._begun.get(address, 0) + 1
        flight.task.add_done_callback(lambda _: self._ended(flight))
        return flight

    async def stop(self) -> None:
        """End every fetch."""
        tasks = [each.task for each in self._flights.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _settle(self, job: Job) -> Settled:
        try:
            settled = await self._worker.run(job)
        except Exception as error:  # noqa: BLE001 -- the outermost shell of a task
            _log.error("background-failed", task="collateral-fetch", exc_info=error)
            settled = Settled(Outcome.UNAVAILABLE, "the fetch failed")
        self._note(job.wanted, settled)
        return settled

    def _note(self, wanted: Wanted, settled: Settled) -> None:
        now = self._kds.monotonic()
        if settled.outcome is Outcome.UNKNOWN:
            self._unknown[wanted] = now + _UNKNOWN_FOR
            if len(self._unknown) > _MOST_UNKNOWN:
                self._unknown.popitem(last=False)
        if isinstance(wanted, RevocationListOf):
            self.attempts[wanted.line] = Attempt(now, settled.outcome is Outcome.FOUND)

    def _ended(self, flight: _Flight) -> None:
        flight.alarm.cancel()
        del self._flights[flight.job.wanted]
        first = flight.job.addresses[0]
        self._begun[first] -= 1
        if not self._begun[first]:
            del self._begun[first]

    def _join(self, flight: _Flight, address: str) -> None:
        if flight.task.done():
            return
        flight.alarm.cancel()
        flight.alarm = _abandon_later(flight.task)
        self._kds.join(address, flight.job.asker)
        if address not in flight.job.addresses and len(flight.job.addresses) < MOST_LINES:
            flight.job.addresses.append(address)

    async def _fetch_chain(self, wanted: ChainOf, job: Job) -> Settled:
        """Wait for the chain that another fetch needs. There are six lines: nobody can crowd these."""
        flight = self.begin(wanted, job.addresses[0], bounded=False)
        await asyncio.wait({flight.task})
        if flight.task.cancelled():
            return Settled(Outcome.UNAVAILABLE, "the fetch was given up")
        return flight.task.result()

    def _had(self, wanted: Wanted) -> object:
        match wanted:
            case ChainOf(line):
                return self._memory.chain(line)
            case RevocationListOf(line):
                return self._memory.lists_of(line)
        return None

    def _is_known_missing(self, wanted: Wanted) -> bool:
        until = self._unknown.get(wanted)
        if until is not None and until <= self._kds.monotonic():
            del self._unknown[wanted]
            until = None
        return until is not None

    def _seconds(self, wait: float, *, jitter: bool = True) -> int:
        """Give a `Retry-After`: whole seconds, never 0, and not the same for all who were told to wait."""
        spread = 1.0 + (0.25 * self._kds.random() if jitter else 0.0)
        return min(max(1, math.ceil(wait * spread)), _LATEST)


def _abandon_later(task: "asyncio.Task[Settled]") -> asyncio.TimerHandle:
    """Give a fetch up unless somebody asks for it again: its guest has gone, or came by another way."""
    return asyncio.get_running_loop().call_later(_ABANDONED_AFTER, task.cancel)
