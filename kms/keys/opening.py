"""The guest's side of `kms.keys.sealing`: a fresh key pair, and opening what was sealed to it."""

from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hpke import MLKEM768X25519PrivateKey
from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, SealedBox
from typing_extensions import override

from kms.errors import KmsError
from kms.keys.sealing import HPKE_SUITES, Suite, hpke_info

_PrivateKey = PrivateKey | X25519PrivateKey | MLKEM768X25519PrivateKey


class CannotOpen(KmsError):
    """The sealed bytes are not for this key, not for this request, or damaged; which cannot be told."""

    code = "cannot-open"


class RecipientKey:
    """A guest's key pair for one request; made fresh for each, never stored.

    `public_key` is its bytes on the wire: 32, or for the hybrid 1184 + 32.
    """

    __slots__ = ("_key", "public_key", "suite")

    def __init__(self, suite: Suite, key: _PrivateKey, public_key: bytes) -> None:
        self.suite = suite
        self.public_key = public_key
        self._key = key

    @classmethod
    def generate(cls, suite: Suite) -> Self:
        """Make a key pair from the system's randomness."""
        if suite is Suite.X25519_SEALEDBOX:
            box = PrivateKey.generate()
            return cls(suite, box, bytes(box.public_key))
        x25519 = X25519PrivateKey.generate()
        point = x25519.public_key().public_bytes_raw()
        if suite is Suite.HPKE_X25519:
            return cls(suite, x25519, point)
        mlkem = MLKEM768PrivateKey.generate()
        hybrid = MLKEM768X25519PrivateKey(mlkem, x25519)
        return cls(suite, hybrid, mlkem.public_key().public_bytes_raw() + point)

    def open(self, sealed: bytes, request_sha512: bytes) -> bytes:
        """Open `sealed`, the answer to the request with this 64-byte digest.

        A sealed box opens whatever the digest: the payload inside says which request it answers, and
        `kms.keys.envelope.open_envelope` compares it.

        Raises:
            CannotOpen: it does not open.
            ValueError: a digest of another length.

        """
        info = hpke_info(request_sha512)
        try:
            if isinstance(self._key, PrivateKey):
                return bytes(SealedBox(self._key).decrypt(sealed))
            return HPKE_SUITES[self.suite].decrypt(sealed, self._key, info)
        except (InvalidTag, CryptoError):
            raise CannotOpen("the sealed keys do not open with this key for this request") from None

    @override
    def __repr__(self) -> str:
        return f"RecipientKey({self.suite.value})"
