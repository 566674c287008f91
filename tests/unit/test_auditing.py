"""Reading a whole ledger to verify it: page by page, every checkpoint, and what is in no leaf."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from itertools import pairwise

import pytest

from kms.administration.auditing import audit, kept_checkpoints
from kms.ledger.checkpoint import open_checkpoint
from kms.ledger.findings import Finding, FindingKind, Report
from kms.ledger.tiles import Edge
from kms.ledger_ports import Leaf, LedgerHead, Recorded
from tests.unit.ledger.recorded_ledger import KEY, SEAL, RecordedLedger, note_of, sealed

SIZE = 1200


class Reader:
    """A ledger in memory, read as from a database; `asked` are the first indexes and sizes of pages."""

    def __init__(self, ledger: RecordedLedger) -> None:
        self.ledger = ledger
        self.asked: list[int] = []
        self.found_astray: list[Finding] = []

    def head_of(self, size: int) -> LedgerHead:
        made_at = datetime(2026, 11, 22, tzinfo=UTC)
        return LedgerHead(size=size, place=self.ledger.place, note=self.ledger.notes[size], made_at=made_at)

    async def head(self) -> LedgerHead | None:
        return self.head_of(self.ledger.size)

    async def checkpoints(self, *, before: int | None, limit: int) -> tuple[LedgerHead, ...]:
        sizes = sorted((size for size in self.ledger.notes if before is None or size < before), reverse=True)
        return tuple(map(self.head_of, sizes[:limit]))

    async def tile(self, level: int, number: int) -> bytes | None:
        return self.ledger.tiles.get((level, number))

    async def leaves(self, start: int, *, limit: int) -> tuple[Leaf, ...]:
        self.asked.append(start)
        indexes = [index for index in sorted(self.ledger.leaves) if index >= start][:limit]
        places = self.ledger.leaves
        return tuple(
            Leaf(index=index, place=places[index], entry=self.ledger.entries.get(places[index]))
            for index in indexes
        )

    async def leaf_of(self, entry_id: str) -> Leaf | None:
        raise AssertionError(entry_id)

    async def recorded(self, entry_id: str) -> Recorded | None:
        raise AssertionError(entry_id)

    async def unsequenced(self) -> AsyncIterator[Recorded]:
        for place in sorted(self.ledger.entries.keys() - set(self.ledger.leaves.values())):
            yield Recorded(place=place, sealed=self.ledger.entries[place])

    async def strays(self) -> AsyncIterator[Finding]:
        for each in self.found_astray:
            yield each

    async def audit(self) -> Report:
        head = self.head_of(self.ledger.size)
        kept = await kept_checkpoints(self, head.size)
        return await audit(self, head, KEY.verifier_key, older=kept.notes, verifies=SEAL.verifies)


async def test_a_sound_one_is_read_once_in_pages() -> None:
    reader = Reader(RecordedLedger.of(SIZE, waiting=3))
    told: list[tuple[int, int]] = []
    head = reader.head_of(SIZE)
    report = await audit(
        reader,
        head,
        KEY.verifier_key,
        verifies=SEAL.verifies,
        progress=lambda done, of: told.append((done, of)),
    )
    assert (report.findings, report.waiting) == ((), 3)
    assert max(later - earlier for earlier, later in pairwise(reader.asked)) <= 500
    assert told[-1] == (SIZE, SIZE)


async def test_every_checkpoint_that_is_kept_counts() -> None:
    """One of many hundreds, in the middle, is of another tree."""
    ledger = RecordedLedger.of(SIZE, checkpoints=range(1, SIZE, 2))
    assert (await Reader(ledger).audit()).sound
    other = RecordedLedger.of(301)
    other.entries[7] = sealed(9999)
    other.recompute_tiles()
    ledger.notes[301] = _note_of(other)
    assert [each.kind for each in (await Reader(ledger).audit()).findings] == [FindingKind.NOT_APPEND_ONLY]


async def test_of_very_many_checkpoints_some_are_looked_at_and_the_others_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kms.administration.auditing._MOST_CHECKPOINTS", 100)
    reader = Reader(RecordedLedger.of(SIZE, checkpoints=range(1, SIZE)))
    kept = await kept_checkpoints(reader, SIZE)
    sizes = [open_checkpoint(note, KEY.verifier_key).size for note in kept.notes]
    assert 50 <= len(sizes) <= 100
    assert len(sizes) + kept.left_out == SIZE - 1
    assert sizes[0] == SIZE - 1
    assert {larger - smaller for larger, smaller in pairwise(sizes)} == {16}
    assert sizes[-1] <= 16


def _note_of(ledger: RecordedLedger) -> str:
    """Sign what the ledger's entries are now."""
    entries = [ledger.entries[place] for _, place in sorted(ledger.leaves.items())]
    growth = Edge.empty().append([entry.digest for entry in entries if entry is not None])
    return note_of(len(entries), growth.root)


async def test_what_is_in_no_leaf_is_read_too() -> None:
    ledger = RecordedLedger.of(SIZE)
    ledger.entries[SIZE + 1] = None
    assert [each.kind for each in (await Reader(ledger).audit()).findings] == [FindingKind.ENTRY_ADDED]
