"""What there is to know a tree from, when nothing of it is trusted: stored tiles, stored digests, entries.

Of a million leaves each source has 32 MB of hashes. Rows that are equal in several are held once.
"""

from collections.abc import Collection, Iterator
from typing import Final

from kms.ledger.merkle import HASH_LENGTH
from kms.ledger.proven_tiles import Tiles, proven_tiles, rebuilt
from kms.ledger.tiles import DATA_LEVEL, TILE_WIDTH, TileName, leaf_hashes, split_tile, tile_names, width_at

GONE: Final = bytes(HASH_LENGTH)  # in the place of a leaf's hash: nothing is known to hash to it


class TreeSources:
    """The sources for a tree of `size` leaves. Tiles are taken before leaves, leaves in their order."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._stored: Tiles = {}
        # These two are rows of leaves' hashes, as tiles of level 0.
        self._digests: Tiles = {}
        self._recorded: Tiles = {}
        self._row = bytearray()
        self.next_leaf = 0

    def take_tile(self, level: int, number: int, hashes: bytes) -> None:
        """Take a stored tile, cut to its width in this tree; one that is too short is as good as missing."""
        length = width_at(self._size, level, number) * HASH_LENGTH
        if len(hashes) < length:
            return
        if level == DATA_LEVEL:
            self._digests[0, number] = self._shared(number, leaf_hashes(hashes[:length]))
        else:
            self._stored[level, number] = hashes[:length]

    def take_leaf(self, found: bytes) -> None:
        """Take the hash of the entry that stands for the next leaf, `GONE` for none."""
        self._row += found
        self.next_leaf += 1
        if self.next_leaf % TILE_WIDTH == 0 or self.next_leaf == self._size:
            number = (self.next_leaf - 1) // TILE_WIDTH
            self._recorded[0, number] = self._shared(number, bytes(self._row))
            self._row.clear()

    def skip_to(self, index: int) -> None:
        """Take the leaves before `index` as gone."""
        while self.next_leaf < index:
            self.take_leaf(GONE)

    def is_stored(self, index: int, found: bytes) -> bool:
        """Say whether both the tile of level 0 and that of the data have this hash at the index."""
        start = index % TILE_WIDTH * HASH_LENGTH
        rows = (source.get((0, index // TILE_WIDTH), b"") for source in (self._stored, self._digests))
        return all(row[start : start + HASH_LENGTH] == found for row in rows)

    def held(self, name: TileName) -> bytes | None:
        """Give the stored tile; of one of the data, the hashes of its digests. None if it is missing."""
        if name.level == DATA_LEVEL:
            return self._digests.get((0, name.number))
        return self._stored.get((name.level, name.number))

    def prove(self, root: bytes) -> Tiles:
        """Give the tiles that the root vouches for: stored, or computed again from what is below them."""
        proven = proven_tiles(self._size, root, [self._stored])
        if len(proven) < sum(name.level != DATA_LEVEL for name in tile_names(self._size)):
            bottoms = [each for each in (self._stored, self._digests, self._recorded) if each]
            above = [rebuilt(each, self._size) for each in bottoms]
            proven = proven_tiles(self._size, root, [self._stored, *above])
        return proven

    def from_entries(self) -> Tiles:
        """Give the tiles that the entries make."""
        return rebuilt(self._recorded, self._size)

    def expected(self, proven: Tiles) -> Tiles:
        """Give the rows that the entries must have: where nothing is proven, those that they have."""
        return {key: proven.get(key, row) for key, row in self._recorded.items()}

    def differing(self, expected: Tiles) -> Iterator[tuple[int, bytes]]:
        """Give index and hash of each entry that is gone (`GONE`) or not the expected one, by index."""
        for (_, number), row in sorted(self._recorded.items()):
            wanted = expected[0, number]
            if row == wanted and GONE not in row:
                continue
            for offset, (found, right) in enumerate(zip(split_tile(row), split_tile(wanted), strict=True)):
                if found == GONE or found != right:
                    yield number * TILE_WIDTH + offset, found

    def _shared(self, number: int, row: bytes) -> bytes:
        """Give the equal row that is held already, if there is one."""
        for source in (self._stored, self._digests):
            held = source.get((0, number))
            if held == row:
                return held
        return row


def indexes_of(hashes: Collection[bytes], rows: Tiles) -> dict[bytes, int]:
    """Give the lowest index at which each of the hashes stands, for those that do."""
    found: dict[bytes, int] = {}
    if hashes:
        for (_, number), row in sorted(rows.items()):
            for offset, each in enumerate(split_tile(row)):
                if each in hashes:
                    found.setdefault(each, number * TILE_WIDTH + offset)
    return found
