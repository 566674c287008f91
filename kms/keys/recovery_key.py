"""Recovery keys: backups of the root are sealed to them, and nothing else ever is.

A backup lies about for decades, so the key is hybrid: ML-KEM-768 and X25519 (KEM 0x647a, X-Wing). Whoever
copies a backup today and has a quantum computer then still has to break ML-KEM.
"""

import re
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import MLKEM768X25519PrivateKey, MLKEM768X25519PublicKey
from typing_extensions import override

from kms.errors import MalformedRequest
from kms.keys.opening import CannotOpen
from kms.keys.sealing import HPKE_SUITES, MLKEM768_LENGTH, X25519_LENGTH, Recipient, Suite

PUBLIC_LENGTH: Final = MLKEM768_LENGTH + X25519_LENGTH
PRIVATE_LENGTH: Final = (
    64 + X25519_LENGTH
)  # the seed of ML-KEM-768 (FIPS 203 section 7.1: d || z) and X25519's
OVERHEAD: Final = 1088 + X25519_LENGTH + 16  # of what is sealed: the two encapsulated keys and the tag

_SUITE: Final = Suite.HPKE_MLKEM768X25519
_HPKE: Final = HPKE_SUITES[_SUITE]
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


def is_recipient_name(text: str) -> bool:
    """Say whether a recovery key may have this name: 1 to 64 of ``A-Z a-z 0-9 _ -``."""
    return _NAME.fullmatch(text) is not None


def fingerprint(public_key: bytes) -> bytes:
    """Give the SHA-256 (32 bytes) by which people compare public keys."""
    return sha256(public_key).digest()


@dataclass(frozen=True, slots=True)
class RecoveryRecipient:
    """Somebody to whom backups may be sealed. `public_key` is 1184 bytes of ML-KEM-768 and 32 of X25519.

    Raises:
        ValueError: not a name (`is_recipient_name`), or not a key that anything can be sealed to.

    """

    name: str
    public_key: bytes

    def __post_init__(self) -> None:
        if not is_recipient_name(self.name):
            raise ValueError("a recipient's name is 1 to 64 of A-Z a-z 0-9 _ -")
        try:
            Recipient.parse(_SUITE, self.public_key)
        except MalformedRequest as error:
            raise ValueError(error.detail) from None

    @property
    def fingerprint(self) -> bytes:
        """See `fingerprint`."""
        return fingerprint(self.public_key)

    def seal(self, plaintext: bytes | bytearray, info: bytes) -> bytes:
        """Seal to the key: ``enc || ciphertext``, `OVERHEAD` bytes more than the plaintext."""
        mlkem = MLKEM768PublicKey.from_public_bytes(self.public_key[:MLKEM768_LENGTH])
        x25519 = X25519PublicKey.from_public_bytes(self.public_key[MLKEM768_LENGTH:])
        return _HPKE.encrypt(plaintext, MLKEM768X25519PublicKey(mlkem, x25519), info)


class RecoveryKey:
    """A key pair that opens backups. `public_key` has `PUBLIC_LENGTH` bytes."""

    __slots__ = ("_mlkem", "_x25519", "public_key")

    def __init__(self, private: bytes | bytearray) -> None:
        """Take the private key, `PRIVATE_LENGTH` bytes: the seed of ML-KEM-768, then X25519's.

        Raises:
            ValueError: another length.

        """
        if len(private) != PRIVATE_LENGTH:
            raise ValueError(f"a private recovery key has {PRIVATE_LENGTH} bytes")
        self._mlkem = MLKEM768PrivateKey.from_seed_bytes(private[:-X25519_LENGTH])
        self._x25519 = X25519PrivateKey.from_private_bytes(private[-X25519_LENGTH:])
        self.public_key = (
            self._mlkem.public_key().public_bytes_raw() + self._x25519.public_key().public_bytes_raw()
        )

    @classmethod
    def generate(cls) -> Self:
        """Make a key pair from the system's randomness."""
        mlkem, x25519 = MLKEM768PrivateKey.generate(), X25519PrivateKey.generate()
        return cls(mlkem.private_bytes_raw() + x25519.private_bytes_raw())

    def private_bytes(self) -> bytes:
        """Give the private key, for its file."""
        return self._mlkem.private_bytes_raw() + self._x25519.private_bytes_raw()

    def open(self, sealed: bytes, info: bytes) -> bytes:
        """Open what was sealed to this key under this info.

        Raises:
            CannotOpen: it does not open.

        """
        try:
            return _HPKE.decrypt(sealed, MLKEM768X25519PrivateKey(self._mlkem, self._x25519), info)
        except InvalidTag:
            raise CannotOpen("not sealed to this key, not for this use, or damaged") from None

    @override
    def __repr__(self) -> str:
        return f"RecoveryKey({fingerprint(self.public_key).hex()})"
