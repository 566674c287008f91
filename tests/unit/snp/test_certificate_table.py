from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kms.errors import MalformedEvidence
from kms.simulator.certificate_table import certificate_table
from kms.snp.certificate_table import ARK, ASK, MAX_ENTRIES, VCEK, TableEntry, parse_table

OTHER = UUID("11111111-2222-3333-4444-555555555555")


def entry(guid: UUID, offset: int, length: int) -> bytes:
    return guid.bytes + offset.to_bytes(4, "little") + length.to_bytes(4, "little")


def test_what_was_written_is_read_back() -> None:
    blobs = [(VCEK, b"leaf"), (ASK, b"a"), (OTHER, b"anything"), (ARK, b"root")]
    assert parse_table(certificate_table(blobs)) == tuple(TableEntry(*each) for each in blobs)


@pytest.mark.parametrize("empty", [b"", bytes(24), bytes(4096)])
def test_a_table_without_entries_is_normal(empty: bytes) -> None:
    assert parse_table(empty) == ()


@pytest.mark.parametrize(
    "table",
    [
        bytes(23),
        entry(VCEK, 48, 1),
        entry(VCEK, 48, 1) + bytes(23),
        entry(VCEK, 48, 2) + bytes(24) + b"x",
        entry(VCEK, 49, 1) + bytes(24) + b"x",
        entry(VCEK, 47, 1) + bytes(24) + b"x",
        entry(VCEK, 0, 24) + bytes(24),
        entry(VCEK, 48, 0) + bytes(24) + b"x",
        # What wraps in 32 bits: 0xFFFFFFF0 + 0x50 is 0x40.
        entry(VCEK, 0xFFFFFFF0, 0x50) + bytes(24) + b"x" * 64,
        entry(VCEK, 0x50, 0xFFFFFFF0) + bytes(24) + b"x" * 64,
        entry(VCEK, 0xFFFFFFFF, 0xFFFFFFFF) + bytes(24) + b"x" * 64,
        entry(VCEK, 72, 2) + entry(ASK, 73, 2) + bytes(24) + b"xxx",
        entry(VCEK, 72, 3) + entry(ASK, 73, 1) + bytes(24) + b"xxx",
        entry(VCEK, 72, 1) + entry(VCEK, 73, 1) + bytes(24) + b"xx",
        entry(OTHER, 72, 1) + entry(OTHER, 73, 1) + bytes(24) + b"xx",
        b"".join(entry(UUID(int=n + 1), 24, 1) for n in range(MAX_ENTRIES + 1)) + bytes(24),
    ],
)
def test_lesson_13_tables_that_cannot_be(table: bytes) -> None:
    with pytest.raises(MalformedEvidence) as refused:
        parse_table(table)
    assert refused.value.reason == "certificate-table"


def test_as_many_entries_as_there_may_be() -> None:
    blobs = [(UUID(int=n + 1), bytes([n + 1])) for n in range(MAX_ENTRIES)]
    assert len(parse_table(certificate_table(blobs))) == MAX_ENTRIES


ENTRY = st.builds(
    entry,
    st.sampled_from([VCEK, ASK, ARK, OTHER, UUID(int=0)]),
    st.one_of(st.integers(0, 300), st.integers(0, 2**32 - 1)),
    st.one_of(st.integers(0, 300), st.integers(0, 2**32 - 1)),
)


@given(st.lists(ENTRY, max_size=18), st.booleans(), st.binary(max_size=300))
@example([entry(VCEK, 0xFFFFFFF0, 0x20)], True, b"")
def test_lesson_13_a_hostile_table_is_malformed_or_means_what_it_says(
    entries: list[bytes], ended: bool, blobs: bytes
) -> None:
    table = b"".join(entries) + bytes(24 * ended) + blobs
    try:
        parsed = parse_table(table)
    except MalformedEvidence:
        return
    assert sum(len(each.data) for each in parsed) <= len(table)
    assert all(each.data in table for each in parsed)
    assert len({each.guid for each in parsed}) == len(parsed)


@given(st.binary(max_size=600))
def test_lesson_13_arbitrary_bytes(table: bytes) -> None:
    try:
        parse_table(table)
    except MalformedEvidence as refused:
        assert refused.reason == "certificate-table"  # noqa: PT017 -- either way is right
