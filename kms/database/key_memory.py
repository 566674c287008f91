"""How far epochs and generations had come, as this server has seen it: in memory and in the anchor."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

import structlog

from kms.errors import LedgerUnavailable
from kms.operator_ports import KeyProgress, SeenKeys

_log = structlog.get_logger("kms.keys")

_LOOK_EVERY: Final = 1.0  # seconds: another process of this server may have seen more


class KeyMemory:
    """Only goes forward. The anchor is read once a second at most, and written when there is more to keep."""

    def __init__(self, anchor: SeenKeys, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._anchor = anchor
        self._monotonic = monotonic
        self._seen = KeyProgress()
        self._looked_at = float("-inf")
        self._alone = asyncio.Lock()

    async def seen(self) -> KeyProgress:
        """Give what was seen. Ask before rows are read.

        Asked afterwards, a change in between would look like an older copy of them.

        Raises:
            LedgerUnavailable: it cannot be told.

        """
        if self._stale:
            async with self._alone:
                if self._stale:
                    self._seen = self._seen.united(await self._anchor.read_keys())
                    self._looked_at = self._monotonic()
        return self._seen

    async def keep(self, progress: KeyProgress) -> None:
        """Keep what is about to be used, durably. Raises `LedgerUnavailable`: it could not be kept."""
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
