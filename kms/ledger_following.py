"""The ledger as a running server follows it: rounds of sequencing beside the requests."""

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Protocol

import structlog

from kms.background import Background, SaidLately
from kms.errors import ConfigurationError, LedgerUnavailable
from kms.ledger_ports import ROLLED_BACK, UNTRUSTED
from kms.sequencing import Round, Sequencer

_log = structlog.get_logger("kms.ledger")

# A checkpoint comes at most this much after what it is of; another server takes over as soon.
_ROUND_EVERY: Final = 0.5  # seconds
_LAST_LOOK_WITHIN: Final = 2.0  # seconds
_LAST_LOOK_EVERY: Final = 0.05  # seconds
_STALE_AFTER: Final = 30.0  # seconds
_MOST_SAID: Final = 20  # lines of one round: whoever wrote a million rows shall not fill the log
# The reasons for which nothing may be recorded, and what operators do.
_REMEDIES: Final[Mapping[str, str]] = {
    ROLLED_BACK: "Bring back the newest database. Only where it is lost: `kms ledger accept-rollback` takes"
    " the ledger as it is, for ever; whoever has a newer checkpoint will see that.",
    UNTRUSTED: "`kms ledger verify` says what was changed; bring back a copy of the database from before.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerFigures:
    """For metrics: leaves of the newest checkpoint, when it was made, entries that wait for the next one.

    `not_authentic` counts what this process did not sequence since it started: entries that no server of this
    KMS made, and places at which something was removed. `refused`: nothing may be recorded in it.
    """

    size: int = 0
    waiting: int = 0
    checkpoint_made_at: datetime | None = None
    not_authentic: int = 0
    refused: bool = False


class Gate(Protocol):
    """Who records. `refused` is why nothing may be recorded now, None where all may."""

    refused: LedgerUnavailable | None

    def forget(self) -> None:
        """Forget how far the record had come: an operator accepted that it went back."""
        ...


class FollowedLedger:
    """Sequences or follows the ledger every half second, and shuts the gate where nothing may be recorded."""

    def __init__(self, sequencer: Sequencer, gate: Gate) -> None:
        self._sequencer = sequencer
        self._gate = gate
        self._figures = LedgerFigures()
        self._looked_at = time.monotonic()
        self._said = SaidLately()
        self._rounds = Background("ledger", self._follow, pause=_ROUND_EVERY)

    @property
    def alive(self) -> bool:
        """Whether the ledger is being followed."""
        return self._rounds.alive

    @property
    def stale(self) -> bool:
        """Whether nobody could look at it for some time, though somebody is there to look."""
        return self.alive and time.monotonic() - self._looked_at > _STALE_AFTER

    @property
    def figures(self) -> LedgerFigures:
        """What the last look found."""
        return replace(self._figures, refused=self.refused is not None)

    @property
    def refused(self) -> LedgerUnavailable | None:
        """Why nothing may be recorded: it was rolled back, or is not what this KMS made. None: it may be."""
        return self._gate.refused

    async def refresh(self) -> None:
        """Look at the ledger now, and sequence what waits if it is our turn.

        Raises:
            LedgerUnavailable: as `Sequencer.round`. Where the ledger is refused, it stays so until a look
                finds it mended.

        """
        more = True
        while more:
            try:
                done = await self._sequencer.round()
            except LedgerUnavailable as error:
                if error.reason in _REMEDIES:
                    self._gate.refused = error
                raise
            self._gate.refused = None
            self._looked_at = time.monotonic()
            self._note(done)
            more = done.more

    async def require_at_start(self) -> None:
        """Look at the ledger before the server listens.

        Raises:
            ConfigurationError: nothing may be recorded in it.
            LedgerUnavailable: the database or the anchor does not answer.

        """
        try:
            await self.refresh()
        except LedgerUnavailable as error:
            if error.reason not in _REMEDIES:
                raise
            raise ConfigurationError(error.detail, remedy=_REMEDIES[error.reason]) from error

    def start(self) -> None:
        """Start in the running event loop."""
        self._rounds.start()

    async def stop(self) -> None:
        """Stop, with one more look, so that what was recorded until now has its checkpoint.

        Where that cannot be done soon, another server does it, or this one when it starts again.
        """
        if not self.alive:
            return
        await self._rounds.stop()
        with suppress(LedgerUnavailable, TimeoutError):
            async with asyncio.timeout(_LAST_LOOK_WITHIN):
                await self.refresh()
                # Another one that stops may have the turn, with what it took before our last entries.
                while self._figures.waiting:
                    await asyncio.sleep(_LAST_LOOK_EVERY)
                    await self.refresh()

    def _note(self, done: Round) -> None:
        head = done.state.head
        self._figures = LedgerFigures(
            size=0 if head is None else head.size,
            waiting=max(0, done.state.end - done.state.place),
            checkpoint_made_at=None if head is None else head.made_at,
            not_authentic=self._figures.not_authentic + len(done.passed_over),
        )
        for finding in done.passed_over[:_MOST_SAID]:
            _log.error(
                "entry-not-sequenced", finding=finding.kind.value, id=finding.id, cause=finding.sentence
            )
        if len(done.passed_over) > _MOST_SAID:
            _log.error("entries-not-sequenced", count=len(done.passed_over))
        if done.accepted:
            _log.warning("ledger-rollback-accepted", size=self._figures.size)
            self._gate.forget()

    async def _follow(self) -> None:
        try:
            await self.refresh()
        except LedgerUnavailable as error:
            if self._said.is_due(error.detail):
                _log.error("ledger-not-followed", cause=error.detail, reason=error.reason)
