"""The durable record of decisions, and the memory of spent challenges.

Writes of concurrent requests share a commit: one task takes what is waiting, writes it in one transaction,
and only after the commit tells each waiter how it went. The price of a durable commit is then paid once
for many, and each decision still succeeds or fails alone.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

import structlog
from sqlalchemy import Connection, Float, cast, delete, extract, func, insert, null, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from kms.background import Background
from kms.database.dialect import insert_or, is_postgresql
from kms.database.faults import is_of_one_row
from kms.database.kept_epochs import EPOCHS_MARK, EpochsMark
from kms.database.recording import LAST_PLACES, Recorder, last_place
from kms.database.schema import active_policy, decisions, installation, key_epochs, spent_challenges
from kms.database.writer import Writer
from kms.errors import ChallengeUsed, LedgerUnavailable
from kms.keys.epochs import EpochTable
from kms.ledger.entries import DecisionEntry, timestamp
from kms.ledger.sealed_entry import SealedEntry
from kms.ports import Clock, EpochsMoved, PolicyMoved

_log = structlog.get_logger("kms.decisions")

_MOST_IN_ONE_COMMIT: Final = 256
CLOCK_DIFFERS: Final = "clock-differs"
MOST_WAITING: Final = 4096
_SPENT_LATELY: Final = 20_000  # challenges that are kept in memory as well, some 200 bytes each
_TRY_AFTER: Final = 5.0  # seconds
_PURGED_AT_ONCE: Final = 2000
_PURGE_EVERY: Final = timedelta(minutes=1)
# An expired challenge is refused by its date. Spent ones are kept longer all the same, so that a clock
# that is set back does not make one good again.
_KEEP_SPENT: Final = timedelta(days=2)
_LEAP: Final = timedelta(hours=1)
# By which the clock of this machine may differ from that of the database's.
_SKEW: Final = timedelta(minutes=2)


@dataclass(frozen=True, slots=True)
class _Waiting:
    entry: DecisionEntry
    sealed: SealedEntry
    challenge_expires_at: datetime | None
    judged_by: EpochsMark | None
    done: "asyncio.Future[None]"


@dataclass(frozen=True, slots=True)
class _Failed:
    """Why the last commit failed, and when (`elapsed`)."""

    reason: str
    at: float


@dataclass(frozen=True, slots=True)
class _State:
    """What decisions must still agree with while they are written: nothing changes it meanwhile.

    `last` is the place of what was recorded last.
    """

    revision: str | None
    retired: frozenset[int]
    mark: EpochsMark
    last: int


class DecisionStore:
    """Implements `kms.ports.Decisions`. `start` it before use, `stop` it after the last request.

    `elapsed` gives seconds; `observe` is told of each commit how many decisions it tried and how many seconds
    it took, or None where it failed. `clock_leapt` is asked where the database has no clock of its own.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        clock: Clock,
        recorder: Recorder,
        *,
        elapsed: Callable[[], float] = time.monotonic,
        observe: Callable[[int, float | None], None] = lambda _number, _seconds: None,
        clock_leapt: Callable[[], bool] = lambda: False,
    ) -> None:
        self._database = Writer(engine)
        self._clock = clock
        self._recorder = recorder
        self._observe = observe
        self._clock_leapt = clock_leapt
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue(MOST_WAITING)
        self._elapsed = elapsed
        self._purged: tuple[datetime, float] | None = None
        self._purge_not_before = 0.0
        self._failed: _Failed | None = None
        self._spent_lately: OrderedDict[bytes, None] = OrderedDict()
        self._writer = Background("decision-writer", self._write_waiting)

    @property
    def alive(self) -> bool:
        """Whether decisions are being written."""
        return self._writer.alive

    @property
    def waiting(self) -> int:
        """How many decisions wait to be written, of at most `MOST_WAITING`."""
        return self._queue.qsize()

    async def failure(self) -> str | None:
        """Give the reason why the record could not be written lately; None where it can be.

        A decision that is written clears it. Where none comes it is tried, but not at once: what a trial
        writes may fit on a disk on which decisions do not.
        """
        failed = self._failed
        if failed is None or self._elapsed() - failed.at < _TRY_AFTER:
            return None if failed is None else failed.reason
        try:
            await self._database.write(self._try)
        except LedgerUnavailable as error:
            self._failed = _Failed(error.reason, self._elapsed())
            return error.reason
        self._failed = None
        return None

    def _try(self, connection: Connection) -> None:
        self._state(connection)
        connection.execute(update(installation).values(mode=installation.c.mode))

    def start(self) -> None:
        """Start the writing task in the running event loop."""
        self._writer.start()

    async def stop(self) -> None:
        """Write what is waiting, then stop."""
        if self._writer.alive:
            await self._queue.join()
        await self._writer.stop()
        while not self._queue.empty():
            _tell([self._queue.get_nowait()], [LedgerUnavailable("stopped", reason="ledger-stopped")])
            self._queue.task_done()
        self._database.close()

    async def is_spent(self, challenge: bytes) -> bool:
        """Say whether a challenge was spent by this process lately; see `kms.ports.Decisions.is_spent`.

        The database is not asked: that would cost each release more than its verification.
        """
        return challenge in self._spent_lately

    async def record(
        self,
        entry: DecisionEntry,
        challenge_expires_at: datetime | None,
        judged_by: EpochTable | None = None,
    ) -> None:
        """Make a decision durable; see `kms.ports.Decisions.record`."""
        if not self._writer.alive:
            raise LedgerUnavailable("the record is not being written", reason="ledger-stopped")
        # The bytes and the MAC are made here: an entry that has none must fail alone, and outside the lock.
        sealed = self._recorder.decision(entry)
        mark = None if judged_by is None else EpochsMark.of(judged_by)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(entry, sealed, challenge_expires_at, mark, done)
        try:
            self._queue.put_nowait(waiting)
        except asyncio.QueueFull:
            raise LedgerUnavailable("too many decisions wait to be written", reason="ledger-busy") from None
        await waiting.done

    async def _write_waiting(self) -> None:
        batch = [await self._queue.get()]
        while len(batch) < _MOST_IN_ONE_COMMIT and not self._queue.empty():
            batch.append(self._queue.get_nowait())
        try:
            outcomes = await self._write(batch)
        except BaseException:
            # Nobody may wait for ever, whatever ends the task. Nothing says that the batch was committed.
            self._failed = _Failed(LedgerUnavailable.code, self._elapsed())
            _tell(batch, [LedgerUnavailable("the record could not be written") for _ in batch])
            raise
        else:
            _tell(batch, outcomes)
        finally:
            for _ in batch:
                self._queue.task_done()

    async def _write(self, batch: list[_Waiting]) -> list[Exception | None]:
        began = self._elapsed()
        try:
            outcomes, last = await self._database.write(partial(self._insert, batch))
        except LedgerUnavailable as error:
            # Nothing of the batch is there. Whoever waits is told so, and no key leaves.
            if len(batch) > 1 and is_of_one_row(error.__cause__):
                return [(await self._write([waiting]))[0] for waiting in batch]
            _log.error("decisions-not-written", cause=error.detail, reason=error.reason, count=len(batch))
            self._failed = _Failed(error.reason, self._elapsed())
            self._observe(len(batch), None)
            return [LedgerUnavailable(error.detail, reason=error.reason) for _ in batch]
        self._recorder.committed(last)
        self._note_spent(batch, outcomes)
        self._failed = None
        self._observe(len(batch), self._elapsed() - began)
        return outcomes

    def _insert(
        self, batch: Sequence[_Waiting], connection: Connection
    ) -> tuple[list[Exception | None], int]:
        """Insert those that may be recorded; say how it went with each, and which place was given last."""
        state = self._state(connection)
        self._purge(connection)
        outcomes = _spend(connection, batch, [_moved(each, state) for each in batch])
        accepted = [each for each, outcome in zip(batch, outcomes, strict=True) if outcome is None]
        last = self._recorder.insert_after(connection, state.last, [each.sealed for each in accepted])
        if accepted:
            connection.execute(insert(decisions), [_look_up(each.entry) for each in accepted])
        return outcomes, last

    def _note_spent(self, batch: Sequence[_Waiting], outcomes: Sequence[Exception | None]) -> None:
        for each, outcome in zip(batch, outcomes, strict=True):
            if outcome is None and each.entry.challenge is not None:
                self._spent_lately[each.entry.challenge] = None
        while len(self._spent_lately) > _SPENT_LATELY:
            self._spent_lately.popitem(last=False)

    def _state(self, connection: Connection) -> _State:
        """Look at what may have changed since the releases looked; that it is authentic, they have seen.

        Raises:
            LedgerUnavailable: reason ``clock-differs``: nobody could say when anything was decided.

        """
        shared = is_postgresql(connection)
        if not shared and self._clock_leapt():
            raise LedgerUnavailable("the clock of this machine leapt", reason=CLOCK_DIFFERS)
        clock: Any = _DATABASE_CLOCK if shared else null()
        row = connection.execute(select(*_STATE, clock.label("clock"))).one()
        if row.clock is not None and abs(datetime.fromtimestamp(row.clock, UTC) - self._clock()) > _SKEW:
            raise LedgerUnavailable(
                "the clock of this machine and that of the database's differ", reason=CLOCK_DIFFERS
            )
        retired: frozenset[int] = frozenset()
        mark = EpochsMark(row.newest, row.retired, row.latest)
        if row.retired:
            ended = select(key_epochs.c.epoch).where(key_epochs.c.retired_at.is_not(None))
            retired = frozenset(connection.execute(ended).scalars())
        return _State(row.revision, retired, mark, last_place(row))

    def _purge(self, connection: Connection) -> None:
        """Forget spent challenges that are long past.

        After a leap of the clock, or a time without decisions that may hide one, it waits as long as
        challenges are kept, in elapsed time: else a clock that leaps ahead and back would make spent
        challenges good again.
        """
        now, elapsed = self._clock(), self._elapsed()
        if self._purged is None:
            last = connection.execute(select(func.max(decisions.c.decided_at))).scalar()
            quiet = last is not None and now - datetime.fromisoformat(last) > _KEEP_SPENT
            self._purge_not_before = elapsed + (_KEEP_SPENT.total_seconds() if quiet else 0)
        else:
            then, elapsed_then = self._purged
            if elapsed - elapsed_then < _PURGE_EVERY.total_seconds() and abs(now - then) < _LEAP:
                return
            if abs((now - then).total_seconds() - (elapsed - elapsed_then)) > _LEAP.total_seconds():
                _log.warning("clock-leapt", seconds=round((now - then).total_seconds()))
                self._purge_not_before = elapsed + _KEEP_SPENT.total_seconds()
        self._purged = (now, elapsed)
        if elapsed < self._purge_not_before:
            return
        limit = int((now - _KEEP_SPENT).timestamp())
        # So many at a time: whoever records waits for it, on every server.
        past = select(spent_challenges.c.challenge).where(spent_challenges.c.expires_at < limit)
        past = past.order_by(spent_challenges.c.expires_at).limit(_PURGED_AT_ONCE)
        purged = connection.execute(delete(spent_challenges).where(spent_challenges.c.challenge.in_(past)))
        if purged.rowcount == _PURGED_AT_ONCE:
            # There are more, for the next commit.
            self._purged = (now - _PURGE_EVERY, elapsed - _PURGE_EVERY.total_seconds())


def _tell(batch: list[_Waiting], outcomes: list[Exception | None]) -> None:
    for waiting, outcome in zip(batch, outcomes, strict=True):
        if waiting.done.done():  # whoever asked has gone
            continue
        if outcome is None:
            waiting.done.set_result(None)
        else:
            waiting.done.set_exception(outcome)


# One question to the database: each one more would hold the lock longer.
_STATE: Final = (
    select(active_policy.c.revision).scalar_subquery().label("revision"),
    *EPOCHS_MARK,
    *LAST_PLACES,
)
_DATABASE_CLOCK: Final = cast(extract("epoch", func.pg_catalog.clock_timestamp()), Float)


def _moved(waiting: _Waiting, state: _State) -> Exception | None:
    entry, mark = waiting.entry, waiting.judged_by
    if entry.policy_revision is not None and entry.policy_revision != state.revision:
        return PolicyMoved(entry.policy_revision)
    if (mark is not None and mark != state.mark) or not state.retired.isdisjoint(entry.epochs):
        return EpochsMoved(entry.epochs)
    return None


def _spend(
    connection: Connection, batch: Sequence[_Waiting], outcomes: list[Exception | None]
) -> list[Exception | None]:
    """Spend the challenges of those whose outcome is open, and say of each whether it may be recorded."""
    rows: dict[bytes, dict[str, object]] = {}
    for number, waiting in enumerate(batch):
        challenge, expires_at = waiting.entry.challenge, waiting.challenge_expires_at
        if outcomes[number] is not None or challenge is None or expires_at is None:
            continue
        if challenge in rows:
            outcomes[number] = ChallengeUsed("this challenge was already spent")
            continue
        rows[challenge] = {"challenge": challenge, "expires_at": int(expires_at.timestamp())}
    if not rows:
        return outcomes
    # One statement decides who wins (field lesson 36): the primary key, not a look before the leap.
    spending = insert_or(connection, spent_challenges).on_conflict_do_nothing()
    wins = spending.returning(spent_challenges.c.challenge)
    won = set(connection.execute(wins, list(rows.values())).scalars())
    for number, waiting in enumerate(batch):
        challenge = waiting.entry.challenge
        if outcomes[number] is None and challenge in rows and challenge not in won:
            outcomes[number] = ChallengeUsed("this challenge was already spent")
    return outcomes


def _look_up(entry: DecisionEntry) -> dict[str, object]:
    boot_info = entry.boot_info
    app_id = None if boot_info is None else boot_info.app_id
    chip_id = None if boot_info is None else boot_info.chip_id
    return {
        "id": entry.release_id,
        "decided_at": timestamp(entry.decided_at),
        "outcome": entry.outcome,
        "code": entry.code,
        "app_id": None if app_id is None else app_id.hex(),
        "chip_id": None if chip_id is None else chip_id.hex(),
        "image": None if boot_info is None else boot_info.image,
        "measurement": None if boot_info is None else boot_info.measurement.hex(),
        "policy_revision": entry.policy_revision,
    }
