"""Strict text encodings of bytes and times: base64url, standard base64, hex, RFC 3339.

Every accepted text has exactly one meaning, and (alphabet and padding apart) every value has exactly one
accepted text, so that nothing can be smuggled in a second spelling of the same bytes.
"""

import base64
import binascii
import re
from datetime import UTC, datetime
from typing import Final

_HEX = re.compile(r"(?:[0-9a-f]{2})*")
_NUMBER = re.compile(r"0x[0-9a-f]+")
_TIME: Final = "%Y-%m-%dT%H:%M:%SZ"  # RFC 3339, UTC, whole seconds


def b64url(data: bytes) -> str:
    """Encode as base64url without padding (RFC 4648 section 5), the form of every binary we send."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def from_base64(text: str) -> bytes:
    """Decode base64url or standard base64, padded or not, one alphabet a value.

    Refuses whitespace, `=` anywhere but as right padding, mixed alphabets and non-zero trailing bits.

    Raises:
        ValueError: the text is none of these; the message does not repeat it.

    """
    body = text.rstrip("=")
    padding = len(text) - len(body)
    needed = -len(body) % 4
    if needed == 3 or padding not in {0, needed}:
        raise ValueError("base64 of an impossible length or padding")
    if "-" in body or "_" in body:
        if "+" in body or "/" in body:
            raise ValueError("not base64url or base64")
        body = body.replace("-", "+").replace("_", "/")
    try:
        data = binascii.a2b_base64(body + "=" * needed, strict_mode=True)
    except ValueError:
        raise ValueError("not base64url or base64") from None
    # Only the last group has bits that say nothing: of a long text no more is encoded again.
    last = len(body) % 4
    if last and binascii.b2a_base64(data[1 - last :], newline=False).decode("ascii")[:last] != body[-last:]:
        raise ValueError("base64 with non-zero trailing bits")
    return data


def from_hex(text: str) -> bytes:
    """Decode lowercase hex without `0x`.

    Raises:
        ValueError: anything else; the message does not repeat it.

    """
    if not _HEX.fullmatch(text):
        raise ValueError("not lowercase hex")
    return bytes.fromhex(text)


def from_0x(text: str) -> int:
    """Read a number in ``0x`` and lowercase hex digits, leading zeros allowed.

    Raises:
        ValueError: anything else; the message does not repeat it.

    """
    if not _NUMBER.fullmatch(text):
        raise ValueError("not 0x and lowercase hex digits")
    return int(text, 16)


def whole_seconds(moment: datetime) -> str:
    """Give an aware time as RFC 3339 in UTC; what is less than a second is left out."""
    return moment.astimezone(UTC).strftime(_TIME)


def from_whole_seconds(text: str) -> datetime:
    """Read what `whole_seconds` gives.

    Raises:
        ValueError: anything else; the message does not repeat it.

    """
    wanted = "not a time as in 2026-11-22T12:00:00Z"
    try:
        moment = datetime.strptime(text, _TIME).replace(tzinfo=UTC)
    except ValueError:
        raise ValueError(wanted) from None
    # strptime also takes fields without their leading zeros.
    if whole_seconds(moment) != text:
        raise ValueError(wanted)
    return moment
