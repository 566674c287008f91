"""Reads a whole ledger to verify it: page by page, so that a million entries are never in memory at once."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from kms.ledger.findings import Finding, Report
from kms.ledger.sealed_entry import SealedEntry
from kms.ledger.verifying import LedgerVerification
from kms.ledger_ports import Leaf, LedgerHead, LedgerReader, Recorded

# Of entries that were read, and of how many there are.
Progress: TypeAlias = Callable[[int, int], None]

_PAGE: Final = 500
# Each is a signature and a root to check, and a busy ledger makes two a second.
_MOST_CHECKPOINTS: Final = 10_000


class Audited(Protocol):
    """What an audit reads: of a database, or of a server."""

    async def tile(self, level: int, number: int) -> bytes | None:
        """As `LedgerReader.tile`."""
        ...

    async def leaves(self, start: int, *, limit: int) -> tuple[Leaf, ...]:
        """As `LedgerReader.leaves`."""
        ...

    def unsequenced(self) -> AsyncIterator[Recorded]:
        """As `LedgerReader.unsequenced`."""
        ...

    def strays(self) -> AsyncIterator[Finding]:
        """As `LedgerReader.strays`."""
        ...


async def audit(
    audited: Audited,
    head: LedgerHead,
    key: str,
    *,
    older: Sequence[str] = (),
    verifies: Callable[[SealedEntry], bool] | None = None,
    progress: Progress = lambda _done, _total: None,
) -> Report:
    """Verify a ledger up to `head`, which was read before anything else, under its verifier `key`.

    `older` are signed notes that it must continue; `verifies` judges MACs, None where nobody can.

    Raises:
        LedgerUnavailable: it cannot be read.

    """
    verification = LedgerVerification(head.note, key, older=older, verifies=verifies, place=head.place)
    total = 0 if verification.checkpoint is None else verification.checkpoint.size
    for name in verification.tile_names():
        verification.read_tile(name.level, name.number, await audited.tile(name.level, name.number))
    start = 0
    while page := await audited.leaves(start, limit=_PAGE):
        for leaf in page:
            verification.read_leaf(leaf.index, leaf.place, leaf.entry, leaf.lookup)
        reached = max(leaf.index for leaf in page) + 1
        if reached <= start:  # none of them is a leaf: they are named, and what is after them is missing
            break
        start = reached
        progress(min(start, total), total)
    async for recorded in audited.unsequenced():
        verification.read_unsequenced(recorded.place, recorded.sealed, recorded.lookup)
    async for stray in audited.strays():
        verification.read_stray(stray)
    return verification.report()


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptCheckpoints:
    """Signed notes of checkpoints to look at, largest first, and how many more are stored."""

    notes: list[str]
    left_out: int


async def kept_checkpoints(reader: LedgerReader, before: int) -> KeptCheckpoints:
    """Give the stored checkpoints of trees smaller than `before`: of very many some thousands, evenly spread.

    Raises:
        LedgerUnavailable: they cannot be read.

    """
    notes: list[str] = []
    count, step = 0, 1
    while page := await reader.checkpoints(before=before, limit=_PAGE):
        for each in page:
            if count % step == 0:
                if len(notes) == _MOST_CHECKPOINTS:
                    del notes[1::2]
                    step *= 2
                notes.append(each.note)
            count += 1
        before = page[-1].size
    return KeptCheckpoints(notes=notes, left_out=count - len(notes))
