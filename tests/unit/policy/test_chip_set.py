"""A set of chips is a set of chips, in less memory."""

import sys
from collections.abc import Container

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms.identifiers import ChipId
from kms.policy.chip_set import ChipSet

CHIPS = st.integers(1, 40).map(lambda number: number.to_bytes(64, "big"))
A, B = ("ab" * 64, "cd" * 64)


@given(st.lists(CHIPS), st.lists(CHIPS), CHIPS)
def test_it_is_the_set_of_its_chips(ours: list[bytes], theirs: list[bytes], chip: bytes) -> None:
    packed, plain = ChipSet(ours), {ChipId(each) for each in ours}
    others = ChipSet(theirs)
    assert set(packed) == plain
    assert packed == ChipSet(reversed(ours))
    assert list(packed) == sorted(plain)
    assert all(type(each) is ChipId for each in packed)
    assert len(packed) == len(plain)
    assert (chip in packed) == (chip in plain)
    assert packed - others == plain - set(others)
    assert packed & others == plain & set(others)
    assert list(packed.plain()) == sorted(ours and set(ours))


@given(st.lists(CHIPS))
def test_hex_reads_as_the_chips(chips: list[bytes]) -> None:
    assert ChipSet.from_hex([each.hex() for each in chips]) == ChipSet(chips)


@pytest.mark.parametrize(
    "texts",
    [
        [A, B[:-2]],
        [A, B + "00"],
        [A[:-2], B + "ab"],  # together as long as two
        [A, B.upper()],
        [A, "  " + B[2:]],
        [A, "0x" + B[2:]],
        [A, "٣" * 128],
        [A, "any"],
        [A, "00" * 64],
        [""],
    ],
    ids=lambda texts: texts[-1][:8],
)
def test_one_text_that_is_no_chip_id_refuses_all(texts: list[str]) -> None:
    with pytest.raises(ValueError, match=r"chip id|hexadecimal"):
        ChipSet.from_hex(texts)


@pytest.mark.parametrize("chip", [b"", b"\x01" * 32, b"\x01" * 65, bytes(64)])
def test_bytes_that_are_no_chip_id_are_refused(chip: bytes) -> None:
    with pytest.raises(ValueError, match="64 bytes"):
        ChipSet([b"\x01" * 64, chip])


def test_other_things_are_not_in_it() -> None:
    chips: Container[object] = ChipSet.from_hex([A])
    assert bytes.fromhex(A) in chips
    assert A not in chips
    assert b"" not in chips
    assert b"\xff" * 65 not in chips
    assert b"" not in ChipSet([])


def test_a_chip_takes_its_64_bytes() -> None:
    chips = ChipSet(number.to_bytes(64, "big") for number in range(1, 1001))
    assert sys.getsizeof(chips._packed) <= 64 * 1000 + 64
