"""The tree gives the hashes and proofs of Certificate Transparency's published test vectors.

Leaves, roots and proofs are those of https://github.com/transparency-dev/merkle (testonly/constants.go and
testdata/), which every implementation of RFC 6962 is tested with.
"""

import pytest

from kms.ledger.merkle import (
    EMPTY_ROOT,
    MAX_SIZE,
    consistency_proof,
    consistency_subtrees,
    inclusion_proof,
    inclusion_subtrees,
    leaf_hash,
    node_hash,
    root_from,
    root_of,
    subtrees,
    verify_consistency,
    verify_inclusion,
)
from tests.ledger_verifier import check_consistency, check_inclusion

INPUTS = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    bytes.fromhex(text)
    for text in (
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    )
]
LEAF_5 = "4271a26be0d8a84f0bd54c8c302e7cb3a3b5d1fa6780a40bcce2873477dab658"
NODE_0_1, NODE_2_3 = ROOTS[2].hex(), "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
NODE_4_5 = "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a"
NODE_6_7 = "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"
LEAF_1 = "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"
LEAF_4 = "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"
NODE_0_3 = ROOTS[4].hex()
NODE_4_7 = "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"

LEAVES = [leaf_hash(data) for data in INPUTS]


def hashes(level: int, number: int) -> bytes:
    return root_of(LEAVES[number << level : (number + 1) << level])


def unhex(texts: list[str]) -> tuple[bytes, ...]:
    return tuple(bytes.fromhex(text) for text in texts)


def test_the_roots_of_the_published_leaves_are_the_published_ones() -> None:
    assert [root_of(LEAVES[:size]) for size in range(9)] == ROOTS
    assert [root_from([hashes(*each) for each in subtrees(size)]) for size in range(9)] == ROOTS
    assert ROOTS[0] == EMPTY_ROOT
    assert LEAVES[5].hex() == LEAF_5


@pytest.mark.parametrize(
    ("index", "size", "proof"),
    [
        (0, 1, []),
        (0, 8, [LEAF_1, NODE_2_3, NODE_4_7]),
        (5, 8, [LEAF_4, NODE_6_7, NODE_0_3]),
        (2, 3, [NODE_0_1]),
    ],
)
def test_inclusion_proofs_are_the_published_ones(index: int, size: int, proof: list[str]) -> None:
    assert inclusion_proof(index, size, hashes) == unhex(proof)
    assert verify_inclusion(LEAVES[index], index, size, unhex(proof), ROOTS[size])
    check_inclusion(INPUTS[index], index, size, unhex(proof), ROOTS[size])


@pytest.mark.parametrize(
    ("old", "new", "proof"),
    [
        (1, 1, []),
        (1, 8, [LEAF_1, NODE_2_3, NODE_4_7]),
        (6, 8, [NODE_4_5, NODE_6_7, NODE_0_3]),
        (2, 5, [NODE_2_3, LEAF_4]),
    ],
)
def test_consistency_proofs_are_the_published_ones(old: int, new: int, proof: list[str]) -> None:
    assert consistency_proof(old, new, hashes) == unhex(proof)
    assert verify_consistency(old, ROOTS[old], new, ROOTS[new], unhex(proof))
    check_consistency(old, ROOTS[old], new, ROOTS[new], unhex(proof))


def test_a_node_is_never_a_leaf() -> None:
    left, right = LEAVES[:2]
    assert leaf_hash(left + right) != node_hash(left, right)


def test_proofs_that_are_too_short_or_too_long_prove_nothing() -> None:
    proof = inclusion_proof(5, 8, hashes)
    for wrong in (proof[:-1], proof[1:], (*proof, ROOTS[8]), (ROOTS[8], *proof), ()):
        assert not verify_inclusion(LEAVES[5], 5, 8, wrong, ROOTS[8])
    proof = consistency_proof(6, 8, hashes)
    for wrong in (proof[:-1], proof[1:], (*proof, ROOTS[8]), (ROOTS[6], *proof), ()):
        assert not verify_consistency(6, ROOTS[6], 8, ROOTS[8], wrong)
    assert not verify_consistency(8, ROOTS[8], 8, ROOTS[8], (ROOTS[8],))
    assert not verify_consistency(0, EMPTY_ROOT, 8, ROOTS[8], (ROOTS[8],))
    assert not verify_consistency(4, ROOTS[4], 8, ROOTS[8], ())


def test_a_proof_with_hashes_of_other_lengths_proves_nothing() -> None:
    # 33 and 31 bytes join to the same 64 as two hashes: without a look at lengths, both would give the root.
    left, right = LEAVES[:2]
    assert not verify_inclusion(left + right[:1], 0, 2, [right[1:]], ROOTS[2])
    assert not verify_inclusion(left[:-1], 0, 2, [left[-1:] + right], ROOTS[2])
    assert not verify_consistency(1, left + right[:1], 2, ROOTS[2], [right[1:]])


def test_an_empty_tree_is_the_beginning_of_every_tree_and_has_one_root() -> None:
    assert verify_consistency(0, EMPTY_ROOT, 5, ROOTS[5], ())
    assert verify_consistency(0, EMPTY_ROOT, 0, EMPTY_ROOT, ())
    assert not verify_consistency(0, ROOTS[1], 5, ROOTS[5], ())
    assert not verify_consistency(0, ROOTS[1], 0, ROOTS[1], ())


def test_sizes_and_indexes_out_of_bounds_prove_nothing_and_are_asked_for_in_vain() -> None:
    assert not verify_inclusion(LEAVES[0], 1, 1, (), ROOTS[1])
    assert not verify_inclusion(LEAVES[0], -1, 1, (), ROOTS[1])
    assert not verify_inclusion(LEAVES[0], 0, MAX_SIZE + 1, (), ROOTS[1])
    assert not verify_consistency(2, ROOTS[2], 1, ROOTS[1], ())
    assert not verify_consistency(-1, ROOTS[1], 1, ROOTS[1], ())
    for call in (
        lambda: subtrees(-1),
        lambda: subtrees(MAX_SIZE + 1),
        lambda: inclusion_proof(8, 8, hashes),
        lambda: inclusion_proof(-1, 8, hashes),
        lambda: consistency_proof(9, 8, hashes),
        lambda: consistency_proof(-1, 8, hashes),
        lambda: consistency_proof(1, MAX_SIZE + 1, hashes),
    ):
        with pytest.raises(ValueError, match=r"leaves|leaf|shrink"):
            call()


def test_the_largest_tree_has_proofs_of_sixty_three_hashes() -> None:
    # Any hashes will do: every subtree of this tree has the same ones at each level.
    row = [leaf_hash(b"")]
    for _ in range(63):
        row.append(node_hash(row[-1], row[-1]))

    def same(level: int, _: int) -> bytes:
        return row[level]

    root = root_from([same(*each) for each in subtrees(MAX_SIZE)])
    for index in (0, 1, MAX_SIZE // 2, MAX_SIZE - 1):
        proof = inclusion_proof(index, MAX_SIZE, same)
        assert verify_inclusion(row[0], index, MAX_SIZE, proof, root)
        check_inclusion(b"", index, MAX_SIZE, proof, root)
    proof = inclusion_proof(0, MAX_SIZE, same)
    assert len(proof) == 63
    old = 2**62 + 1
    proof = consistency_proof(old, MAX_SIZE, same)
    old_root = root_from([same(*each) for each in subtrees(old)])
    assert verify_consistency(old, old_root, MAX_SIZE, root, proof)
    check_consistency(old, old_root, MAX_SIZE, root, proof)


def test_what_a_proof_asks_for_is_known_beforehand() -> None:
    asked: list[tuple[int, int]] = []

    def noted(level: int, number: int) -> bytes:
        asked.append((level, number))
        return hashes(level, number)

    inclusion_proof(3, 7, noted)
    assert tuple(asked) == inclusion_subtrees(3, 7)
    asked.clear()
    consistency_proof(3, 7, noted)
    assert tuple(asked) == consistency_subtrees(3, 7)
