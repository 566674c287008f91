"""DER has one way to write everything; every other way is refused, and nothing else than `DerError` comes."""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms.simulator import der as writer
from kms.snp import der
from kms.snp.der import DerError, Element


def element(text: str) -> Element:
    (found,) = der.elements(bytes.fromhex(text))
    return found


@pytest.mark.parametrize(
    "text",
    [
        "30", "02", "0201", "020201", "3003020101ff", "1f8101", "3080", "30800000", "308100", "30810102",
        "3081", "308200", "30820080" + "00" * 127, "3084ffffffff", "308500000000010", "30ff", "3f1000",
    ],
)  # fmt: skip
def test_what_is_no_element(text: str) -> None:
    with pytest.raises(DerError):
        der.only(bytes.fromhex(text + "0" * (len(text) % 2)), der.SEQUENCE)


@given(st.lists(st.binary(max_size=300), max_size=4))
def test_elements_are_what_was_written(contents: list[bytes]) -> None:
    written = [writer.tlv(der.OCTET_STRING, content) for content in contents]
    found = der.elements(b"".join(written))
    assert [each.content for each in found] == contents
    assert [each.whole for each in found] == written


@given(st.binary(max_size=200))
def test_arbitrary_bytes(data: bytes) -> None:
    try:
        found = der.elements(data)
    except DerError:
        return
    assert b"".join(each.whole for each in found) == data
    # Shortest lengths: what was read is what would be written.
    assert all(writer.tlv(each.tag, each.content) == each.whole for each in found)


READERS: list[Callable[[Element], object]] = [
    der.boolean_true,
    lambda each: der.unsigned(each, at_most=20),
    der.whole_bytes,
    der.object_identifier,
    der.text,
    der.time,
]


@given(st.sampled_from([1, 2, 3, 4, 6, 0x0C, 0x13, 0x16, 0x17, 0x18, 0x30]), st.binary(max_size=40))
def test_readers_refuse_or_read(tag: int, content: bytes) -> None:
    each = Element(tag, content, b"")
    for read in READERS:
        try:
            read(each)
        except DerError:
            continue


@pytest.mark.parametrize(("text", "value"), [("020100", 0), ("02017f", 127), ("02020080", 128)])
def test_unsigned(text: str, value: int) -> None:
    assert der.unsigned(element(text), at_most=2) == value


@pytest.mark.parametrize("text", ["0200", "020180", "02020001", "0203010000", "0a0101"])
def test_not_unsigned(text: str) -> None:
    with pytest.raises(DerError):
        der.unsigned(element(text), at_most=2)


@pytest.mark.parametrize(
    ("text", "oid"),
    [
        ("0603551d13", "2.5.29.19"),
        ("060a2b060104019c78010308", "1.3.6.1.4.1.3704.1.3.8"),
        ("06012a", "1.2"),
        ("060100", "0.0"),
        ("06028837", "2.999"),
    ],
)
def test_object_identifiers(text: str, oid: str) -> None:
    assert der.object_identifier(element(text)) == oid


@pytest.mark.parametrize(
    "text", ["0600", "060180", "0602802a", "06042a800101", "06062a8181818101", "0621" + "2a" * 33, "04012a"]
)
def test_not_object_identifiers(text: str) -> None:
    with pytest.raises(DerError):
        der.object_identifier(element(text))


def times(tag: int, text: str) -> Element:
    return Element(tag, text.encode("latin-1"), b"")


@pytest.mark.parametrize(
    ("tag", "text", "moment"),
    [
        (der.UTC_TIME, "230403192343Z", datetime(2023, 4, 3, 19, 23, 43, tzinfo=UTC)),
        (der.UTC_TIME, "491231235959Z", datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC)),
        (der.UTC_TIME, "500101000000Z", datetime(1950, 1, 1, tzinfo=UTC)),
        (der.GENERALIZED_TIME, "20500101000000Z", datetime(2050, 1, 1, tzinfo=UTC)),
        (der.GENERALIZED_TIME, "99991231235959Z", datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
    ],
)
def test_times(tag: int, text: str, moment: datetime) -> None:
    assert der.time(times(tag, text)) == moment


@pytest.mark.parametrize(
    ("tag", "text"),
    [
        (der.UTC_TIME, ""),
        (der.UTC_TIME, "2304031923Z"),
        (der.UTC_TIME, "230403192343"),
        (der.UTC_TIME, "230403192343z"),
        (der.UTC_TIME, "230403192343+0000"),
        (der.UTC_TIME, "230229192343Z"),
        (der.UTC_TIME, "230403192360Z"),
        (der.UTC_TIME, "2304031923 3Z"),
        (der.UTC_TIME, "23040319234\xb2Z"),
        (der.UTC_TIME, "20500101000000Z"),
        (der.GENERALIZED_TIME, "20491231235959Z"),
        (der.GENERALIZED_TIME, "20500101000000.5Z"),
        (der.GENERALIZED_TIME, "230403192343Z"),
        (der.INTEGER, "230403192343Z"),
    ],
)
def test_not_times(tag: int, text: str) -> None:
    with pytest.raises(DerError):
        der.time(times(tag, text))


def test_texts() -> None:
    assert der.text(element("0c03c3a478")) == "äx"
    assert der.text(element("13025553")) == "US"
    for text in ("0c00", "0c02c328", "1301c3", "13015f", "16025553", "1e020041"):
        with pytest.raises(DerError):
            der.text(element(text))
