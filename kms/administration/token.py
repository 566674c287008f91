"""Operators' tokens: ``kmso_<16 hex: token id>_<base64url of 32 random bytes>``, 65 characters.

The prefix lets scanners of source code and logs recognise one that was left there; the id names it in lists
and in the audit log.
"""

import re
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final, Self

from kms.encoding import b64url
from kms.ports import Randomness

PREFIX: Final = "kmso_"
_TOKEN: Final = re.compile(r"kmso_([0-9a-f]{16})_[A-Za-z0-9_-]{43}")
_ID_LENGTH: Final = 8  # bytes
_SECRET_LENGTH: Final = 32


@dataclass(frozen=True, slots=True)
class OperatorToken:
    """A token. `text` is the secret, and `token_id` is none."""

    token_id: str
    text: str = field(repr=False)

    @classmethod
    def new(cls, randomness: Randomness) -> Self:
        """Make a token."""
        token_id = randomness(_ID_LENGTH).hex()
        return cls(token_id, f"{PREFIX}{token_id}_{b64url(randomness(_SECRET_LENGTH))}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a token. Raises `ValueError`, which does not repeat the text."""
        match = _TOKEN.fullmatch(text)
        if match is None:
            raise ValueError("not an operator's token")
        return cls(match[1], text)

    @property
    def hash(self) -> str:
        """What is stored of it: the SHA-256 of the whole token, hex.

        No slow hash: of 256 random bits nobody finds another by guessing. NIST SP 800-63B (section 5.1.2.2)
        asks for salt and a key derivation function only of secrets with less than 112 bits.
        """
        return sha256(self.text.encode("ascii")).hexdigest()
