"""Proofs from the tiles in the database: each asks for a handful of them, however large the tree is.

A proof is for whoever checks it against checkpoints: one made of wrong tiles proves nothing to anybody.
"""

from kms.errors import LedgerUnavailable
from kms.ledger.merkle import consistency_proof, consistency_subtrees
from kms.ledger.tiles import TileInvalid, hashes_from_tiles, tiles_needed
from kms.ledger_ports import UNTRUSTED, LedgerReader


async def consistency(reader: LedgerReader, old: int, new: int) -> tuple[bytes, ...]:
    """Prove that the tree of the first `new` leaves goes on from that of the first `old`.

    RFC 6962 section 2.1.2; the hashes have 32 bytes each.

    Raises:
        ValueError: `old` above `new`, or sizes that no tree has.
        LedgerUnavailable: the database did not answer, or (`UNTRUSTED`) lacks a tile, or a part of it.

    """
    tiles = {
        (name.level, name.number): await reader.tile(name.level, name.number) or b""
        for name in tiles_needed(consistency_subtrees(old, new), new)
    }
    try:
        return consistency_proof(old, new, hashes_from_tiles(lambda level, number: tiles[level, number]))
    except TileInvalid as error:
        raise LedgerUnavailable(f"the ledger's tiles: {error.detail}", reason=UNTRUSTED) from None
