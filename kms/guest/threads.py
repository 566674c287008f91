"""Work in a thread of its own, for what blocks and cannot be told to stop waiting."""

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
