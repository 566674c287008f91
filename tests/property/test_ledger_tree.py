"""Tree, proofs and tiles agree with an independent verifier: all small sizes, and others at random."""

from collections.abc import Callable, Iterator
from functools import cache
from hashlib import sha256
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kms.ledger.checkpoint import Checkpoint, CheckpointKey
from kms.ledger.merkle import (
    MAX_SIZE,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    root_from,
    root_of,
    subtrees,
    verify_consistency,
    verify_inclusion,
)
from kms.ledger.tiles import (
    DATA_LEVEL,
    TILE_WIDTH,
    Edge,
    TileName,
    edge_names,
    entry_bundle,
    hashes_from_tiles,
    tile_names,
    width_at,
)
from tests.ledger_verifier import LedgerLies, check_consistency, check_inclusion, mth, verify_ledger

MOST = 300
ENTRIES = [(bytes([number % 256]) * 16, b"entry %d" % number) for number in range(3000)]
DIGESTS = [sha256(salt + entry).digest() for salt, entry in ENTRIES]
LEAVES = [leaf_hash(digest) for digest in DIGESTS]
sizes = st.integers(1, len(DIGESTS))


@cache
def hashes(level: int, number: int) -> bytes:
    return root_of(LEAVES[number << level : (number + 1) << level])


@cache
def root(size: int) -> bytes:
    return mth(DIGESTS[:size])


def lies(check: Callable[[], None]) -> bool:
    try:
        check()
    except LedgerLies:
        return True
    return False


def flips(*values: bytes) -> Iterator[tuple[bytes, ...]]:
    """Give the values again and again, one byte of one of them flipped, each byte once."""
    for which, value in enumerate(values):
        for position in range(len(value)):
            flipped = value[:position] + bytes([value[position] ^ 0xFF]) + value[position + 1 :]
            yield (*values[:which], flipped, *values[which + 1 :])


def test_the_root_of_every_size_is_that_of_the_definition() -> None:
    for size in range(MOST + 1):
        assert root_of(LEAVES[:size]) == root(size)
        assert root_from([hashes(*subtree) for subtree in subtrees(size)]) == root(size)


def test_every_index_of_every_size_proves() -> None:
    for size in range(1, MOST + 1):
        for index in range(size):
            proof = inclusion_proof(index, size, hashes)
            assert verify_inclusion(LEAVES[index], index, size, proof, root(size))
            check_inclusion(DIGESTS[index], index, size, proof, root(size))


def test_every_pair_of_sizes_is_consistent() -> None:
    for new in range(MOST + 1):
        for old in range(new + 1):
            proof = consistency_proof(old, new, hashes)
            assert verify_consistency(old, root(old), new, root(new), proof)
            check_consistency(old, root(old), new, root(new), proof)


@settings(deadline=None, max_examples=30)
@given(sizes, st.data())
def test_no_other_proof_leaf_or_root_includes(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    proof = inclusion_proof(index, size, hashes)
    for leaf, other_root, *other in flips(LEAVES[index], root(size), *proof):
        assert not verify_inclusion(leaf, index, size, other, other_root)
    for digest, other_root, *other in flips(DIGESTS[index], root(size), *proof):
        assert lies(lambda d=digest, o=other, r=other_root: check_inclusion(d, index, size, o, r))  # type: ignore[misc]
    for wrong in range(max(0, index - 3), min(size, index + 4)):
        assert verify_inclusion(LEAVES[index], wrong, size, proof, root(size)) is (wrong == index)


@settings(deadline=None, max_examples=30)
@given(sizes, st.data())
def test_no_other_proof_or_root_is_consistent(new: int, data: st.DataObject) -> None:
    old = data.draw(st.integers(1, new))
    proof = consistency_proof(old, new, hashes)
    for old_root, new_root, *other in flips(root(old), root(new), *proof):
        assert not verify_consistency(old, old_root, new, new_root, other)
        assert lies(
            lambda a=old_root, b=new_root, o=other: check_consistency(old, a, new, b, o)  # type: ignore[misc]
        )


@given(
    st.integers(-2, 20),
    st.integers(-2, 20),
    st.lists(st.sampled_from([*LEAVES[:3], b"", bytes(31), root(3)]), max_size=6),
    st.sampled_from([root(1), root(2), root(3), b""]),
    st.sampled_from([root(1), root(2), root(3), b""]),
)
def test_both_verifiers_agree_on_whatever_is_handed_in(
    one: int, other: int, proof: list[bytes], first: bytes, second: bytes
) -> None:
    assert verify_consistency(one, first, other, second, proof) is not lies(
        lambda: check_consistency(one, first, other, second, proof)
    )
    assert verify_inclusion(LEAVES[0], one, other, proof, first) is not lies(
        lambda: check_inclusion(DIGESTS[0], one, other, proof, first)
    )


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 700), max_size=8))
def test_an_edge_that_grew_by_any_batches_is_that_made_at_once(batches: list[int]) -> None:
    edge, tiles = Edge.empty(), dict[tuple[int, int], bytes]()
    for count in batches:
        batch = [DIGESTS[number % len(DIGESTS)] for number in range(edge.size, edge.size + count)]
        growth = edge.append(batch)
        tiles.update(growth.tiles)
        edge = Edge.from_tiles(
            growth.edge.size,
            {name.level: tiles[name.level, name.number] for name in edge_names(growth.edge.size)},
        )
        assert edge == growth.edge
        assert edge.root() == growth.root
    at_once = Edge.empty().append([DIGESTS[number % len(DIGESTS)] for number in range(sum(batches))])
    assert (edge, tiles, edge.root()) == (at_once.edge, at_once.tiles, at_once.root)
    names = {(name.level, name.number): name.width * 32 for name in tile_names(edge.size)}
    assert names == {key: len(tile) for key, tile in tiles.items()}


@settings(deadline=None, max_examples=30)
@given(st.lists(sizes, min_size=1, max_size=4, unique=True).map(sorted))
def test_every_checkpoint_of_a_growing_ledger_verifies_independently(ends: list[int]) -> None:
    key = CheckpointKey(bytes(32), "log.example/1")
    edge, tiles = Edge.empty(), dict[tuple[int, int], bytes]()
    for start, end in pairwise([0, *ends]):
        growth = edge.append(DIGESTS[start:end])
        edge = growth.edge
        tiles.update(growth.tiles)
    note = ""
    for end in ends:
        note = key.sign(Checkpoint(origin=key.origin, size=end, root=root(end)))
        assert verify_ledger(note, key.verifier_key, ENTRIES[:end], lambda path: served(tiles, path)) == end
        stored = hashes_from_tiles(lambda level, number: tiles[level, number])
        check_inclusion(DIGESTS[end // 2], end // 2, end, inclusion_proof(end // 2, end, stored), root(end))
        check_consistency(ends[0], root(ends[0]), end, root(end), consistency_proof(ends[0], end, stored))
    name = next(iter(tiles))
    tiles[name] = bytes([tiles[name][0] ^ 1]) + tiles[name][1:]
    with pytest.raises(LedgerLies):
        verify_ledger(note, key.verifier_key, ENTRIES[: ends[-1]], lambda path: served(tiles, path))
    with pytest.raises(LedgerLies):
        verify_ledger(note, key.verifier_key, ENTRIES[: ends[-1] - 1], lambda path: served(tiles, path))


def served(tiles: dict[tuple[int, int], bytes], path: str) -> bytes:
    name = TileName.parse(path)
    hashes = tiles[name.level, name.number][: name.width * 32]
    return entry_bundle(hashes) if name.level == DATA_LEVEL else hashes


@given(st.integers(DATA_LEVEL, 63), st.integers(0, MAX_SIZE), st.integers(1, TILE_WIDTH))
def test_every_tile_has_a_path_of_its_own(level: int, number: int, width: int) -> None:
    name = TileName(level, number, width)
    assert TileName.parse(name.path()) == name


@given(st.integers(0, MAX_SIZE))
def test_the_edge_of_any_size_is_what_c2sp_says_of_it(size: int) -> None:
    # "The partial tile at level l for a tree of size s has floor(s / 256**l) mod 256 entries."
    widths = {level: size // 256**level % 256 for level in range(8)}
    names = edge_names(size)
    assert {name.level: name.width for name in names if name.level != DATA_LEVEL} == {
        level: width for level, width in widths.items() if width
    }
    assert all(width_at(size, name.level, name.number) == name.width for name in names)
    assert all(width_at(size, name.level, name.number + 1) == 0 for name in names)
