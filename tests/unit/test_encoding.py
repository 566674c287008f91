import base64
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms.encoding import b64url, from_base64, from_hex, from_whole_seconds, whole_seconds


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


def test_times_are_whole_seconds_of_utc() -> None:
    moment = datetime(2026, 11, 22, 13, 0, 0, 999_999, timezone(timedelta(hours=1)))
    assert whole_seconds(moment) == "2026-11-22T12:00:00Z"
    assert from_whole_seconds("2026-11-22T12:00:00Z") == datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-11-22",
        "2026-11-22T12:00:00",
        "2026-11-22T12:00:00.0Z",
        "2026-11-22T12:00:00+00:00",
        "2026-1-22T12:00:00Z",
        "2026-11-22t12:00:00z",
        "2026-02-30T12:00:00Z",
        " 2026-11-22T12:00:00Z",
        "0001-01-01T00:00:00Z",
    ],
)
def test_a_time_in_another_spelling(text: str) -> None:
    with pytest.raises(ValueError, match=r"^not a time as in 2026-11-22T12:00:00Z$"):
        from_whole_seconds(text)
