import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms.encoding import b64url, from_base64, from_hex


@given(st.binary(max_size=200))
def test_either_alphabet_padded_or_not_is_read(data: bytes) -> None:
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        padded = encode(data).decode()
        assert from_base64(padded) == from_base64(padded.rstrip("=")) == data
    assert b64url(data) == base64.urlsafe_b64encode(data).decode().rstrip("=")


@given(st.text(max_size=12) | st.text("AB+/-_=Qg ", max_size=8))
def test_what_is_read_has_one_spelling_in_each_form(text: str) -> None:
    try:
        data = from_base64(text)
    except ValueError:
        return
    standard = base64.b64encode(data).decode()
    spellings = {standard, standard.rstrip("="), b64url(data), base64.urlsafe_b64encode(data).decode()}
    assert text in spellings


@pytest.mark.parametrize(
    "text",
    [
        "A", "AAAAA", "A===", "AA=", "AAA==", "AAAA=", "AAAA====", "=", "==", "=AAA", "A=AA", "AA=A",
        " AA", "AA ", "A A", "AA\n", "\tAA", "AB", "AAB", "AP==", "-+AA", "_/AA", "A.AA", "ÄAAA", "AA\x00",
    ],
)  # fmt: skip
def test_everything_else_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(ValueError, match="base64") as refused:
        from_base64(text)
    assert text.strip("= ") not in str(refused.value) or len(text.strip("= ")) < 2


@pytest.mark.parametrize(
    "text", ["0", "abc", "AB", "0x00", " 00", "00 ", "0 0", "00\n", "gg", "\u0660\u0660", "é0"]
)
def test_hex_is_lowercase_and_whole(text: str) -> None:
    with pytest.raises(ValueError, match="hex"):
        from_hex(text)


@given(st.binary(max_size=100))
def test_hex_round_trips(data: bytes) -> None:
    assert from_hex(data.hex()) == data
