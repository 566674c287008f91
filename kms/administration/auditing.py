"""Reads a whole ledger to verify it: page by page, so that a million entries are never in memory at once."""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final, Protocol, TypeAlias

from kms.ledger.findings import Report
from kms.ledger.sealed_entry import SealedEntry
from kms.ledger.verifying import LedgerVerification
from kms.ledger_ports import Leaf, LedgerHead, LedgerReader, Recorded

# Of entries that were read, and of how many there are.
Progress: TypeAlias = Callable[[int, int], None]

_PAGE: Final = 500


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
        start = page[-1].index + 1
        progress(min(start, total), total)
    async for recorded in audited.unsequenced():
        verification.read_unsequenced(recorded.place, recorded.sealed)
    return verification.report()


async def kept_checkpoints(reader: LedgerReader, before: int) -> list[str]:
    """Give every stored checkpoint of a tree smaller than `before`, as notes. Raises `LedgerUnavailable`."""
    notes: list[str] = []
    while page := await reader.checkpoints(before=before, limit=_PAGE):
        notes += [each.note for each in page]
        before = page[-1].size
    return notes
