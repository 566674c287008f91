"""The durable record of decisions, and the memory of spent challenges.

Writes of concurrent requests share a commit: one task takes what is waiting, writes it in one transaction,
and only after the commit tells each waiter how it went. The price of a durable commit is then paid once
for many, and each decision still succeeds or fails alone.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import structlog
from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.dialects.sqlite import insert as insert_or
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from kms.background import Background
from kms.database.engine import reading, writing
from kms.database.schema import active_policy, decisions, installation, key_epochs, spent_challenges
from kms.errors import ChallengeUsed, LedgerUnavailable
from kms.ledger.entries import DecisionEntry, timestamp
from kms.ports import Clock, EpochsMoved, PolicyMoved

_log = structlog.get_logger("kms.decisions")

_MOST_IN_ONE_COMMIT: Final = 256
_MOST_WAITING: Final = 4096
_PURGE_EVERY: Final = timedelta(minutes=1)
# An expired challenge is refused by its date. Spent ones are kept longer all the same, so that a clock
# that is set back does not make one good again.
_KEEP_SPENT: Final = timedelta(days=2)
_LEAP: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class _Waiting:
    entry: DecisionEntry
    canonical: bytes
    challenge_expires_at: datetime | None
    done: "asyncio.Future[None]"


@dataclass(frozen=True, slots=True)
class _State:
    """What decisions must still agree with while they are written: nothing changes it meanwhile."""

    revision: str | None
    retired: frozenset[int]


class DecisionStore:
    """Implements `kms.ports.Decisions` on SQLite. `start` it before use, `stop` it after the last request."""

    def __init__(
        self, engine: AsyncEngine, clock: Clock, *, elapsed: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue(_MOST_WAITING)
        self._elapsed = elapsed
        self._purged: tuple[datetime, float] | None = None
        self._purge_not_before = 0.0
        self._failing = False
        self._writer = Background("decision-writer", self._write_waiting)

    @property
    def alive(self) -> bool:
        """Whether decisions are being written."""
        return self._writer.alive

    async def writable(self) -> bool:
        """Say whether the record can be written: tried anew only after it could not."""
        if self._failing:
            try:
                async with writing(self._engine) as connection:
                    await connection.execute(update(installation).values(mode=installation.c.mode))
            except LedgerUnavailable:
                return False
            self._failing = False
        return True

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

    async def is_spent(self, challenge: bytes) -> bool:
        """Say whether a challenge is spent; see `kms.ports.Decisions.is_spent`."""
        query = select(spent_challenges.c.expires_at).where(spent_challenges.c.challenge == challenge)
        async with reading(self._engine) as connection:
            return (await connection.execute(query)).first() is not None

    async def record(self, entry: DecisionEntry, challenge_expires_at: datetime | None) -> None:
        """Make a decision durable; see `kms.ports.Decisions.record`."""
        if not self._writer.alive:
            raise LedgerUnavailable("the record is not being written", reason="ledger-stopped")
        # The bytes are made here: an entry that has none must fail alone, and outside the write lock.
        waiting = _Waiting(
            entry, entry.canonical, challenge_expires_at, asyncio.get_running_loop().create_future()
        )
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
            _tell(batch, [LedgerUnavailable("the record could not be written") for _ in batch])
            raise
        else:
            _tell(batch, outcomes)
        finally:
            for _ in batch:
                self._queue.task_done()

    async def _write(self, batch: list[_Waiting]) -> list[Exception | None]:
        outcomes: list[Exception | None] = []
        try:
            async with writing(self._engine) as connection:
                state = await _state(connection)
                await self._purge(connection)
                outcomes.extend([await _write_one(connection, waiting, state) for waiting in batch])
        except LedgerUnavailable as error:
            # Nothing of the batch is there. Whoever waits is told so, and no key leaves.
            if len(batch) > 1 and _is_of_one_entry(error.__cause__):
                return [(await self._write([waiting]))[0] for waiting in batch]
            _log.error("decisions-not-written", cause=error.detail, count=len(batch))
            self._failing = True
            return [LedgerUnavailable(error.detail) for _ in batch]
        self._failing = False
        return outcomes

    async def _purge(self, connection: AsyncConnection) -> None:
        """Forget spent challenges that are long past.

        After a leap of the clock, or a time without decisions that may hide one, it waits as long as
        challenges are kept, in elapsed time: else a clock that leaps ahead and back would make spent
        challenges good again.
        """
        now, elapsed = self._clock(), self._elapsed()
        if self._purged is None:
            last = (await connection.execute(select(func.max(decisions.c.decided_at)))).scalar()
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
        await connection.execute(delete(spent_challenges).where(spent_challenges.c.expires_at < limit))


def _is_of_one_entry(cause: BaseException | None) -> bool:
    """Whether an error says something of a row (a duplicate id), not of the database (a full disk)."""
    return isinstance(cause, SQLAlchemyError) and not isinstance(cause, OperationalError)


def _tell(batch: list[_Waiting], outcomes: list[Exception | None]) -> None:
    for waiting, outcome in zip(batch, outcomes, strict=True):
        if waiting.done.done():  # whoever asked has gone
            continue
        if outcome is None:
            waiting.done.set_result(None)
        else:
            waiting.done.set_exception(outcome)


async def _state(connection: AsyncConnection) -> _State:
    # Only what may have changed since the release looked: that it is authentic, the release itself has seen.
    found = (await connection.execute(select(active_policy.c.revision))).first()
    retired = await connection.execute(select(key_epochs.c.epoch).where(key_epochs.c.retired_at.is_not(None)))
    return _State(None if found is None else found.revision, frozenset(retired.scalars()))


async def _write_one(connection: AsyncConnection, waiting: _Waiting, state: _State) -> Exception | None:
    entry = waiting.entry
    if entry.policy_revision is not None and entry.policy_revision != state.revision:
        return PolicyMoved(entry.policy_revision)
    if not state.retired.isdisjoint(entry.epochs):
        return EpochsMoved(entry.epochs)
    if entry.challenge is not None and waiting.challenge_expires_at is not None:
        # One statement decides who wins (field lesson 36): the primary key, not a look before the leap.
        spent = await connection.execute(
            insert_or(spent_challenges)
            .values(challenge=entry.challenge, expires_at=int(waiting.challenge_expires_at.timestamp()))
            .on_conflict_do_nothing()
        )
        if spent.rowcount != 1:
            return ChallengeUsed("this challenge was already spent")
    boot_info = entry.boot_info
    app_id = None if boot_info is None else boot_info.app_id
    chip_id = None if boot_info is None else boot_info.chip_id
    await connection.execute(
        insert(decisions).values(
            id=entry.release_id,
            decided_at=timestamp(entry.decided_at),
            outcome=entry.outcome,
            code=entry.code,
            app_id=None if app_id is None else app_id.hex(),
            chip_id=None if chip_id is None else chip_id.hex(),
            image=None if boot_info is None else boot_info.image,
            measurement=None if boot_info is None else boot_info.measurement.hex(),
            policy_revision=entry.policy_revision,
            entry=waiting.canonical,
            salt=entry.salt,
        )
    )
    return None
