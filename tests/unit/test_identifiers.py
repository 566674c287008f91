import pytest

from kms.identifiers import (
    AppId,
    ChipId,
    ComposeHash,
    FixedBytes,
    InstanceId,
    KeyDigest,
    Measurement,
    OsImageHash,
)

LENGTHS: list[tuple[type[FixedBytes], set[int]]] = [
    (AppId, {20, 32}),
    (InstanceId, set(range(16, 33))),
    (ComposeHash, {32}),
    (OsImageHash, {32}),
    (ChipId, {64}),
    (Measurement, {48}),
    (KeyDigest, {48}),
]


@pytest.mark.parametrize(("kind", "lengths"), LENGTHS)
def test_lessons_23_and_27_only_the_lengths_of_the_protocol(
    kind: type[FixedBytes], lengths: set[int]
) -> None:
    for length in range(70):
        if length in lengths:
            assert kind(b"\x01" * length) == b"\x01" * length
            assert kind.from_hex("01" * length) == b"\x01" * length
        else:
            with pytest.raises(ValueError, match="bytes, not"):
                kind(b"\x01" * length)


@pytest.mark.parametrize("kind", [AppId, InstanceId, ComposeHash, OsImageHash, ChipId])
def test_all_zero_ids_are_refused(kind: type[FixedBytes]) -> None:
    with pytest.raises(ValueError, match="zero"):
        kind(bytes(max(kind.lengths)))


def test_a_report_may_show_zero_digests() -> None:
    assert not any(Measurement(bytes(48)))
    assert not any(KeyDigest(bytes(48)))
