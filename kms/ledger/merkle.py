"""The Merkle tree of RFC 6962 over SHA-256: hashes, roots, proofs of inclusion and of only having grown.

A tree is never held whole. What makes proofs asks for the hashes of *complete subtrees*, `(level, number)`:
that over the leaves ``number * 2**level`` to ``(number + 1) * 2**level - 1``. They never change once their
leaves are there, so tiles can keep them (`kms.ledger.tiles`).
"""

from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from typing import Final, TypeAlias

HASH_LENGTH: Final = 32
MAX_SIZE: Final = 2**63 - 1  # leaves: what C2SP's implementations and a BIGINT can count
EMPTY_ROOT: Final = sha256().digest()  # RFC 6962 section 2.1: the hash of an empty list

Subtree: TypeAlias = tuple[int, int]
# Gives the hash (32 bytes) of the complete subtree (level, number).
Hashes: TypeAlias = Callable[[int, int], bytes]
_Range: TypeAlias = tuple[int, int]  # leaves from the first up to, without, the second


def leaf_hash(data: bytes) -> bytes:
    """Give SHA-256(0x00 || data): 32 bytes. The prefix keeps a node from being shown as a leaf."""
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Give SHA-256(0x01 || left || right): 32 bytes, of two hashes of 32 bytes."""
    return sha256(b"\x01" + left + right).digest()


def root_of(leaf_hashes: Sequence[bytes]) -> bytes:
    """Give the root over the hashes of all leaves, in time linear in their number.

    Pairs are joined level by level, and one without a partner goes up as it is. That is the tree of RFC 6962
    section 2.1, which splits at the largest power of two from above.
    """
    if not leaf_hashes:
        return EMPTY_ROOT
    row = list(leaf_hashes)
    while len(row) > 1:
        joined = [node_hash(left, right) for left, right in zip(row[::2], row[1::2], strict=False)]
        row = joined if len(row) % 2 == 0 else [*joined, row[-1]]
    return row[0]


def subtrees(size: int) -> tuple[Subtree, ...]:
    """Give the complete subtrees, left to right, whose hashes make the root of a tree of `size` leaves.

    Raises:
        ValueError: a size below 0 or above `MAX_SIZE`.

    """
    require_size(size)
    return _subtrees_of((0, size))


def root_from(hashes: Sequence[bytes]) -> bytes:
    """Give the root from the hashes of `subtrees`, in that order; of none it is `EMPTY_ROOT`."""
    if not hashes:
        return EMPTY_ROOT
    *others, root = hashes
    for left in reversed(others):
        root = node_hash(left, root)
    return root


def inclusion_subtrees(index: int, size: int) -> tuple[Subtree, ...]:
    """Give the complete subtrees whose hashes `inclusion_proof` asks for. Raises as it does."""
    return tuple(subtree for leaves in _inclusion_ranges(index, size) for subtree in _subtrees_of(leaves))


def inclusion_proof(index: int, size: int, hashes: Hashes) -> tuple[bytes, ...]:
    """Prove that leaf `index` is in the tree of the first `size` leaves: RFC 6962 section 2.1.1, PATH.

    Raises:
        ValueError: no such leaf, or a size beyond the bounds.

    """
    return tuple(_hash_of(leaves, hashes) for leaves in _inclusion_ranges(index, size))


def consistency_subtrees(old: int, new: int) -> tuple[Subtree, ...]:
    """Give the complete subtrees whose hashes `consistency_proof` asks for. Raises as it does."""
    return tuple(subtree for leaves in _consistency_ranges(old, new) for subtree in _subtrees_of(leaves))


def consistency_proof(old: int, new: int, hashes: Hashes) -> tuple[bytes, ...]:
    """Prove that the first `old` leaves of a tree of `new` are as they were: RFC 6962 section 2.1.2, PROOF.

    From an empty tree, and from a tree to itself, the proof is empty.

    Raises:
        ValueError: `old` above `new`, or sizes beyond the bounds.

    """
    return tuple(_hash_of(leaves, hashes) for leaves in _consistency_ranges(old, new))


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Say whether the leaf with this hash (`leaf_hash`) is number `index` under the root of `size` leaves.

    RFC 9162 section 2.1.3.2. Anything may be handed in: what is out of bounds or of another length is False.
    """
    if not 0 <= index < size <= MAX_SIZE or not _are_hashes(leaf, root, *proof):
        return False
    position, last = index, size - 1
    computed = leaf
    for sibling in proof:
        if last == 0:
            return False
        if position % 2 or position == last:
            computed = node_hash(sibling, computed)
            while position and not position % 2:
                position, last = position >> 1, last >> 1
        else:
            computed = node_hash(computed, sibling)
        position, last = position >> 1, last >> 1
    return last == 0 and computed == root


def verify_consistency(
    old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: Sequence[bytes]
) -> bool:
    """Say whether the tree of the old root is the beginning of that of the new one.

    RFC 9162 section 2.1.4.2. Anything may be handed in: what is out of bounds or of another length is False.
    """
    if not 0 <= old_size <= new_size <= MAX_SIZE or not _are_hashes(old_root, new_root, *proof):
        return False
    if old_size == 0 and old_root != EMPTY_ROOT:
        return False
    if old_size == new_size:
        return not proof and old_root == new_root
    if old_size == 0:
        return not proof
    # A complete old tree is a subtree of the new one: its root is known, and so not in the proof.
    path = [old_root, *proof] if old_size & (old_size - 1) == 0 else list(proof)
    if not path:
        return False
    position, last = old_size - 1, new_size - 1
    while position % 2:
        position, last = position >> 1, last >> 1
    old, new = path[0], path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if position % 2 or position == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while position and not position % 2:
                position, last = position >> 1, last >> 1
        else:
            new = node_hash(new, sibling)
        position, last = position >> 1, last >> 1
    return last == 0 and old == old_root and new == new_root


def _inclusion_ranges(index: int, size: int) -> tuple[_Range, ...]:
    """Give the leaves under each hash of the proof, from the leaf's sibling up."""
    require_size(size)
    if not 0 <= index < size:
        raise ValueError("there is no leaf of this index in a tree of this size")
    found: list[_Range] = []
    begin, end = 0, size
    while end - begin > 1:
        middle = begin + _split(end - begin)
        if index < middle:
            found.append((middle, end))
            end = middle
        else:
            found.append((begin, middle))
            begin = middle
    return tuple(reversed(found))


def _consistency_ranges(old: int, new: int) -> tuple[_Range, ...]:
    """Give the leaves under each hash of the proof, in its order."""
    require_size(new)
    if not 0 <= old <= new:
        raise ValueError("a tree does not shrink: the old size is from 0 to the new one")
    if old == 0:
        return ()
    found: list[_Range] = []
    begin, end = 0, new
    while old != end:
        middle = begin + _split(end - begin)
        if old <= middle:
            found.append((middle, end))
            end = middle
        else:
            found.append((begin, middle))
            begin = middle
    if begin:
        # Only here is what is left not the whole old tree, whose root the verifier has.
        found.append((begin, end))
    return tuple(reversed(found))


def _split(size: int) -> int:
    """Give the largest power of two below `size` (2 or more): where RFC 6962 splits a tree."""
    return 1 << ((size - 1).bit_length() - 1)


def _hash_of(leaves: _Range, hashes: Hashes) -> bytes:
    return root_from([hashes(level, number) for level, number in _subtrees_of(leaves)])


def _subtrees_of(leaves: _Range) -> tuple[Subtree, ...]:
    """Give the complete subtrees over a range that is itself a subtree, complete or at the right edge."""

    def found() -> Iterator[Subtree]:
        begin, end = leaves
        while begin < end:
            level = (end - begin).bit_length() - 1
            yield level, begin >> level
            begin += 1 << level

    return tuple(found())


def require_size(size: int) -> None:
    """Raise `ValueError` for a number of leaves that no tree has."""
    if not 0 <= size <= MAX_SIZE:
        raise ValueError(f"a tree has 0 to {MAX_SIZE} leaves")


def _are_hashes(*values: bytes) -> bool:
    """Say whether all are of 32 bytes: of other lengths, two different pairs could join to the same bytes."""
    return all(len(value) == HASH_LENGTH for value in values)
