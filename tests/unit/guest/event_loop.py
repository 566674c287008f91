"""Waiting on an event loop, for tests: for what must become so, and for a while in which nothing must."""

import asyncio
from collections.abc import Callable
from typing import Final

PATIENCE: Final = 60.0  # seconds, on a machine that is busy


async def until(so: Callable[[], bool]) -> None:
    """Wait until it is so. Raises `TimeoutError` when it does not become so."""
    async with asyncio.timeout(PATIENCE):
        while not so():  # noqa: ASYNC110 - what happens in another thread sets no asyncio.Event
            await asyncio.sleep(0.01)


async def turns(number: int = 10) -> None:
    """Let the loop go on for a while."""
    for _ in range(number):
        await asyncio.sleep(0.01)
