"""What anybody may ask of the ledger: checkpoint, tiles, the key, and the proof of a release.

Tiles and proofs hold salted digests, nothing that an entry could be guessed from. Nobody is authenticated
here, so every answer costs a few rows of the database at most.
"""

from dataclasses import dataclass
from typing import Final

from kms.errors import LedgerUnavailable, NotFound
from kms.keys.identity import Identity
from kms.ledger.checkpoint import CheckpointInvalid, open_checkpoint
from kms.ledger.ledger_key import LedgerKey
from kms.ledger.merkle import HASH_LENGTH, inclusion_proof, inclusion_subtrees
from kms.ledger.proofs import InclusionProof
from kms.ledger.tiles import (
    DATA_LEVEL,
    TILE_WIDTH,
    TileInvalid,
    TileName,
    entry_bundle,
    hashes_from_tiles,
    split_tile,
    tiles_needed,
)
from kms.ledger_ports import UNTRUSTED, LedgerHead, LedgerReader
from kms.strict_json import JsonValue

NOT_YET: Final = "not-in-a-checkpoint-yet"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicLedger:
    """The ledger as strangers see it. `identity` vouches for the ledger's `key`."""

    reader: LedgerReader
    key: LedgerKey
    identity: Identity

    async def checkpoint(self) -> str:
        """Give the newest checkpoint, a signed note.

        Raises:
            NotFound: reason ``not-in-a-checkpoint-yet``: there is none yet.
            LedgerUnavailable: the database does not answer.

        """
        return (await self._head()).note

    async def tile(self, name: TileName) -> bytes:
        """Give a tile, or a bundle of entries (here: their digests), as C2SP's tlog-tiles has it.

        Raises:
            NotFound: the tree has no such tile, or not yet so many hashes in it.
            LedgerUnavailable: the database does not answer.

        """
        hashes = await self.reader.tile(name.level, name.number)
        wanted = name.width * HASH_LENGTH
        if hashes is None or len(hashes) < wanted:
            raise NotFound("the ledger has no such tile, or not so much of it")
        # What was once its whole width stays its beginning.
        part = hashes[:wanted]
        return entry_bundle(part) if name.level == DATA_LEVEL else part

    async def statement(self) -> dict[str, JsonValue]:
        """Give the ledger's origin, key and size, and the identity's signed word for the key."""
        head = await self.reader.head()
        signed = self.key.signed_by(self.identity)
        return {
            "origin": self.key.origin,
            "key": self.key.key,
            "size": 0 if head is None else head.size,
            **signed.to_json(),
        }

    async def proof(self, release_id: str) -> dict[str, JsonValue]:
        """Prove that a release, refusal or action is in the ledger.

        The digest is the tree's own: an entry that somebody changed afterwards does not change what is
        proven.

        Raises:
            NotFound: nothing of this id was recorded; or, reason ``not-in-a-checkpoint-yet``, it was, and the
                next checkpoint will have it.
            LedgerUnavailable: the database does not answer, or its tiles are not whole.

        """
        leaf = await self.reader.leaf_of(release_id)
        if leaf is None:
            if await self.reader.recorded(release_id) is None:
                raise NotFound("there is nothing of this id in the record")
            raise NotFound("it is recorded, and the next checkpoint will have it", reason=NOT_YET)
        head = await self._head()
        try:
            # The size that is signed, not the row's: the two differ where somebody wrote in the database.
            size = open_checkpoint(head.note, self.key.key).size
            proof = await self._proof(release_id, leaf.index, size, head.note)
        except (CheckpointInvalid, TileInvalid, ValueError) as error:
            raise LedgerUnavailable(
                f"the ledger in the database does not prove its entries: {error}", reason=UNTRUSTED
            ) from error
        return proof.to_json()

    async def _proof(self, release_id: str, index: int, size: int, note: str) -> InclusionProof:
        """Build the proof. Raises `TileInvalid`, or `ValueError`: no such leaf in a tree of this size."""
        data = TileName(DATA_LEVEL, index // TILE_WIDTH)
        # Of a path that is 2^63 leaves long these are some 16 tiles.
        names = [data, *tiles_needed(inclusion_subtrees(index, size), size)]
        tiles = {(each.level, each.number): await self.reader.tile(each.level, each.number) for each in names}

        def read(level: int, number: int) -> bytes:
            return tiles.get((level, number)) or b""

        digests = split_tile(read(data.level, data.number))
        if index % TILE_WIDTH >= len(digests):
            raise TileInvalid("the tile of data ends before the entry")
        return InclusionProof(
            release_id=release_id,
            digest=digests[index % TILE_WIDTH],
            index=index,
            size=size,
            hashes=inclusion_proof(index, size, hashes_from_tiles(read)),
            checkpoint=note,
        )

    async def _head(self) -> LedgerHead:
        head = await self.reader.head()
        if head is None:
            raise NotFound("there is no checkpoint yet", reason=NOT_YET)
        return head
