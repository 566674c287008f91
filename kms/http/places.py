"""Places for what is worked on: few networks cannot fill those of many, and nobody waits for long.

Whoever floods has more requests waiting than anybody else, so first come, first served would make everybody
wait behind them. Here each network has a share of the places (`kms.http.shares`), and where that does not
do, because there are more networks than places, they have their turns one after another.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from kms.http.limits import ServerBusy
from kms.http.shares import Shares

# Seconds. Who waits holds a connection and a body: rather told to come again than kept.
WAIT_AT_MOST: Final = 2.0


class Places:
    """At most `most` are worked on at once, and as many again wait for their network's turn.

    When too many wait, the newest of the longest line gives way to whoever has a shorter one.
    """

    def __init__(self, most: int, *, wait_at_most: float = WAIT_AT_MOST) -> None:
        self._most = most
        self._wait_at_most = wait_at_most
        self._shares = Shares(most)
        self._lines: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._waiting = 0

    @asynccontextmanager
    async def place(self, network: str) -> AsyncIterator[None]:
        """Take a place for as long as the context lasts.

        Raises:
            ServerBusy: there is none, and there was none in time.

        """
        if self._waiting or not self._shares.take(network):
            await self._wait(network)
        try:
            yield
        finally:
            self._shares.give_back(network)
            self._serve()

    async def _wait(self, network: str) -> None:
        """Return with a place."""
        turn = self._stand(network)
        self._serve()
        try:
            async with asyncio.timeout(self._wait_at_most):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                # The place came at the moment at which nobody wanted it any more.
                self._shares.give_back(network)
            else:
                self._leave(network, turn)
            self._serve()
            if isinstance(error, TimeoutError):
                raise _busy() from None
            raise

    def _stand(self, network: str) -> "asyncio.Future[None]":
        line = self._lines.get(network, deque())
        if self._waiting >= self._most:
            longest = max(self._lines, key=lambda each: len(self._lines[each]))
            if len(self._lines[longest]) <= len(line) + 1:
                raise _busy()
            last = self._lines[longest][-1]
            self._leave(longest, last)
            if not last.done():
                last.set_exception(_busy())
        turn = asyncio.get_running_loop().create_future()
        self._lines.setdefault(network, line).append(turn)
        self._waiting += 1
        return turn

    def _leave(self, network: str, turn: "asyncio.Future[None]") -> None:
        """Take somebody out of a line, unless they left it already."""
        line = self._lines.get(network, deque())
        if turn in line:
            line.remove(turn)
            self._waiting -= 1
            if not line:
                del self._lines[network]

    def _serve(self) -> None:
        """Give free places to those who wait; a network that was served goes behind all others."""
        while (network := self._next()) is not None:
            turn = self._lines[network][0]
            self._lines.move_to_end(network)
            self._leave(network, turn)
            if turn.done():  # cancelled just now
                self._shares.give_back(network)
            else:
                turn.set_result(None)

    def _next(self) -> str | None:
        """Take a place for the network whose turn it is, of those that may have one more."""
        return next((network for network in self._lines if self._shares.take(network)), None)


def _busy() -> ServerBusy:
    return ServerBusy("too many requests at once", retry_after=1)
