"""How far the ledger has come, as this process has seen it, and as the anchor knows it.

A ledger only grows. Where the database shows less of it, or another one, somebody put an older copy in its
place, and nothing may be recorded in it: the entries that are missing were promised to guests.
"""

from kms.errors import LedgerUnavailable
from kms.ledger.checkpoint import CheckpointInvalid, open_checkpoint
from kms.ledger.merkle import HASH_LENGTH, verify_consistency
from kms.ledger.tiles import Edge, TileInvalid, edge_names
from kms.ledger_ports import (
    MAX_PLACE,
    ROLLED_BACK,
    UNTRUSTED,
    LedgerAnchor,
    LedgerHead,
    LedgerReader,
    SeenLedger,
)
from kms.ledger_proofs import consistency


class LedgerMemory:
    """Verifies each newest checkpoint by the ones before. `key` is the ledger's verifier key.

    Ask `look` before the database is asked for its newest checkpoint: the anchor only ever follows it. Asked
    afterwards, a checkpoint in between would look like an older database.
    """

    def __init__(self, ledger: LedgerReader, key: str, anchor: LedgerAnchor) -> None:
        self._ledger = ledger
        self._key = key
        self._anchor = anchor
        self._anchored: SeenLedger | None = None  # what the anchor said last
        self._accepted: int | None = None  # the highest count of acceptances that it said
        self.seen = SeenLedger.nothing()

    async def look(self) -> bool:
        """Take up what the anchor knows. Say whether an operator accepted that the ledger went back.

        Only the anchor's count of acceptances says that: a smaller ledger alone may be an old state of the
        anchor, from a standby or from an answer that was overtaken, and makes nothing forgotten.

        Raises:
            LedgerUnavailable: it cannot be read.

        """
        kept = await self._anchor.anchored_ledger()
        before = self._accepted
        if before is not None and kept.accepted < before:
            return False
        self._anchored, self._accepted = kept.ledger, kept.accepted
        accepted = before is not None and kept.accepted > before
        if accepted or kept.ledger.size > self.seen.size:
            self.seen = kept.ledger
        return accepted

    async def verify(self, head: LedgerHead | None) -> SeenLedger:
        """Give what the database's newest checkpoint says, if the ledger only grew since the last one seen.

        Raises:
            LedgerUnavailable: `ROLLED_BACK`; `UNTRUSTED`; or the database did not answer.

        """
        seen = self.seen
        found = SeenLedger.nothing() if head is None else open_head(head, self._key)
        if found == seen:
            return found
        if found.size < seen.size or found.place < seen.place or found.size == seen.size:
            raise LedgerUnavailable(
                f"the ledger in the database is {described(found)}, and this server has seen"
                f" {described(seen)}: an older copy of the database, or another one",
                reason=ROLLED_BACK,
            )
        proof = await consistency(self._ledger, seen.size, found.size)
        if not verify_consistency(seen.size, seen.root, found.size, found.root, proof):
            await load_edge(self._ledger, found)
            raise LedgerUnavailable(
                f"the ledger in the database is {described(found)}, and does not go on from what this server"
                f" has seen, {described(seen)}: an older copy of the database went on instead",
                reason=ROLLED_BACK,
            )
        return found

    async def keep(self, found: SeenLedger) -> None:
        """Keep what was verified, or was just committed, also in the anchor.

        Raises:
            LedgerUnavailable: it could not be kept there.

        """
        self.seen = found
        if found.size and found != self._anchored:
            await self._anchor.remember_ledger(found)
            self._anchored = found


def open_head(head: LedgerHead, key: str) -> SeenLedger:
    """Give what a checkpoint says, its signature verified by the ledger's verifier key.

    Raises:
        LedgerUnavailable: reason `UNTRUSTED`.

    """
    try:
        checkpoint = open_checkpoint(head.note, key)
    except CheckpointInvalid as error:
        raise LedgerUnavailable(f"the newest checkpoint: {error.detail}", reason=UNTRUSTED) from None
    if checkpoint.size != head.size:
        raise LedgerUnavailable(
            f"the checkpoint of {head.size} entries is one of {checkpoint.size}", reason=UNTRUSTED
        )
    if not checkpoint.size <= head.place <= MAX_PLACE:
        raise LedgerUnavailable(
            f"the checkpoint of {head.size} entries cannot have looked at place {head.place}",
            reason=UNTRUSTED,
        )
    return SeenLedger(size=checkpoint.size, root=checkpoint.root, place=head.place)


async def load_edge(ledger: LedgerReader, found: SeenLedger) -> Edge:
    """Read what it takes to append to a tree, and compare it with its root.

    Raises:
        LedgerUnavailable: reason `UNTRUSTED`: the tiles are not those of this tree; or no answer.

    """
    tiles = {}
    for name in edge_names(found.size):
        tile = await ledger.tile(name.level, name.number) or b""
        # Another sequencer may have made it longer meanwhile: its beginning stays.
        tiles[name.level] = tile[: name.width * HASH_LENGTH]
    try:
        edge = Edge.from_tiles(found.size, tiles)
    except TileInvalid as error:
        raise LedgerUnavailable(f"the ledger's tiles: {error.detail}", reason=UNTRUSTED) from None
    if edge.root() != found.root:
        # Else whoever changed them would have the change signed.
        raise LedgerUnavailable(
            f"the ledger's tiles do not make the root of its checkpoint of {found.size} entries",
            reason=UNTRUSTED,
        )
    return edge


def described(ledger: SeenLedger) -> str:
    """Name a ledger in messages."""
    return f"of {ledger.size} entries with the root {ledger.root.hex()} (place {ledger.place})"
