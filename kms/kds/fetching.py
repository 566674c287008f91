"""Single flight: at most one fetch of the same thing, going on while those who asked for it come and go."""

import asyncio
import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

import structlog

from kms.errors import CollateralUnavailable, CollateralUnknown
from kms.kds.job import Job, Outcome, Settled, kind_of, line_of
from kms.kds.worker import Means, Worker
from kms.snp.kds_paths import ChainOf, Line, RevocationListOf, VcekOf, Wanted

_log = structlog.get_logger("kms.collateral")

# Fetches of VCEKs. Chains and lists are not counted: there are few, and nobody can invent more.
_MOST_FOR_ONE: Final = 64  # that one address began
_MOST: Final = 4_096  # of all
_MOST_WAITING: Final = 256  # requests; half of what the server works on at once (kms.http.limits)
# Seconds that callers wait for a revocation list, from the beginning of its fetch. It comes within that time
# or, where the service holds us off for an hour, not at all: then nobody should wait any more.
_PATIENCE_FOR_LIST: Final = 3.0
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


@dataclass(eq=False, slots=True)
class _Flight:
    """A fetch, the address that began it, and when (`monotonic` seconds)."""

    job: Job
    address: str
    began: float
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
        self._tasks: set[asyncio.Task[Settled]] = set()
        self._begun: dict[str, list[_Flight]] = {}
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
        patience = self._patience_for(flight) if self._waiting < _MOST_WAITING else 0
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

    def begin(self, wanted: Wanted, address: str) -> _Flight:
        """Join a fetch, or begin it.

        Raises:
            CollateralUnavailable: there are too many, of this address or of all; only for a VCEK.

        """
        flight = self._flights.get(wanted)
        if flight is not None:
            self._join(flight, address)
            return flight
        if isinstance(wanted, VcekOf) and not self._has_room(address):
            raise CollateralUnavailable(
                "too many fetches wait", retry_after=self._seconds(self._kds.crowd_wait())
            )
        job = Job(wanted, self._kds.new_asker(), [address], had=self._had(wanted))
        task = asyncio.create_task(self._settle(job))
        flight = _Flight(job, address, self._kds.monotonic(), task, _abandon_later(task))
        self._flights[wanted] = flight
        self._tasks.add(task)
        if isinstance(wanted, VcekOf):
            self._begun.setdefault(address, []).append(flight)
        task.add_done_callback(lambda _: self._ended(flight))
        return flight

    async def stop(self) -> None:
        """End every fetch."""
        tasks = tuple(self._tasks)
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

    def _patience_for(self, flight: _Flight) -> float:
        if not isinstance(flight.job.wanted, RevocationListOf):
            return self._patience
        until = flight.began + min(self._patience, _PATIENCE_FOR_LIST)
        return max(0.0, until - self._kds.monotonic())

    def _has_room(self, address: str) -> bool:
        """Say whether an address may begin one more; if need be, make room.

        Some networks of strangers, each within its own bound, must not keep everybody else out. So when there
        are too many fetches, the address that began most loses its latest: not to an address with as many,
        or they would only take turns in losing.
        """
        own = len(self._begun.get(address, ()))
        if own >= _MOST_FOR_ONE:
            return False
        if len(self._flights) < _MOST:
            return True
        most: list[_Flight] = max(reversed(self._begun.values()), key=len, default=[])
        if len(most) <= own + 1:
            return False
        latest = most[-1]
        self._forget(latest)  # now, not when its task has ended: the next newcomer comes before that
        latest.task.cancel()
        return True

    def _ended(self, flight: _Flight) -> None:
        self._tasks.discard(flight.task)
        self._forget(flight)

    def _forget(self, flight: _Flight) -> None:
        flight.alarm.cancel()
        wanted = flight.job.wanted
        if self._flights.get(wanted) is not flight:
            return
        del self._flights[wanted]
        begun = self._begun.get(flight.address, [])
        if flight in begun:
            begun.remove(flight)
        if not begun:
            self._begun.pop(flight.address, None)

    def _join(self, flight: _Flight, address: str) -> None:
        if flight.task.done():
            return
        flight.alarm.cancel()
        flight.alarm = _abandon_later(flight.task)
        self._kds.join(flight.job.addresses, address, flight.job.asker)
        # It may wait for its chain, which strangers may have begun too.
        chain = self._flights.get(ChainOf(line_of(flight.job.wanted)))
        if chain is not None and chain is not flight:
            self._join(chain, address)

    async def _fetch_chain(self, wanted: ChainOf, job: Job) -> Settled:
        """Wait for the chain that another fetch needs. There are six lines: nobody can crowd these."""
        flight = self.begin(wanted, job.addresses[0])
        for address in job.addresses[1:]:
            self._join(flight, address)
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
