"""Work whose result several requests want: done once for all who wait for it, and kept.

Whoever asks at the same moment shares one attempt, so that strangers cannot have the same thing done as often
as they can ask. A failure is shared for a moment longer: what is down is not asked again by each of them.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from functools import partial
from typing import Final, Generic, TypeVar

FAILURE_LASTS: Final = 1.0  # seconds

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class SharedWork(Generic[K, V]):
    """Gives what `work` gives for a key, for as long as it is among the `most` that were wanted last."""

    def __init__(self, work: Callable[[K], Awaitable[V]], *, most: int) -> None:
        self._work = work
        self._most = most
        self._kept: OrderedDict[K, V] = OrderedDict()
        # Attempts that go on, or failed a moment ago.
        self._attempts: dict[K, asyncio.Task[V]] = {}

    async def __call__(self, key: K) -> V:
        """Give it from memory, or by an attempt; of these there is one at a time. Raises as `work` does."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        attempt = self._attempts.get(key)
        if attempt is None:
            attempt = self._attempts[key] = asyncio.create_task(self._attempt(key))
            attempt.add_done_callback(partial(self._ended, key))
        # Who began it may go away; the others still wait.
        return await asyncio.shield(attempt)

    async def _attempt(self, key: K) -> V:
        return await self._work(key)

    def _ended(self, key: K, attempt: "asyncio.Task[V]") -> None:
        if attempt.cancelled():  # with the server
            return
        if attempt.exception() is not None:
            attempt.get_loop().call_later(FAILURE_LASTS, self._attempts.pop, key)
            return
        del self._attempts[key]
        self._kept[key] = attempt.result()
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)
