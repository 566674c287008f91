import hashlib
import hmac
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms.errors import ChallengeExpired, ChallengeInvalid
from kms.keys.challenge import CHALLENGE_LENGTH, authenticate, issue
from kms.labels import CHALLENGE, labelled

KEY = hashlib.sha512(b"challenge key").digest()
OTHER_KEY = hashlib.sha512(b"another").digest()
NOW = datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
LIFE = timedelta(seconds=300)
MADE = issue(KEY, bytes(range(16)), NOW, LIFE)
SECOND = timedelta(seconds=1)


def forged(body: bytes, key: bytes = KEY) -> bytes:
    return body + hmac.digest(key, labelled(CHALLENGE, body), "sha256")


def test_layout() -> None:
    assert len(MADE.raw) == CHALLENGE_LENGTH == 57
    assert MADE.raw[0] == 1
    assert MADE.raw[1:17] == bytes(range(16))
    assert MADE.raw[17:25] == int(MADE.expires_at.timestamp()).to_bytes(8, "big")
    assert MADE.expires_at == datetime(2026, 1, 2, 3, 9, 5, tzinfo=UTC)


def test_it_is_good_until_its_expiry_and_not_at_it() -> None:
    assert authenticate(KEY, MADE.raw, NOW) == MADE
    assert authenticate(KEY, MADE.raw, MADE.expires_at - timedelta(microseconds=1)) == MADE
    for late in (MADE.expires_at, MADE.expires_at + 1000 * LIFE):
        with pytest.raises(ChallengeExpired):
            authenticate(KEY, MADE.raw, late)


def test_any_zone_is_the_same_moment() -> None:
    assert authenticate(KEY, MADE.raw, NOW.astimezone(timezone(timedelta(hours=9)))) == MADE


def test_a_replica_with_the_same_root_accepts_it_and_another_does_not() -> None:
    with pytest.raises(ChallengeInvalid):
        authenticate(OTHER_KEY, MADE.raw, NOW)


@given(st.integers(min_value=0, max_value=CHALLENGE_LENGTH * 8 - 1))
def test_any_flipped_bit_is_invalid_even_when_expired(bit: int) -> None:
    raw = bytearray(MADE.raw)
    raw[bit // 8] ^= 1 << bit % 8
    for moment in (NOW, MADE.expires_at + LIFE):
        with pytest.raises(ChallengeInvalid):
            authenticate(KEY, bytes(raw), moment)


@given(st.binary(max_size=120))
def test_strangers_bytes_are_invalid(raw: bytes) -> None:
    with pytest.raises(ChallengeInvalid):
        authenticate(KEY, raw, NOW)


def test_a_guest_cannot_prolong_its_challenge() -> None:
    later = int((NOW + 10 * LIFE).timestamp()).to_bytes(8, "big")
    with pytest.raises(ChallengeInvalid):
        authenticate(KEY, MADE.raw[:17] + later + MADE.raw[25:], NOW)


def test_authentic_bytes_of_another_form_are_invalid() -> None:
    body = MADE.raw[:25]
    assert authenticate(KEY, forged(body), NOW) == MADE
    for other in (b"\2" + body[1:], body[:-1], body + b"\0", b""):
        with pytest.raises(ChallengeInvalid):
            authenticate(KEY, forged(other), NOW)


def test_the_mac_has_its_label() -> None:
    body = MADE.raw[:25]
    with pytest.raises(ChallengeInvalid):
        authenticate(KEY, body + hmac.digest(KEY, body, "sha256"), NOW)


@pytest.mark.parametrize("nonce", [b"", bytes(15), bytes(17)])
def test_a_nonce_has_16_bytes(nonce: bytes) -> None:
    with pytest.raises(ValueError, match="16 random bytes"):
        issue(KEY, nonce, NOW, LIFE)


def test_wrong_uses() -> None:
    with pytest.raises(ValueError, match="life"):
        issue(KEY, bytes(16), NOW, timedelta(0))
    with pytest.raises(ValueError, match="zone"):
        issue(KEY, bytes(16), NOW.replace(tzinfo=None), LIFE)
    with pytest.raises(ValueError, match="zone"):
        authenticate(KEY, MADE.raw, NOW.replace(tzinfo=None))
    with pytest.raises(ValueError, match="64 bytes"):
        authenticate(KEY[:32], MADE.raw, NOW)
