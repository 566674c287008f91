"""What is wrong with a ledger, each with a name, the index of the leaf, the entry's id, and a sentence."""

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from kms.ledger.checkpoint import Checkpoint

MAX_FINDINGS: Final = 1000  # of each kind: whoever changed a million rows shall not fill the memory


class FindingKind(StrEnum):
    """What can be wrong."""

    ENTRY_CHANGED = "entry-changed"  # it is not the one that is in the tree
    ENTRY_REMOVED = "entry-removed"  # the tree, or the order of recording, has it; the record does not
    ENTRY_MOVED = "entry-moved"  # it is in the tree, at another index
    ENTRY_ADDED = "entry-added"  # recorded, but no server made it, or it was never taken into the tree
    ENTRY_NOT_AUTHENTIC = "entry-not-authentic"  # its MAC is not that of a server of this KMS
    LOOKUP_CHANGED = "lookup-changed"  # what it is looked up by says something else, or of something else
    LEAF_ADDED = "leaf-added"  # a row that calls itself a leaf, and that no checkpoint made
    TILE_CHANGED = "tile-changed"
    ROOT_MISMATCH = "root-mismatch"  # nothing that is stored makes the root of the checkpoint
    CHECKPOINT_FORGED = "checkpoint-forged"  # the log's key did not sign it
    NOT_APPEND_ONLY = "not-append-only"  # an older checkpoint is not the beginning of the newest


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong. `index` is that of a leaf; None where it is about none, or no single one.

    `id` is the entry's, None where there is no entry or it cannot be told. `sentence` is for people.
    """

    kind: FindingKind
    index: int | None
    id: str | None
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a verification found: nothing, if the ledger is sound.

    `checkpoint` is what it was verified against; None if there was none that the key signed. `waiting` is how
    many authentic entries wait for the next checkpoint. `left_out` is how many findings were not kept, since
    there are `MAX_FINDINGS` of their kind; `checkpoints_left_out` how many stored checkpoints were not looked
    at, since there are so many.
    """

    checkpoint: Checkpoint | None
    waiting: int
    findings: tuple[Finding, ...]
    left_out: int
    checkpoints_left_out: int = 0

    @property
    def sound(self) -> bool:
        """Whether everything is as the checkpoint says."""
        return not self.findings


class Findings:
    """Collects findings, at most `MAX_FINDINGS` of each kind."""

    def __init__(self) -> None:
        self._kept: list[Finding] = []
        self._of_kind: Counter[FindingKind] = Counter()

    def add(
        self, kind: FindingKind, sentence: str, *, index: int | None = None, entry_id: str | None = None
    ) -> None:
        """Take a finding."""
        self._of_kind[kind] += 1
        if self._of_kind[kind] <= MAX_FINDINGS:
            self._kept.append(Finding(kind=kind, index=index, id=entry_id, sentence=sentence))

    def by_index(self) -> tuple[Finding, ...]:
        """Give those that were kept: those about no leaf first, then by index."""
        return tuple(sorted(self._kept, key=lambda finding: -1 if finding.index is None else finding.index))

    @property
    def left_out(self) -> int:
        """How many were not kept."""
        return self._of_kind.total() - len(self._kept)
