"""The tree as tiles: https://c2sp.org/tlog-tiles, which existing transparency-log clients read.

A tile of level L and number N has up to 256 hashes in a row: that at position i is the hash of the complete
subtree over ``256**L`` leaves number ``256 * N + i``. A full tile (256 hashes, 8192 bytes) never changes; one
at the right edge of the tree is partial, and its beginning never changes. Beside them, at `DATA_LEVEL`, stand
the leaves themselves: here digests of 32 bytes. Tiles are bytes: hashes (or digests) after one another.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

from kms.errors import KmsError
from kms.ledger.merkle import (
    HASH_LENGTH,
    MAX_SIZE,
    Hashes,
    Subtree,
    leaf_hash,
    require_size,
    root_from,
    root_of,
    subtrees,
)

TILE_HEIGHT: Final = 8
TILE_WIDTH: Final = 256
TILE_BYTES: Final = TILE_WIDTH * HASH_LENGTH
DATA_LEVEL: Final = -1
_MAX_LEVEL: Final = 63
_PATH: Final = re.compile(
    r"tile/(?P<level>entries|0|[1-9][0-9]?)/(?P<number>(?:x[0-9]{3}/){0,6}[0-9]{3})(?:\.p/(?P<width>[1-9][0-9]{0,2}))?"
)


class TileInvalid(KmsError):
    """A path that names no tile, or a tile that is not as the tree needs it."""

    code = "tile-invalid"


@dataclass(frozen=True, slots=True, order=True)
class TileName:
    """A tile of a level (`DATA_LEVEL`, 0 to 63) and number, and how many hashes are meant (1 to 256)."""

    level: int
    number: int
    width: int = TILE_WIDTH

    def __post_init__(self) -> None:
        if not DATA_LEVEL <= self.level <= _MAX_LEVEL:
            raise ValueError(f"a tile's level is from 0 to {_MAX_LEVEL}, or {DATA_LEVEL} for data")
        if not 0 <= self.number <= MAX_SIZE or not 1 <= self.width <= TILE_WIDTH:
            raise ValueError(f"a tile has a number from 0 and 1 to {TILE_WIDTH} hashes")

    def path(self) -> str:
        """Give the path below the log's prefix, as ``tile/0/x001/x234/067`` or ``tile/entries/000.p/17``."""
        groups = [f"{self.number % 1000:03}"]
        rest = self.number // 1000
        while rest:
            groups.append(f"x{rest % 1000:03}")
            rest //= 1000
        level = "entries" if self.level == DATA_LEVEL else str(self.level)
        partial = f".p/{self.width}" if self.width < TILE_WIDTH else ""
        return f"tile/{level}/{'/'.join(reversed(groups))}{partial}"

    @classmethod
    def parse(cls, path: str) -> Self:
        """Read a path. A tile has one path: leading zeros, ``.p/0``, ``.p/256`` and level 64 are refused.

        Raises:
            TileInvalid: it is not such a path; the message does not repeat it.

        """
        parts = _PATH.fullmatch(path)
        if parts is None:
            raise TileInvalid("not the path of a tile")
        level = DATA_LEVEL if parts["level"] == "entries" else int(parts["level"])
        number = int(parts["number"].replace("x", "").replace("/", ""))
        try:
            name = cls(level, number, int(parts["width"] or TILE_WIDTH))
        except ValueError as error:
            raise TileInvalid(str(error)) from None
        if name.path() != path:
            raise TileInvalid("not the canonical path of a tile")
        return name


def width_at(size: int, level: int, number: int) -> int:
    """Give how many hashes (0 to 256) the tile has in a tree of `size` leaves."""
    hashes = size >> TILE_HEIGHT * max(level, 0)
    return max(0, min(TILE_WIDTH, hashes - number * TILE_WIDTH))


def edge_names(size: int) -> tuple[TileName, ...]:
    """Give the partial tiles of a tree of `size` leaves, from the highest level down to that of the data."""
    found = []
    for level in range(level_count(size) - 1, DATA_LEVEL - 1, -1):
        hashes = size >> TILE_HEIGHT * max(level, 0)
        if hashes % TILE_WIDTH:
            found.append(TileName(level, hashes // TILE_WIDTH, hashes % TILE_WIDTH))
    return tuple(found)


def tile_names(size: int) -> Iterator[TileName]:
    """Give all tiles of a tree of `size` leaves: each level from 0 up by number, then those of the data."""
    for level in (*range(level_count(size)), DATA_LEVEL):
        hashes = size >> TILE_HEIGHT * max(level, 0)
        for number in range(-(-hashes // TILE_WIDTH)):
            yield TileName(level, number, width_at(size, level, number))


def level_count(size: int) -> int:
    """Give how many levels of tiles a tree of `size` leaves has (0 for none): its digits to the base 256."""
    return -(-size.bit_length() // TILE_HEIGHT)


def tiles_needed(wanted: Iterable[Subtree], size: int) -> tuple[TileName, ...]:
    """Give the tiles of a tree of `size` leaves that have the hashes of complete subtrees, each once."""
    found = {}
    for subtree in wanted:
        level, number, _, _ = _place_of(*subtree)
        found[level, number] = TileName(level, number, width_at(size, level, number))
    return tuple(found.values())


def hashes_from_tiles(read: Callable[[int, int], bytes]) -> Hashes:
    """Turn `read`, which gives the tile of a level and number, into the `hashes` of `kms.ledger.merkle`.

    What it gives raises `TileInvalid` where a tile ends before the hashes that are asked for.
    """

    def hashes(level: int, number: int) -> bytes:
        tile_level, tile_number, first, count = _place_of(level, number)
        tile = read(tile_level, tile_number)
        row = tile[first * HASH_LENGTH : (first + count) * HASH_LENGTH]
        if len(row) != count * HASH_LENGTH:
            name = TileName(tile_level, tile_number)
            raise TileInvalid(f"{name.path()} has {len(tile)} bytes, too few for the tree")
        return root_of(split_tile(row))

    return hashes


def split_tile(tile: bytes) -> list[bytes]:
    """Give the hashes of a tile one by one."""
    return [tile[start : start + HASH_LENGTH] for start in range(0, len(tile), HASH_LENGTH)]


def root_of_edge(tiles: Iterable[bytes]) -> bytes:
    """Give the root of a tree from its partial tiles, highest level first, without that of the data."""
    hashes: list[bytes] = []
    for tile in tiles:
        row = split_tile(tile)
        hashes.extend(
            root_of(row[number << level : (number + 1) << level]) for level, number in subtrees(len(row))
        )
    return root_from(hashes)


def entry_bundle(digests: bytes) -> bytes:
    """Give the entry bundle of a data tile (digests after one another): each as u16 BE length, then bytes."""
    prefix = HASH_LENGTH.to_bytes(2, "big")
    return b"".join(prefix + digest for digest in split_tile(digests))


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """The partial tiles of a tree of `size` leaves: all that it takes to append to it.

    `digests` is that of the data; `tiles` are those of the levels from 0 up, each empty bytes where its level
    ends with a full tile.
    """

    size: int
    digests: bytes
    tiles: tuple[bytes, ...]

    @classmethod
    def empty(cls) -> Self:
        """Give the edge of a tree without leaves."""
        return cls(size=0, digests=b"", tiles=())

    @classmethod
    def from_tiles(cls, size: int, tiles: Mapping[int, bytes]) -> Self:
        """Take up the edge from the tiles of `edge_names(size)`, by level.

        That these make the root of a signed checkpoint is for the caller to compare.

        Raises:
            ValueError: a size beyond the bounds.
            TileInvalid: a tile of another width, one too many or too few, or digests of other hashes.

        """
        require_size(size)
        widths = {name.level: name.width for name in edge_names(size)}
        if extra := tiles.keys() - widths:
            raise TileInvalid(f"a tree of {size} leaves has no partial tile of level {min(extra)}")
        for level, width in widths.items():
            if len(tiles.get(level, b"")) != width * HASH_LENGTH:
                raise TileInvalid(f"the partial tile of level {level} has not {width} hashes")
        digests = tiles.get(DATA_LEVEL, b"")
        # Else somebody who changed digests in the database would have them published again, ever longer.
        if tiles.get(0, b"") != leaf_hashes(digests):
            raise TileInvalid("the partial tile of data is not what the tile of level 0 has hashes of")
        return cls(
            size=size,
            digests=digests,
            tiles=tuple(tiles.get(level, b"") for level in range(level_count(size))),
        )

    def root(self) -> bytes:
        """Give the root of the tree: 32 bytes."""
        return root_of_edge(reversed(self.tiles))

    def append(self, digests: Sequence[bytes]) -> "Growth":
        """Append leaves (digests of 32 bytes).

        The cost is that of their number and, for each level of tiles, of at most one tile: 256 hashes.

        Raises:
            ValueError: a digest of another length, or more than `MAX_SIZE` leaves.

        """
        if any(len(digest) != HASH_LENGTH for digest in digests):
            raise ValueError(f"a leaf is a digest of {HASH_LENGTH} bytes")
        size = self.size + len(digests)
        require_size(size)
        changed: dict[tuple[int, int], bytes] = {}

        def extend(level: int, before: bytes, added: bytes) -> list[bytes]:
            first = self.size >> TILE_HEIGHT * (max(level, 0) + 1)
            tiles = _cut(before + added)
            changed.update({(level, first + offset): tile for offset, tile in enumerate(tiles)})
            return tiles

        added = b"".join(digests)
        data = _partial(extend(DATA_LEVEL, self.digests, added)) if added else self.digests
        rows = list(self.tiles)
        added = leaf_hashes(added)
        level = 0
        while added:
            if level == len(rows):
                rows.append(b"")
            tiles = extend(level, rows[level], added)
            rows[level] = _partial(tiles)
            # C2SP: a partial tile is not hashed into one of the level above.
            added = b"".join(root_of(split_tile(tile)) for tile in tiles if len(tile) == TILE_BYTES)
            level += 1
        edge = Edge(size=size, digests=data, tiles=tuple(rows))
        return Growth(edge=edge, tiles=changed, root=edge.root())


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """What appending gave: the new edge, its root, and the tiles that changed, by level and number.

    A changed tile has all its hashes so far; `DATA_LEVEL` is among them.
    """

    edge: Edge
    tiles: Mapping[tuple[int, int], bytes]
    root: bytes


def leaf_hashes(digests: bytes) -> bytes:
    """Give the tile of level 0 over a data tile."""
    return b"".join([leaf_hash(digest) for digest in split_tile(digests)])


def _place_of(level: int, number: int) -> tuple[int, int, int, int]:
    """Say where a complete subtree's hashes are: a tile's level and number, the first of them, how many."""
    tile_level, height = divmod(level, TILE_HEIGHT)
    first = number << height
    return tile_level, first // TILE_WIDTH, first % TILE_WIDTH, 1 << height


def _cut(row: bytes) -> list[bytes]:
    return [row[start : start + TILE_BYTES] for start in range(0, len(row), TILE_BYTES)]


def _partial(tiles: Sequence[bytes]) -> bytes:
    return b"" if len(tiles[-1]) == TILE_BYTES else tiles[-1]
