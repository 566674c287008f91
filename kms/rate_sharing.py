"""Limits that hold across servers: each tells the others what was taken from its buckets.

So whoever spreads over several servers is served about as often as by one. Nothing of it is on the way of a
request: a server that cannot reach the database limits by what it has seen itself. What is told comes a
moment late, so that until then each server gives what one gives: at most its burst, and afterwards what
`_EVERY` and the part that nobody tells (`_PART`) amount to. Those tokens are paid back, as they are charged.
"""

import time
from collections.abc import Mapping
from typing import Final, Protocol

import structlog

from kms.background import Background
from kms.buckets import Buckets
from kms.errors import LedgerUnavailable

_log = structlog.get_logger("kms.limits")

_EVERY: Final = 0.5  # seconds
# Who took less than this part of a burst is not told of: that is most, and it makes no difference.
_PART: Final = 32
_MOST_TOLD: Final = 200  # keys of each kind, in one round
_KEPT: Final = 20  # periods that others have for reading
# Rows that a server left behind which is no more. Servers' clocks may differ by less than this.
_KEPT_OF_OTHERS: Final = 7200


class Takings(Protocol):
    """What servers tell each other: who took how much, by server and period."""

    async def tell(self, server: str, period: int, taken: Mapping[str, int]) -> None:
        """Write what was taken.

        Raises:
            LedgerUnavailable: the database did not do it.

        """
        ...

    async def forget(self, server: str, before: int, *, others_before: int) -> None:
        """Remove a server's periods before one, and everybody's before another.

        Raises:
            LedgerUnavailable: the database did not do it.

        """
        ...

    async def told(
        self, server: str, after: Mapping[str, int], *, since: int
    ) -> Mapping[tuple[str, int], Mapping[str, int]]:
        """Give what the other servers have written: of each server and period, who took how much.

        Of the servers in `after` only the periods after that, of all others those from `since` on.

        Raises:
            LedgerUnavailable: the database did not answer.

        """
        ...


class SharedLimits:
    """Tells what was taken from some buckets, by their kind (a letter), and charges what others told.

    `server` names this process, and no other that there ever was.
    """

    def __init__(self, takings: Takings, buckets: Mapping[str, Buckets], *, server: str) -> None:
        self._takings = takings
        self._buckets = buckets
        self._server = server
        self._period = 0  # the last that was told
        self._forget_at = 0
        self._charged: dict[str, int] | None = None  # the last period of each other server
        self._heard_since = 0  # the first period that counts: what is older is of servers that are no more
        self._untold: dict[str, int] = {}
        self._failing = False
        self._sharing = Background("rate-sharing", self.share, pause=_EVERY)

    def start(self) -> None:
        """Start sharing in the running event loop."""
        self._sharing.start()

    async def stop(self) -> None:
        """Stop sharing."""
        await self._sharing.stop()

    async def share(self) -> None:
        """Tell and hear once."""
        for kind, buckets in self._buckets.items():
            for key, taken in buckets.heavy(_PART, _MOST_TOLD).items():
                name = f"{kind}:{key}"
                self._untold[name] = self._untold.get(name, 0) + taken
        try:
            if self._untold:
                await self._tell()
            self._heard_since = max(self._heard_since, self._now() - _KEPT_OF_OTHERS)
            charged = self._charged or {}
            self._charge(await self._takings.told(self._server, charged, since=self._heard_since))
        except LedgerUnavailable as error:
            # What is old by the time the database is back is not worth telling.
            self._untold = {}
            if not self._failing:
                _log.warning("limits-not-shared", cause=error.detail)
            self._failing = True
        else:
            self._failing = False

    async def _tell(self) -> None:
        self._period = max(self._period + 1, self._now())
        await self._takings.tell(self._server, self._period, self._untold)
        self._untold = {}
        if self._period >= self._forget_at:
            self._forget_at = self._period + _KEPT
            await self._takings.forget(
                self._server, self._period - _KEPT, others_before=self._period - _KEPT_OF_OTHERS
            )

    def _charge(self, told: Mapping[tuple[str, int], Mapping[str, int]]) -> None:
        # What there was before this server started is not its business.
        starting = self._charged is None
        charged = dict(self._charged or {})
        for (server, period), taken in told.items():
            charged[server] = max(charged.get(server, 0), period)
            if starting:
                continue
            for name, tokens in taken.items():
                kind, _, key = name.partition(":")
                if kind in self._buckets:
                    self._buckets[kind].charge(key, tokens)
        self._charged = {server: last for server, last in charged.items() if last >= self._heard_since}

    @staticmethod
    def _now() -> int:
        return int(time.time() / _EVERY)
