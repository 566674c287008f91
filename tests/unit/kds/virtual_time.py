"""An event loop whose clock jumps: whoever sleeps ten seconds has slept them at once, in the right order."""

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec

from typing_extensions import override

P = ParamSpec("P")


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self, jump: Callable[[float], None]) -> None:
        super().__init__()
        self._jump = jump

    @override
    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(0)
        if not found:
            if timeout is None:
                raise RuntimeError("everybody waits, and nothing will ever happen")
            self._jump(timeout)
        return found


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time passes only when everybody sleeps."""

    def __init__(self) -> None:
        self._now = 1_000.0
        super().__init__(_JumpingSelector(self._advance))

    def _advance(self, seconds: float) -> None:
        self._now += seconds

    @override
    def time(self) -> float:
        return self._now


def in_virtual_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test on such a loop."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(test(*args, **kwargs))

    return run


def now() -> float:
    """Give the running loop's time."""
    return asyncio.get_running_loop().time()
