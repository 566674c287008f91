"""Verifying a whole ledger against its newest checkpoint: what is recorded, what is stored of the tree.

Without IO: the caller reads, from a database or from an export, and hands over, in this order::

    verification = LedgerVerification(note, key, older=notes, verifies=seal.verifies, place=head.place)
    for name in verification.tile_names():                       # a database's only
        verification.read_tile(name.level, name.number, …)
    for leaf in …:                                               # by index, from 0
        verification.read_leaf(leaf.index, leaf.place, leaf.entry, leaf.lookup)
    for recorded in …:                                           # a database's only, by place
        verification.read_unsequenced(recorded.place, recorded.sealed, recorded.lookup)
    report = verification.report()

The checkpoint is to be read first: what is added meanwhile is newer, and waits for the next. Of a leaf, 32
bytes are kept (three times that where somebody changed much), and no entry.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias, TypeVar

from kms.ledger.checkpoint import Checkpoint, CheckpointInvalid, open_checkpoint
from kms.ledger.findings import MAX_FINDINGS, Finding, FindingKind, Findings, Report
from kms.ledger.merkle import leaf_hash
from kms.ledger.places import Places
from kms.ledger.proven_tiles import Tiles, full_tiles, hash_above, root_at
from kms.ledger.sealed_entry import NO_SERVER, SealedEntry
from kms.ledger.tiles import TILE_HEIGHT, TileName, level_count, tile_names
from kms.ledger.tree_sources import GONE, TreeSources, indexes_of

_Verifies: TypeAlias = Callable[[SealedEntry], bool]
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class LedgerVerification:
    """Verifies one ledger, once.

    `note` is the newest checkpoint, `key` the log's verifier key. `older` are checkpoints of which the newest
    must be a continuation: stored ones, or an auditor's of yesterday. `verifies` judges MACs
    (`EntrySeal.verifies`); None for who has no key. `place` is the last place that was looked at for the
    newest checkpoint; None for an export, which has neither tiles nor what is not in the tree.

    If the newest is forged, the rest is verified against the largest of the older ones that is not.
    """

    def __init__(
        self,
        note: str,
        key: str,
        *,
        older: Sequence[str] = (),
        verifies: _Verifies | None = None,
        place: int | None = None,
    ) -> None:
        self._findings = Findings()
        newest = self._open(note, key, "the newest checkpoint")
        opened = [self._open(each, key, "an older checkpoint") for each in older]
        self._older = sorted((each for each in opened if each is not None), key=lambda each: each.size)
        self.checkpoint = newest or (self._older[-1] if self._older else None)
        self._size = self.checkpoint.size if self.checkpoint else 0
        self._verifies = verifies
        self._has_tiles = place is not None
        self._places = Places(place) if place is not None and newest is not None else None
        self._sources = TreeSources(self._size)
        # By index: ids of entries that may not be the right ones, and of those whose MAC is wrong.
        self._suspects: dict[int, str] = {}
        self._not_authentic: dict[int, str] = {}
        # By hash: id and place of what is in no leaf, and old enough for one.
        self._strays: dict[bytes, tuple[str, int]] = {}
        self._waiting = 0
        self._begun = False  # a leaf was read that a server by name recorded

    def tile_names(self) -> Iterator[TileName]:
        """Give the tiles to read."""
        return tile_names(self._size)

    def read_tile(self, level: int, number: int, hashes: bytes | None) -> None:
        """Take a stored tile; None where there is none. It may have grown since the checkpoint."""
        if hashes is not None:
            self._sources.take_tile(level, number, hashes)

    def read_leaf(self, index: int, place: int, entry: SealedEntry | None, lookup: str | None = None) -> None:
        """Take a leaf and the entry that stands for it now: None where it is gone.

        `lookup` says what does not fit in the row that the entry is looked up by; None where all does.

        Leaves come in the order of their indexes; one that does not is named.
        """
        if index >= self._size:
            self.read_unsequenced(place, entry, lookup)
            return
        if index < self._sources.next_leaf:
            self._findings.add(
                FindingKind.LEAF_ADDED, f"there is another leaf, at place {place}, that is none"
            )
            return
        self._sources.skip_to(index)
        entry_id = None if entry is None else entry.id
        self._require_of_its_time(index, entry)
        if self._places and not self._places.follows(place):
            lookup = lookup or "its place is not after that of the leaf before it"
        if lookup is not None:
            what = f"what entry {index} is looked up by does not fit: {lookup}"
            self._findings.add(FindingKind.LOOKUP_CHANGED, what, index=index, entry_id=entry_id)
        if entry is None:
            self._sources.take_leaf(GONE)
            return
        if self._places:
            self._places.take(place)
        found = leaf_hash(entry.digest)
        if self._has_tiles and not self._sources.is_stored(index, found):
            _keep(self._suspects, index, entry.id)
        if not self._is_authentic(entry):
            _keep(self._not_authentic, index, entry.id)
        self._sources.take_leaf(found)

    def _require_of_its_time(self, index: int, entry: SealedEntry | None) -> None:
        """Name an entry of before the ledger that is not of its beginning: see `kms.sequencing`."""
        if entry is None:
            return
        if entry.server != NO_SERVER:
            self._begun = True
        elif self._begun:
            what = f"entry {index} is of before the ledger, which had begun already"
            self._findings.add(FindingKind.ENTRY_ADDED, what, index=index, entry_id=entry.id)

    def read_stray(self, finding: Finding) -> None:
        """Take what `LedgerReader.strays` names."""
        self._findings.add(finding.kind, finding.sentence, index=finding.index, entry_id=finding.id)

    def read_unsequenced(self, place: int, entry: SealedEntry | None, lookup: str | None = None) -> None:
        """Take what is recorded and is no leaf; None where it is nothing that a KMS wrote."""
        if self._places:
            self._places.take(place)
        if entry is not None and lookup is not None:
            what = f"what the entry at place {place} is looked up by does not fit: {lookup}"
            self._findings.add(FindingKind.LOOKUP_CHANGED, what, entry_id=entry.id)
        if entry is not None and entry.server == NO_SERVER and self._size:
            what = f"the entry at place {place} is of before the ledger, which had begun already"
            self._findings.add(FindingKind.ENTRY_ADDED, what, entry_id=entry.id)
        elif entry is None or not self._is_authentic(entry):
            what = f"what is recorded at place {place} was made by no server of this KMS"
            entry_id = None if entry is None else entry.id
            self._findings.add(FindingKind.ENTRY_ADDED, what, entry_id=entry_id)
        elif self._places and place <= self._places.last:
            _keep(self._strays, leaf_hash(entry.digest), (entry.id, place))
        else:
            self._waiting += 1

    def report(self) -> Report:
        """Judge what was read, after everything was."""
        self._sources.skip_to(self._size)
        if self.checkpoint is not None:
            proven = self._sources.prove(self.checkpoint.root)
            self._judge_checkpoints(self.checkpoint, proven)
            if self._has_tiles:
                self._judge_tiles(proven)
            self._judge_entries(proven)
        if self._places:
            for first, last in self._places.empty():
                where = f"place {first}" if first == last else f"places {first} to {last}"
                self._findings.add(FindingKind.ENTRY_REMOVED, f"nothing is recorded at {where} any more")
        return Report(
            checkpoint=self.checkpoint,
            waiting=self._waiting,
            findings=self._findings.by_index(),
            left_out=self._findings.left_out,
        )

    def _judge_checkpoints(self, checkpoint: Checkpoint, proven: Tiles) -> None:
        """Compare the newest checkpoint with the tree, and the older ones with the newest."""
        if checkpoint.size and not proven:
            self._findings.add(FindingKind.ROOT_MISMATCH, self._mismatch(checkpoint))
        for older in self._older:
            if older.size > checkpoint.size:
                what = f"there was a checkpoint of {older.size} entries, and the newest has {checkpoint.size}"
                self._findings.add(FindingKind.NOT_APPEND_ONLY, what)
            elif root_at(older.size, proven) not in {None, older.root}:
                what = f"the first {older.size} entries are other ones than in the checkpoint of that size"
                self._findings.add(FindingKind.NOT_APPEND_ONLY, what)

    def _mismatch(self, checkpoint: Checkpoint) -> str:
        """Say as closely as older checkpoints allow where entries are other ones."""
        tiles = self._sources.from_entries()
        good, bad = 0, checkpoint.size
        for older in reversed(self._older):
            if older.size <= checkpoint.size:
                if root_at(older.size, tiles) == older.root:
                    good = older.size
                    break
                bad = older.size
        return (
            f"neither entries nor tiles make the root of the checkpoint of {checkpoint.size} entries; "
            f"the first entry that is another one is between {good} and {bad - 1}"
        )

    def _judge_tiles(self, proven: Tiles) -> None:
        for name in self.tile_names():
            key = max(name.level, 0), name.number
            held = self._sources.held(name)
            right = proven.get(key)
            if held is None:
                what = f"{name.path()} is missing or too short"
                self._findings.add(FindingKind.TILE_CHANGED, what)
            elif held != right and (right is not None or hash_above(proven, *key) is not None):
                what = f"{name.path()} is not the one that the checkpoint vouches for"
                self._findings.add(FindingKind.TILE_CHANGED, what)

    def _judge_entries(self, proven: Tiles) -> None:
        expected = self._sources.expected(proven)
        # Where nothing is proven, an entry is compared with itself: only its MAC can still name it.
        wrong: dict[int, bytes] = {}
        gone: dict[int, None] = {}
        for index, found in self._sources.differing(expected):
            if found == GONE:
                what = f"the entry of leaf {index} is not in the record any more"
                self._findings.add(FindingKind.ENTRY_REMOVED, what, index=index)
                _keep(gone, index, None)
            elif not _keep(wrong, index, found):
                self._changed(index)
        homes = indexes_of({*wrong.values(), *self._strays}, expected)
        for index, found in wrong.items():
            if found in homes:
                what = f"the entry that is recorded for leaf {index} belongs to leaf {homes[found]}"
                self._findings.add(
                    FindingKind.ENTRY_MOVED, what, index=index, entry_id=self._suspects.get(index)
                )
            else:
                self._changed(index)
        for index in self._not_authentic.keys() - wrong.keys():
            what = f"entry {index} has no MAC of a server of this KMS"
            self._findings.add(
                FindingKind.ENTRY_NOT_AUTHENTIC, what, index=index, entry_id=self._not_authentic[index]
            )
        self._judge_strays(homes)
        self._judge_unproven(proven, {*wrong, *gone, *self._not_authentic})

    def _changed(self, index: int) -> None:
        what = f"entry {index} is not the one that is in the tree"
        self._findings.add(FindingKind.ENTRY_CHANGED, what, index=index, entry_id=self._suspects.get(index))

    def _judge_strays(self, homes: Mapping[bytes, int]) -> None:
        for found, (entry_id, place) in self._strays.items():
            if found in homes:
                what = f"the entry at place {place} belongs to leaf {homes[found]}, and stands for no leaf"
                self._findings.add(FindingKind.ENTRY_MOVED, what, entry_id=entry_id)
            else:
                what = f"the entry at place {place} is older than the checkpoint, and is not in the tree"
                self._findings.add(FindingKind.ENTRY_ADDED, what, entry_id=entry_id)

    def _judge_unproven(self, proven: Tiles, named: set[int]) -> None:
        """Name the entries under a hash that nothing makes any more, unless one of them is named already."""
        for level in range(level_count(self._size) - 1):
            leaves = 1 << TILE_HEIGHT * (level + 1)
            for number in range(full_tiles(self._size, level)):
                span = range(number * leaves, (number + 1) * leaves)
                if (
                    (level, number) not in proven
                    and hash_above(proven, level, number) is not None
                    and not any(index in span for index in named)
                ):
                    what = f"at least one of the entries {span[0]} to {span[-1]} is not the one in the tree"
                    self._findings.add(FindingKind.ENTRY_CHANGED, what, index=span[0])

    def _open(self, note: str, key: str, what: str) -> Checkpoint | None:
        try:
            return open_checkpoint(note, key)
        except CheckpointInvalid as error:
            self._findings.add(FindingKind.CHECKPOINT_FORGED, f"{what}: {error.detail}")
            return None

    def _is_authentic(self, entry: SealedEntry) -> bool:
        return self._verifies is None or self._verifies(entry)


def _keep(held: dict[_Key, _Value], key: _Key, value: _Value) -> bool:
    """Keep it, if there is room: whoever changed everything shall not fill the memory."""
    if len(held) < MAX_FINDINGS:
        held[key] = value
    return key in held
