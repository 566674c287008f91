"""A disk that fails, or a process that dies, at a chosen step of what is done to files."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

STEPS = [(os, "open"), (os, "fdopen"), (os, "fsync"), (os, "link"), (Path, "replace"), (Path, "unlink")]


class Crash(BaseException):
    """The process is dead: nothing that runs afterwards does anything to a file."""


class Faults:
    """What was done, and whether the chosen step was reached."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.reached = False


@contextmanager
def fault_at(step: int, *, dead: bool) -> Iterator[Faults]:
    """Fail the call of this number (from 0): with ENOSPC and once, or `dead`, and every later one too."""
    faults = Faults()

    def failing(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if faults.reached and dead:
                raise Crash
            if len(faults.done) == step and not faults.reached:
                faults.reached = True
                raise Crash if dead else OSError(28, "No space left on device")
            faults.done.append(name)
            return real(*arguments, **named)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in STEPS:
            patch.setattr(owner, name, failing(name, getattr(owner, name)))
        yield faults


@contextmanager
def recorded() -> Iterator[list[str]]:
    """Record what is done to files."""
    with fault_at(-1, dead=False) as faults:
        yield faults.done
