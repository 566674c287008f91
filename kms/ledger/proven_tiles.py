"""Finding the tiles that a signed root vouches for, among those that somebody stored.

Tiles stand in a database that others may have written to, and the same hashes can be had from several
sources: stored, or computed again from what is below them. From the root downwards, a tile is right if it
hashes to what is above it, wherever it came from. What is wrong elsewhere then has a name.
"""

from collections.abc import Sequence
from itertools import product
from typing import TypeAlias

from kms.ledger.merkle import HASH_LENGTH, root_from, root_of, subtrees
from kms.ledger.tiles import (
    DATA_LEVEL,
    TILE_BYTES,
    TILE_HEIGHT,
    TILE_WIDTH,
    TileInvalid,
    edge_names,
    hashes_from_tiles,
    level_count,
    root_of_edge,
    split_tile,
)

# By level (from 0) and number; partial tiles as wide as in the tree that is meant.
Tiles: TypeAlias = dict[tuple[int, int], bytes]


def proven_tiles(size: int, root: bytes, sources: Sequence[Tiles]) -> Tiles:
    """Give the tiles that a root over `size` leaves vouches for, each from the first source that has it.

    Empty if there are no tiles for the right edge that make the root.
    """
    proven = _proven_edge(size, root, sources)
    for level in range(level_count(size) - 2, -1, -1):
        for number in range(full_tiles(size, level)):
            expected = hash_above(proven, level, number)
            if expected is None:
                continue
            for source in sources:
                tile = source.get((level, number), b"")
                if len(tile) == TILE_BYTES and root_of(split_tile(tile)) == expected:
                    proven[level, number] = tile
                    break
    return proven


def hash_above(tiles: Tiles, level: int, number: int) -> bytes | None:
    """Give the hash that the full tile of this level and number must have; None if no tile says it."""
    above = tiles.get((level + 1, number // TILE_WIDTH))
    if above is None:
        return None
    start = number % TILE_WIDTH * HASH_LENGTH
    return above[start : start + HASH_LENGTH]


def full_tiles(size: int, level: int) -> int:
    """Give how many full tiles a level has in a tree of `size` leaves."""
    return size >> TILE_HEIGHT * (level + 1)


def rebuilt(bottom: Tiles, size: int) -> Tiles:
    """Give the tiles of all levels over those of level 0 in `bottom`; wrong ones where one is missing."""
    tiles = {key: tile for key, tile in bottom.items() if key[0] == 0}
    for level in range(level_count(size) - 1):
        hashes = [
            root_of(split_tile(tiles.get((level, number), b""))) for number in range(full_tiles(size, level))
        ]
        for first in range(0, len(hashes), TILE_WIDTH):
            tiles[level + 1, first // TILE_WIDTH] = b"".join(hashes[first : first + TILE_WIDTH])
    return tiles


def root_at(size: int, tiles: Tiles) -> bytes | None:
    """Give the root that the first `size` leaves have by these tiles; None where they lack a tile for it."""

    def read(level: int, number: int) -> bytes:
        return tiles.get((level, number), b"")

    hashes = hashes_from_tiles(read)
    try:
        return root_from([hashes(level, number) for level, number in subtrees(size)])
    except TileInvalid:
        return None


def _proven_edge(size: int, root: bytes, sources: Sequence[Tiles]) -> Tiles:
    """Find partial tiles that make the root.

    They only prove themselves together, so every mixture of the sources is tried: a single one where they
    agree; of a million leaves at most 64, where somebody changed all of them.
    """
    names = [name for name in edge_names(size) if name.level != DATA_LEVEL]
    choices = [
        dict.fromkeys(
            tile
            for source in sources
            if len(tile := source.get((name.level, name.number), b"")) == name.width * HASH_LENGTH
        )
        for name in names
    ]
    for tiles in product(*choices):
        if root_of_edge(tiles) == root:
            return {(name.level, name.number): tile for name, tile in zip(names, tiles, strict=True)}
    return {}
