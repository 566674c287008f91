"""How far epochs and generations had come, as this server has seen it: in memory and in the anchor.

That an epoch is in use because its time has come is remembered only after ten minutes. Only the clock says
so, and a clock can leap: remembered at the first look, a leap of seconds over the time of an epoch that waits
would stop all releases until that time comes, however soon the clock is right again. Minutes are measured by
what does not leap, and every look within them must agree. An attacker gains little by the delay: until the
time of an epoch comes, whoever owns the database can put back an older copy in which it waits longer, and
that is not noticed either. What operators put in use now is remembered at once.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import structlog

from kms.errors import LedgerUnavailable
from kms.keys.epochs import KeyProgress
from kms.operator_ports import SeenKeys

_log = structlog.get_logger("kms.keys")

_LOOK_EVERY: Final = 1.0  # seconds: another process of this server may have seen more
_BELIEVE_AFTER: Final = 600.0  # seconds


class KeyMemory:
    """Only goes forward. The anchor is read once a second at most, and written when there is more to keep."""

    def __init__(self, anchor: SeenKeys, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._anchor = anchor
        self._monotonic = monotonic
        self._seen = KeyProgress()
        self._looked_at = float("-inf")
        self._in_use: tuple[int, float] | None = None  # the newest at the last look, and since when it was
        self._alone = asyncio.Lock()

    async def seen(self) -> KeyProgress:
        """Give what was seen. Ask before rows are read.

        Asked afterwards, a change in between would look like an older copy of them.

        Raises:
            AnchorUnusable: the anchor cannot be read, or says nothing that can be.

        """
        if self._stale:
            async with self._alone:
                if self._stale:
                    self._seen = self._seen.united(await self._anchor.read_keys())
                    self._looked_at = self._monotonic()
        return self._seen

    def believed(self, progress: KeyProgress) -> KeyProgress:
        """Give what of a look is to be kept: without the epoch in use, until it was that for long enough."""
        now = self._monotonic()
        if self._in_use is None or self._in_use[0] != progress.in_use:
            self._in_use = progress.in_use, now
        if now - self._in_use[1] < _BELIEVE_AFTER:
            return replace(progress, in_use=self._seen.in_use)
        return progress

    async def keep(self, progress: KeyProgress) -> None:
        """Keep what is about to be used, durably.

        Raises:
            AnchorUnusable: as `seen`.
            LedgerUnavailable: it could not be written.

        """
        if self._seen.includes(progress):
            return
        async with self._alone:
            if not self._seen.includes(progress):
                await self._anchor.remember_keys(progress)
                self._seen = self._seen.united(progress)

    async def keep_committed(self, progress: KeyProgress) -> None:
        """Keep what was just made durable in the database; say in the log where that fails.

        Nobody uses it before `keep` could keep it. And an operator who is told that it failed does it again.
        """
        try:
            await self.keep(progress)
        except LedgerUnavailable as error:
            _log.error("keys-not-anchored", cause=error.detail)

    @property
    def _stale(self) -> bool:
        return self._monotonic() - self._looked_at >= _LOOK_EVERY
