"""How commands that take long say how far they are."""

import sys
import time
from collections.abc import Callable
from typing import Final

_EVERY: Final = 2.0  # seconds


def tell_progress(command: str) -> Callable[[int, int], None]:
    """Give what tells people at a terminal how much is done, and of how much, where that takes long."""
    told = time.monotonic()

    def tell(done: int, of: int) -> None:
        nonlocal told
        if sys.stderr.isatty() and time.monotonic() - told >= _EVERY:
            told = time.monotonic()
            sys.stderr.write(f"{command}: {done} of {of}\n")

    return tell
