"""Work that goes on beside the requests: one loop, one way to start, stop and notice that it died.

A task that ends with an exception nobody awaits is silent: the server would look healthy while nothing is
recorded or followed any more. So a failure of one round is logged and the next round comes, and `alive`
tells readiness the rest.
"""

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

import structlog

_log = structlog.get_logger("kms.background")

_SAY_AGAIN_AFTER: Final = 60.0  # seconds
_PAUSE_AFTER_FAILURE: Final = 1.0  # seconds; work that fails at once must not fill the processor or the log


class Background:
    """Calls `work` again and again in a task named `name`, with `pause` seconds before each call."""

    def __init__(self, name: str, work: Callable[[], Awaitable[None]], *, pause: float = 0.0) -> None:
        self._name = name
        self._work = work
        self._pause = pause
        self._task: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """Whether it was started and still goes on."""
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        """Start in the running event loop."""
        if not self.alive:
            self._task = asyncio.create_task(self._go_on(), name=self._name)

    async def stop(self) -> None:
        """Stop, in the middle of a round if need be."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _go_on(self) -> None:
        while True:
            await asyncio.sleep(self._pause)
            try:
                await self._work()
            except Exception as error:  # noqa: BLE001 -- the outermost shell of a task
                _log.error("background-failed", task=self._name, exc_info=error)
                await asyncio.sleep(_PAUSE_AFTER_FAILURE)


class SaidLately:
    """What goes wrong round after round is said when it is something new, and again after a minute."""

    def __init__(self) -> None:
        self._said: tuple[str, float] | None = None

    def is_due(self, what: str) -> bool:
        """Say whether to say it now; then it counts as said."""
        said, now = self._said, time.monotonic()
        if said is not None and said[0] == what and now - said[1] < _SAY_AGAIN_AFTER:
            return False
        self._said = (what, now)
        return True


@contextmanager
def collector_at_rest() -> Iterator[None]:
    """Keep Python's garbage collector from looking at something large again and again while it is made.

    A policy has nothing in it that refers back to what holds it, so there is nothing to find; but each look
    at all that is alive stops every thread, for a quarter of a second at ten thousand apps.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        # Frozen and thawed, what was made counts as old, which is looked at once in a long while instead of
        # twice in the next second. Nothing stays frozen: garbage has to be found in the end.
        gc.freeze()
        gc.unfreeze()
        if was_on:
            gc.enable()
