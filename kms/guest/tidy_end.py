"""Tidying up before a signal ends the process, for what must not be left behind."""

import os
import signal
import threading
from collections.abc import Callable, Collection, Mapping
from types import FrameType
from typing import Any, Final, TypeVar

# SIGKILL is what it is. SIGINT first: while it is taken, its own handler may raise, and nothing else is.
_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_UNTOUCHED: Final = (signal.SIG_DFL, signal.default_int_handler)

T = TypeVar("T")


def tidied(work: Callable[[], T], tidy: Callable[[], None]) -> T:
    """Do `work`, give what it gives, and `tidy` whatever happens.

    SIGINT, SIGTERM and SIGHUP interrupt the work and nothing else; after the tidying they do what they do.
    `tidy` must not wait long, and must bear that the work has hardly begun. Only signals that the program
    leaves to the system or to Python, and only in the main thread, which alone may change that.
    """
    if threading.current_thread() is not threading.main_thread():
        try:
            return work()
        finally:
            tidy()
    handlers = {each: signal.getsignal(each) for each in _ENDING}
    taken = {each: handler for each, handler in handlers.items() if handler in _UNTOUCHED}
    held = _Held()
    # No context manager: an interruption between two lines of `contextlib`'s would skip the end of the block.
    # Here `tidy` is still to come wherever the one interruption comes, and nothing interrupts `tidy`. Nor a
    # mask: the kernel would hand the signal to another thread, and Python runs the handler in this one.
    try:
        for each in taken:
            signal.signal(each, held)
        try:
            try:
                held.may_interrupt = True
                return work()
            finally:
                held.may_interrupt = False
        finally:
            tidy()
    finally:
        _give_back(taken, held.came)


class _Held:
    """A handler that keeps signals for later, and interrupts at most once, where it may."""

    def __init__(self) -> None:
        self.came = set[int]()
        self.may_interrupt = False

    def __call__(self, number: int, _: FrameType | None) -> None:
        self.came.add(number)
        if self.may_interrupt:
            self.may_interrupt = False
            raise KeyboardInterrupt  # whatever the signal: it ends the work, and `_give_back` the process


def _give_back(taken: Mapping[signal.Signals, Any], came: Collection[int]) -> None:
    # Python forgets a signal that came just before its handler went: none may come meanwhile.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, taken)
    try:
        for each, handler in reversed(list(taken.items())):
            signal.signal(each, handler)
        for number in came:
            os.kill(os.getpid(), number)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
