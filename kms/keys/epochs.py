"""Epochs: versions of the root, and which of them may be asked for.

An epoch is added, becomes current when its time comes, and is retired in the end; it is never taken away.
Guests get keys of the current epoch, and of any other that is not retired if they ask: how else should they
open and re-encrypt their disks (field lesson 30).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, Self

from kms.keys.root_messages import FOUNDING_EPOCH

LATELY: Final = timedelta(days=30)  # what operators mean by a guest that was seen lately if they say no other


class EpochState(StrEnum):
    """What an epoch is good for at some moment."""

    SCHEDULED = "scheduled"  # made, and not used before its time
    CURRENT = "current"  # what guests get that do not ask for another
    AVAILABLE = "available"  # older, and given to guests that ask
    RETIRED = "retired"  # given to nobody any more


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """One version of the root. Times are UTC; `made_by` and `retired_by` name operators."""

    number: int
    made_at: datetime
    made_by: str
    active_from: datetime
    retired_at: datetime | None = None
    retired_by: str | None = None

    def usable(self, now: datetime) -> bool:
        """Say whether keys of this epoch may be given."""
        return self.retired_at is None and self.active_from <= now


@dataclass(frozen=True, slots=True)
class EpochTable:
    """All epochs as of one look, oldest first: 1, 2, … without a gap."""

    epochs: tuple[Epoch, ...]

    def __post_init__(self) -> None:
        if not self.epochs or not without_gap([each.number for each in self.epochs], FOUNDING_EPOCH):
            raise ValueError("the epochs must be 1, 2, … without a gap")

    @property
    def newest(self) -> Epoch:
        """The epoch that was made last, be it current or not."""
        return self.epochs[-1]

    def epoch(self, number: int) -> Epoch | None:
        """Give one epoch; None where there is none of this number."""
        return next((each for each in self.epochs if each.number == number), None)

    def with_epoch(self, epoch: Epoch) -> "EpochTable":
        """Give the table with an epoch in the place of the one of its number, or added to its end.

        Raises:
            ValueError: it is neither there nor the next one.

        """
        others = [each for each in self.epochs if each.number != epoch.number]
        return EpochTable(tuple(sorted((*others, epoch), key=lambda each: each.number)))

    def available(self, now: datetime) -> tuple[int, ...]:
        """Give the numbers of the epochs that guests may ask for, oldest first; the last one is current."""
        return tuple(each.number for each in self.epochs if each.usable(now))

    def current(self, now: datetime) -> int | None:
        """Give the number of the epoch of new keys; None where every epoch is retired or yet to come."""
        available = self.available(now)
        return available[-1] if available else None

    def choose(self, asked: int | None, pinned: int | None, now: datetime) -> int | None:
        """Give the epoch of a key: as a guest asks, else the one that its app is pinned to, else the current.

        None where there is no current one. Whether it is available is for the caller to see.
        """
        return asked or pinned or self.current(now)

    def state(self, epoch: Epoch, now: datetime) -> EpochState:
        """Say what an epoch of this table is good for."""
        if epoch.retired_at is not None:
            return EpochState.RETIRED
        if epoch.active_from > now:
            return EpochState.SCHEDULED
        return EpochState.CURRENT if epoch.number == self.current(now) else EpochState.AVAILABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyProgress:
    """How far epochs and generations of the identity had come at some moment. None of it ever goes back.

    `epochs` and `generations` are the newest numbers, `in_use` the newest epoch whose time had come (0: none
    is known), `retired` all that were. Each by itself: in a mere sum, an attacker could hide an undone
    retirement behind the next change that operators make.
    """

    epochs: int = 0
    in_use: int = 0
    retired: frozenset[int] = frozenset()
    generations: int = 1

    def with_epochs(self, table: EpochTable, now: datetime) -> Self:
        """Give what a table of epochs shows, with the generations of this."""
        return replace(
            self,
            epochs=table.newest.number,
            in_use=max((each.number for each in table.epochs if each.active_from <= now), default=0),
            retired=frozenset(each.number for each in table.epochs if each.retired_at is not None),
        )

    def includes(self, other: "KeyProgress") -> bool:
        """Say whether nothing of `other` is missing here."""
        return self.united(other) == self

    def united(self, other: "KeyProgress") -> Self:
        """Give the furthest of both."""
        return replace(
            self,
            epochs=max(self.epochs, other.epochs),
            in_use=max(self.in_use, other.in_use),
            retired=self.retired | other.retired,
            generations=max(self.generations, other.generations),
        )


def without_gap(numbers: Sequence[int], first: int) -> bool:
    """Say whether these are `first`, the next one, and so on; there may be none."""
    return list(numbers) == list(range(first, first + len(numbers)))
