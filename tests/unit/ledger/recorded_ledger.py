"""A small ledger in memory, as a database holds it, for tests that change something in it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256

from kms.ledger.checkpoint import Checkpoint, CheckpointKey
from kms.ledger.findings import Report
from kms.ledger.sealed_entry import EntrySeal, SealedEntry
from kms.ledger.tiles import Edge
from kms.ledger.verifying import LedgerVerification

ORIGIN = "attested-kms/v1/ledger/0123456789abcdef"
KEY = CheckpointKey(bytes(range(32)), ORIGIN)
SEAL = EntrySeal(bytes(64))


def sealed(number: int, seal: EntrySeal = SEAL) -> SealedEntry:
    return seal.seal(
        kind="decision",
        id=f"r{number}",
        server="a",
        salt=sha256(number.to_bytes(8, "big")).digest()[:16],
        entry=b'{"number":%d}' % number,
    )


def note_of(size: int, root: bytes, key: CheckpointKey = KEY) -> str:
    return key.sign(Checkpoint(origin=key.origin, size=size, root=root))


@dataclass
class RecordedLedger:
    """Entries by place (from 1), places by leaf, tiles, notes by size."""

    entries: dict[int, SealedEntry | None]
    leaves: dict[int, int] = field(default_factory=dict)
    tiles: dict[tuple[int, int], bytes] = field(default_factory=dict)
    notes: dict[int, str] = field(default_factory=dict)
    lookups: dict[int, str] = field(default_factory=dict)
    place: int = 0

    @classmethod
    def of(cls, size: int, *, checkpoints: Iterable[int] = (), waiting: int = 0) -> "RecordedLedger":
        """Make one of `size` leaves, with checkpoints at these sizes and at the end, and entries waiting."""
        ledger = cls({place: sealed(place) for place in range(1, size + waiting + 1)})
        edge = Edge.empty()
        for end in sorted({*checkpoints, size}):
            growth = edge.append([sealed(place).digest for place in range(edge.size + 1, end + 1)])
            ledger.tiles.update(growth.tiles)
            edge = growth.edge
            ledger.notes[end] = note_of(end, growth.root)
        ledger.leaves = {index: index + 1 for index in range(size)}
        ledger.place = size
        return ledger

    @property
    def size(self) -> int:
        return max(self.notes)

    def recompute_tiles(self) -> None:
        """Make all tiles anew from the entries, as somebody would who wants to hide a change."""
        entries = [self.entries[place] for _, place in sorted(self.leaves.items())]
        growth = Edge.empty().append([entry.digest for entry in entries if entry is not None])
        self.tiles = dict(growth.tiles)

    def verify(self, *, older: Iterable[str] | None = None, macs: bool = True) -> Report:
        """Verify it as a database's, against all its notes."""
        verification = LedgerVerification(
            self.notes[self.size],
            KEY.verifier_key,
            older=[*self.notes.values()] if older is None else [*older],
            verifies=SEAL.verifies if macs else None,
            place=self.place,
        )
        for name in verification.tile_names():
            verification.read_tile(name.level, name.number, self.tiles.get((name.level, name.number)))
        for index, place in sorted(self.leaves.items()):
            verification.read_leaf(index, place, self.entries.get(place), self.lookups.get(index))
        for place, entry in self._unsequenced():
            verification.read_unsequenced(place, entry)
        return verification.report()

    def _unsequenced(self) -> Iterator[tuple[int, SealedEntry | None]]:
        places = {*self.leaves.values()}
        yield from ((place, entry) for place, entry in sorted(self.entries.items()) if place not in places)
