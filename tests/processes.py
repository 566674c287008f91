"""Processes that tests start: none outlives its block."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T", str, bytes)


@contextmanager
def ended(process: "subprocess.Popen[T]") -> "Iterator[subprocess.Popen[T]]":
    """Wait for a process at the end of the block, and close its pipes; if the block fails, kill it first."""
    with process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise
