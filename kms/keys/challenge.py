"""Challenges: fresh, dated, and recognised by every replica without a memory of them.

::

    version   1 byte    0x01
    nonce    16 bytes   random
    expiry    8 bytes   Unix seconds, big-endian; refused from this second on
    mac      32 bytes   HMAC-SHA-256(mac key, label || 0x00 || the 25 bytes above)

That a challenge is spent only once is the database's work; the spent value is the 57 bytes.
"""

import hmac
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from kms.errors import ChallengeExpired, ChallengeInvalid
from kms.keys.root_messages import require_prf_output
from kms.labels import CHALLENGE, labelled

NONCE_LENGTH: Final = 16
CHALLENGE_LENGTH: Final = 57

_VERSION: Final = b"\x01"
_LONGEST_LIFE: Final = timedelta(days=1)
_EXPIRY_OFFSET: Final = 1 + NONCE_LENGTH
_MAC_OFFSET: Final = _EXPIRY_OFFSET + 8


@dataclass(frozen=True, slots=True)
class Challenge:
    """An authentic challenge. `raw` is the 57 bytes; `expires_at` is UTC, in whole seconds."""

    raw: bytes
    expires_at: datetime


def issue(mac_key: bytes, nonce: bytes, now: datetime, lifetime: timedelta) -> Challenge:
    """Make a challenge that is good until `now` + `lifetime`, rounded down to the second.

    `mac_key` is the root PRF's 64 bytes for `root_messages.challenge_message`; `nonce` is 16 random bytes.

    Raises:
        ValueError: a key or nonce of another length, a naive `now`, or a lifetime that is not positive.

    """
    if len(nonce) != NONCE_LENGTH or lifetime <= timedelta(0):
        raise ValueError(f"a challenge needs {NONCE_LENGTH} random bytes and a life")
    expiry = int(_aware(now + lifetime).timestamp())
    body = _VERSION + nonce + expiry.to_bytes(8, "big")
    return Challenge(body + _mac(mac_key, body), datetime.fromtimestamp(expiry, UTC))


def authenticate(
    mac_key: bytes, raw: bytes, now: datetime, *, longest: timedelta = _LONGEST_LIFE
) -> Challenge:
    """Recognise a challenge that came back. `longest` is the longest life that one may still have.

    Raises:
        ChallengeInvalid: not made under this key; nothing in it was looked at.
        ChallengeExpired: genuine, and `now` is at or after its expiry; or issued by a clock that ran far
            ahead, and so good for longer than any should be.
        ValueError: a key of another length, or a naive `now`.

    """
    _aware(now)
    body, mac = raw[:_MAC_OFFSET], raw[_MAC_OFFSET:]
    # The MAC comes first, in constant time: a forged expiry or version decides nothing.
    # A raw of another length has a MAC or a body of another length, and fails here too.
    if not hmac.compare_digest(mac, _mac(mac_key, body)) or not body.startswith(_VERSION):
        raise ChallengeInvalid("the challenge was not issued by this KMS")
    expires_at = datetime.fromtimestamp(int.from_bytes(body[_EXPIRY_OFFSET:], "big"), UTC)
    if now >= expires_at:
        raise ChallengeExpired("the challenge has expired")
    if expires_at - now > longest:
        raise ChallengeExpired("the challenge was issued by a clock that ran ahead")
    return Challenge(raw, expires_at)


def _mac(mac_key: bytes, body: bytes) -> bytes:
    return hmac.digest(require_prf_output(mac_key), labelled(CHALLENGE, body), "sha256")


def _aware(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError("a time without a zone")
    return moment
