"""Work that takes long, beside the event loop: how it is handed in, for the core knows no threads."""

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Beside(Protocol):
    """Computes a function elsewhere, one at a time: operators never starve guests."""

    def __call__(self, work: Callable[[], T], /) -> Awaitable[T]:
        """Compute."""
        ...
