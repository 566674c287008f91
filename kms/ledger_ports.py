"""What the ledger needs from outside: the store of its entries, tiles and checkpoints, and the anchor."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol, Self

from kms.ledger.findings import Finding
from kms.ledger.merkle import EMPTY_ROOT
from kms.ledger.sealed_entry import SealedEntry

# Reasons of `LedgerUnavailable`.
ROLLED_BACK: Final = "ledger-rolled-back"  # there was more of it, or it was another one
UNTRUSTED: Final = "ledger-untrusted"  # its checkpoint or its tiles are not what this KMS made
# No record gets there; what JSON carries exactly (RFC 7493 section 2.2), and the anchor is JSON, ends above.
MAX_PLACE: Final = 2**52


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerHead:
    """The newest checkpoint: a signed note over `size` leaves; `place` was looked at last for it."""

    size: int
    place: int
    note: str
    made_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerState:
    """How far the ledger has come, and the record: `end` is the place of its last entry, 0 for none."""

    head: LedgerHead | None
    end: int

    @property
    def place(self) -> int:
        """The place that was looked at last."""
        return 0 if self.head is None else self.head.place


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What stands in the record at a place. `sealed` is None where it is nothing that a KMS wrote.

    `lookup` is as a leaf's, where it was looked at.
    """

    place: int
    sealed: SealedEntry | None
    lookup: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """A leaf of the tree, and the entry that stands in the record for it now: None where it is gone.

    `lookup` is what does not fit in the row that the entry is looked up by; None where all does.
    """

    index: int
    place: int
    entry: SealedEntry | None
    lookup: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """What a round adds: leaves from `first` on, as places; tiles, by level and number; the new head."""

    first: int
    places: Sequence[int]
    tiles: Mapping[tuple[int, int], bytes]
    head: LedgerHead


class LedgerReader(Protocol):
    """The ledger as it stands in the database, for reading; nothing here says that it is as it was written.

    Every method raises `LedgerUnavailable` when the database does not answer.
    """

    async def head(self) -> LedgerHead | None:
        """Give the newest checkpoint; None before the first."""
        ...

    async def checkpoints(self, *, before: int | None, limit: int) -> tuple[LedgerHead, ...]:
        """Give checkpoints of trees smaller than `before`, largest first."""
        ...

    async def tile(self, level: int, number: int) -> bytes | None:
        """Give the hashes of a tile, as many as there are so far; level -1 has the digests."""
        ...

    async def leaves(self, start: int, *, limit: int) -> tuple[Leaf, ...]:
        """Give leaves from an index on, by index."""
        ...

    async def leaf_of(self, entry_id: str) -> Leaf | None:
        """Give the leaf of an entry by the entry's id; None while it has none."""
        ...

    async def recorded(self, entry_id: str) -> Recorded | None:
        """Give an entry by its id, sequenced or not."""
        ...

    def unsequenced(self) -> AsyncIterator[Recorded]:
        """Give everything in the record that is no leaf, by place: what waits, and what was never taken."""
        ...

    def strays(self) -> AsyncIterator[Finding]:
        """Name rows that belong to nothing: of the tables for looking up, and what calls itself a leaf."""
        ...


class LedgerWriter(LedgerReader, Protocol):
    """The ledger for the one who sequences it."""

    async def state(self) -> LedgerState:
        """Give how far both have come, as of one moment."""
        ...

    def turn(self) -> AbstractAsyncContextManager[bool]:
        """Take the turn to sequence if nobody has it; give whether it was had. `append` decides."""
        ...

    async def after(self, place: int, *, limit: int) -> tuple[Recorded, ...]:
        """Give what was recorded after a place, in order."""
        ...

    async def append(self, growth: Growth) -> bool:
        """Add leaves, tiles and checkpoint in one transaction, if the tree has `growth.first` leaves."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenLedger:
    """How far this server has seen the ledger come: size and root (32 bytes) of a checkpoint, its place."""

    size: int
    root: bytes
    place: int

    @classmethod
    def nothing(cls) -> Self:
        """Give a ledger without entries."""
        return cls(size=0, root=EMPTY_ROOT, place=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchoredLedger:
    """What an anchor keeps of the ledger. `accepted`: how often an operator accepted that it went back."""

    ledger: SeenLedger
    accepted: int


class LedgerAnchor(Protocol):
    """What this server has seen of the ledger, kept outside the database."""

    async def anchored_ledger(self) -> AnchoredLedger:
        """Give it, as of one moment; that of nothing where nothing was seen.

        Raises:
            LedgerUnavailable: it cannot be told.

        """
        ...

    async def remember_ledger(self, seen: SeenLedger) -> None:
        """Keep it, durably; where more is kept, that stays.

        Raises:
            LedgerUnavailable: it could not be kept; or (`ROLLED_BACK`) another ledger of this size is kept.

        """
        ...

    async def accept_ledger(self, seen: SeenLedger) -> None:
        """Keep it although it goes back, and count that: only for an operator who said so."""
        ...
