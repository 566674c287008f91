"""Work in a thread of its own, for what blocks and cannot be told to stop waiting."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def in_thread(work: Callable[[], T], *, name: str, daemon: bool) -> Future[T]:
    """Start it and give its outcome to come.

    Not in a pool: what waits for a free thread there lets its deadline pass, and a pool that an event loop
    or an interpreter waits for at its end would make a lost name server hold both. A thread that is no
    `daemon` is waited for when the program ends.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits for the outcome
            outcome.set_exception(error)

    threading.Thread(target=run, name=name, daemon=daemon).start()
    return outcome


async def unblocked(work: Callable[[threading.Event], T], *, name: str) -> T:
    """Do it in a thread, and give what it gives; the event loop is not blocked.

    Cancelled, this sets the event that `work` has, and waits for its end: when the cancellation comes out of
    here, nothing goes on. Only a second cancellation does not wait.
    """
    stop = threading.Event()
    # No daemon: it would be killed at the end of the program, and leave things undone.
    outcome = asyncio.wrap_future(in_thread(lambda: work(stop), name=name, daemon=False))
    try:
        # Unlike awaiting the outcome itself, this does not forget the thread when it is cancelled.
        await asyncio.wait([outcome])
    except asyncio.CancelledError:
        stop.set()
        # Nobody will ask what came of it.
        outcome.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        await asyncio.wait([outcome])
        raise
    return outcome.result()
