import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms.snp.pem import MOST_BLOCKS, PemError, pem_blocks

BEGIN, END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"


def block(der: bytes) -> bytes:
    return BEGIN + b"\n" + base64.encodebytes(der) + END + b"\n"


@given(st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=4))
def test_what_stands_between_is_ignored(ders: list[bytes]) -> None:
    other = b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"
    text = b"subject=AMD\n" + other + b"\r\ntext\n".join(map(block, ders)) + b"trailing"
    assert pem_blocks(text, "CERTIFICATE") == tuple(ders)


def test_lines_may_end_and_break_as_they_like() -> None:
    assert pem_blocks(BEGIN + b"\r\nAQ\r\n  ID\t\r\n" + END, "CERTIFICATE") == (b"\x01\x02\x03",)
    assert pem_blocks(BEGIN + b"AQID" + END, "CERTIFICATE") == (b"\x01\x02\x03",)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        BEGIN,
        BEGIN + b"AQID",
        END + b"AQID" + BEGIN,
        BEGIN + END,
        BEGIN + b"AQI" + END,
        BEGIN + b"AQIDBA=" + END,
        BEGIN + b"AQ==ID" + END,
        BEGIN + b"AQI*" + END,
        BEGIN + b"AQ\xc4ID" + END,
        BEGIN + b"Proc-Type: 4,ENCRYPTED\n\nAQID" + END,
        BEGIN + BEGIN + b"AQID" + END,
        block(b"x").replace(b"CERTIFICATE", b"PRIVATE KEY"),
        block(b"x").replace(b"CERTIFICATE", b"certificate"),
        block(b"x") + BEGIN,
        block(b"x") * (MOST_BLOCKS + 1),
    ],
)
def test_what_is_no_text_of_blocks(data: bytes) -> None:
    with pytest.raises(PemError):
        pem_blocks(data, "CERTIFICATE")


def test_as_many_blocks_as_there_may_be() -> None:
    assert len(pem_blocks(block(b"x") * MOST_BLOCKS, "CERTIFICATE")) == MOST_BLOCKS


@given(st.binary(max_size=300), st.binary(max_size=100))
def test_lesson_13_arbitrary_bytes(before: bytes, inside: bytes) -> None:
    for data in (before, before + BEGIN + inside + END):
        try:
            pem_blocks(data, "CERTIFICATE")
        except PemError:
            continue
