"""Tidying up before a signal ends the process, for what must not be left behind."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, NoReturn, TypeAlias

_Handler: TypeAlias = Callable[[int, FrameType | None], object] | signal.Handlers

_DEADLY: Final = (signal.SIGTERM, signal.SIGHUP)  # SIGINT is an exception already, and SIGKILL is what it is


class _Ended(BaseException):
    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def tidy_end() -> Iterator[None]:
    """Let SIGTERM and SIGHUP run the `finally` clauses of the block, and then end the process as they do.

    Only where the process leaves them to the system, and in the main thread, which alone may change that.
    """
    in_main = threading.current_thread() is threading.main_thread()
    taken = [each for each in _DEADLY if in_main and signal.getsignal(each) is signal.SIG_DFL]

    def end(number: int, _: FrameType | None) -> NoReturn:
        # The next one must not interrupt the tidying.
        _handle(taken, signal.SIG_IGN)
        raise _Ended(number)

    ended_by = None
    try:
        _handle(taken, end)
        yield
    except _Ended as ended:
        ended_by = ended.number
    finally:
        _handle(taken, signal.SIG_DFL)
    if ended_by is not None:
        signal.raise_signal(ended_by)


def _handle(numbers: list[signal.Signals], handler: _Handler) -> None:
    for each in numbers:
        signal.signal(each, handler)
