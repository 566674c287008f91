"""Binary in JSON: base64url without padding."""

import base64
import re
from collections.abc import Iterator


def b64(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    """Decode strictly what the server writes."""
    assert re.fullmatch(r"[A-Za-z0-9_-]*", text), "the server writes base64url without padding"
    decoded = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    assert b64(decoded) == text, "trailing bits are not zero"
    return decoded


def strings_in(value: object) -> Iterator[str]:
    """Every string inside a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for member in value.values():
            yield from strings_in(member)
    elif isinstance(value, list):
        for member in value:
            yield from strings_in(member)
