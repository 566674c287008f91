"""Tiles are those of C2SP tlog-tiles, and growing one leaf or a thousand costs what it must."""

from hashlib import sha256

import pytest

from kms.ledger import merkle
from kms.ledger.merkle import EMPTY_ROOT, MAX_SIZE, inclusion_proof, leaf_hash, root_of, subtrees
from kms.ledger.tiles import (
    DATA_LEVEL,
    TILE_BYTES,
    Edge,
    TileInvalid,
    TileName,
    edge_names,
    entry_bundle,
    hashes_from_tiles,
    leaf_hashes,
    tile_names,
    tiles_needed,
    width_at,
)


def digests(count: int, first: int = 0) -> list[bytes]:
    return [sha256(number.to_bytes(8, "big")).digest() for number in range(first, first + count)]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (TileName(0, 0), "tile/0/000"),
        (TileName(0, 1234067), "tile/0/x001/x234/067"),  # the example of tlog-tiles
        (TileName(0, 1234067, 17), "tile/0/x001/x234/067.p/17"),
        (TileName(63, 1000, 1), "tile/63/x001/000.p/1"),
        (TileName(DATA_LEVEL, 999), "tile/entries/999"),
        (TileName(DATA_LEVEL, 0, 255), "tile/entries/000.p/255"),
    ],
)
def test_a_tile_has_the_path_that_c2sp_gives_it(name: TileName, path: str) -> None:
    assert name.path() == path
    assert TileName.parse(path) == name


@pytest.mark.parametrize(
    "path",
    [
        "",
        "tile",
        "tile/0",
        "tile/0/0",
        "tile/0/00",
        "tile/0/0000",
        "tile/00/000",
        "tile/01/000",
        "tile/-1/000",
        "tile/64/000",
        "tile/100/000",
        "tile/0/x000/001",
        "tile/0/x001/x000/x/001",
        "tile/0/x001",
        "tile/0/001/067",
        "tile/0/x01/067",
        "tile/0/000.p/0",
        "tile/0/000.p/256",
        "tile/0/000.p/01",
        "tile/0/000.p/",
        "tile/0/000.p/1/",
        "tile/0/000/",
        "/tile/0/000",
        "tile/0/000\n",
        "tile/0/\u0660\u0660\u0660",
        "tile/0/..%2f",
        "tile/0/../000",
        "tile/data/000",
        "tile/Entries/000",
        "tile/0/x999/x999/x999/x999/x999/x999/999",  # beyond 2^63 - 1
        "tile/0/" + "x001/" * 100_000 + "000",
    ],
    ids=lambda path: path[:40],
)
def test_another_spelling_of_a_path_is_refused(path: str) -> None:
    with pytest.raises(TileInvalid):
        TileName.parse(path)


@pytest.mark.parametrize(
    ("level", "number", "width"), [(64, 0, 1), (-2, 0, 1), (0, -1, 1), (0, 0, 0), (0, 0, 257)]
)
def test_no_tile_is_out_of_bounds(level: int, number: int, width: int) -> None:
    with pytest.raises(ValueError, match="tile"):
        TileName(level, number, width)


def test_a_tree_has_the_tiles_that_c2sp_says() -> None:
    # "a tree of size 70,000 will be represented by 273 full level 0 tiles, one partial level 0 tile of width
    # 112, one full level 1 tile, one partial level 1 tile of width 17, and one partial level 2 tile of width
    # 1"
    names = [name for name in tile_names(70_000) if name.level != DATA_LEVEL]
    assert sum(name.level == 0 and name.width == 256 for name in names) == 273
    assert [name for name in names if name.width < 256] == [
        TileName(0, 273, 112),
        TileName(1, 1, 17),
        TileName(2, 0, 1),
    ]
    assert len(names) == 273 + 1 + 1 + 1 + 1
    # "a tree of size 256 will be represented by a full level 0 tile and a partial level 1 tile of width 1"
    assert list(tile_names(256)) == [TileName(0, 0), TileName(1, 0, 1), TileName(DATA_LEVEL, 0)]
    assert list(tile_names(0)) == []
    assert edge_names(256) == (TileName(1, 0, 1),)
    assert edge_names(257) == (TileName(1, 0, 1), TileName(0, 1, 1), TileName(DATA_LEVEL, 1, 1))
    assert [width_at(300, 0, number) for number in range(3)] == [256, 44, 0]
    assert len(list(edge_names(MAX_SIZE))) == 9


def test_an_entry_bundle_has_each_entry_with_its_length() -> None:
    one, two = digests(2)
    assert entry_bundle(one + two) == b"\x00\x20" + one + b"\x00\x20" + two
    assert entry_bundle(b"") == b""


def test_growing_gives_the_tiles_that_changed_whole_and_nothing_else() -> None:
    leaves = digests(600)
    first = Edge.empty().append(leaves[:250])
    assert set(first.tiles) == {(0, 0), (DATA_LEVEL, 0)}
    second = first.edge.append(leaves[250:])
    assert set(second.tiles) == {(level, number) for level in (0, DATA_LEVEL) for number in (0, 1, 2)} | {
        (1, 0)
    }
    assert second.tiles[DATA_LEVEL, 0] == b"".join(leaves[:256])
    assert second.tiles[DATA_LEVEL, 2] == b"".join(leaves[512:])
    assert second.tiles[0, 1] == leaf_hashes(b"".join(leaves[256:512]))
    assert second.tiles[1, 0] == b"".join(
        root_of([leaf_hash(leaf) for leaf in leaves[start : start + 256]]) for start in (0, 256)
    )
    assert second.root == second.edge.root() == root_of([leaf_hash(leaf) for leaf in leaves])
    nothing = second.edge.append([])
    assert (nothing.edge, nothing.tiles, nothing.root) == (second.edge, {}, second.root)
    assert Edge.empty().append([]).root == EMPTY_ROOT


def test_the_cost_of_growing_is_that_of_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    # An edge of a million leaves, from hashes that are any.
    size = 1_000_000
    data = b"".join(digests(size % 256))
    tiles = {name.level: b"".join(digests(name.width)) for name in edge_names(size) if name.level > 0}
    edge = Edge.from_tiles(size, {**tiles, 0: leaf_hashes(data), DATA_LEVEL: data})
    hashed = 0
    plain = merkle.node_hash

    def counted(left: bytes, right: bytes) -> bytes:
        nonlocal hashed
        hashed += 1
        return plain(left, right)

    monkeypatch.setattr("kms.ledger.merkle.node_hash", counted)
    growth = edge.append(digests(300, first=size))
    assert growth.edge.size == size + 300
    # The tiles that got full, and the three at the edge for the root.
    assert 256 <= hashed <= 300 + 256 + 3 * 256
    assert len(growth.tiles) <= 2 * 3 + 2


def test_an_edge_is_taken_up_only_from_tiles_that_fit() -> None:
    grown = Edge.empty().append(digests(300))
    good = {name.level: grown.tiles[name.level, name.number] for name in edge_names(300)}
    assert Edge.from_tiles(300, good) == grown.edge
    assert Edge.from_tiles(0, {}) == Edge.empty()
    for wrong in (
        {**good, 0: good[0][:-32]},
        {**good, 0: good[0][:-1]},
        {**good, 0: good[0] + bytes(32)},
        {**good, 2: bytes(32)},
        {level: tile for level, tile in good.items() if level != 1},
        {**good, DATA_LEVEL: b"\x00" + good[DATA_LEVEL][1:]},
        {},
    ):
        with pytest.raises(TileInvalid):
            Edge.from_tiles(300, wrong)
    with pytest.raises(ValueError, match="leaves"):
        Edge.from_tiles(-1, {})


def test_a_leaf_is_a_digest() -> None:
    for wrong in (b"", bytes(31), bytes(33)):
        with pytest.raises(ValueError, match="32 bytes"):
            Edge.empty().append([wrong])


def test_a_tree_does_not_grow_beyond_what_can_be_counted() -> None:
    data = b"".join(digests(255))
    tiles = {name.level: b"".join(digests(name.width)) for name in edge_names(MAX_SIZE) if name.level > 0}
    edge = Edge.from_tiles(MAX_SIZE, {**tiles, 0: leaf_hashes(data), DATA_LEVEL: data})
    with pytest.raises(ValueError, match="leaves"):
        edge.append(digests(1))


def test_proofs_need_a_handful_of_tiles_and_a_cut_one_is_noticed() -> None:
    leaves = digests(1000)
    tiles = dict(Edge.empty().append(leaves).tiles)
    hashes = hashes_from_tiles(lambda level, number: tiles[level, number])
    names = tiles_needed(merkle.inclusion_subtrees(700, 1000), 1000)
    assert {(name.level, name.number) for name in names} == {(0, 2), (0, 3), (1, 0)}
    assert {name.width for name in names if (name.level, name.number) == (0, 3)} == {232}
    proof = inclusion_proof(700, 1000, hashes)
    assert merkle.verify_inclusion(
        leaf_hash(leaves[700]), 700, 1000, proof, root_of([leaf_hash(each) for each in leaves])
    )
    tiles[0, 2] = tiles[0, 2][: TILE_BYTES // 2]
    with pytest.raises(TileInvalid, match="tile/0/002"):
        inclusion_proof(700, 1000, hashes)
    assert [hashes(*each) for each in subtrees(256)]
