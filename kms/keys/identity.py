"""The KMS identity: the Ed25519 key by which guests tell this KMS from an impostor (field lesson 29)."""

from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from typing_extensions import override

from kms.errors import KmsError
from kms.keys.root_messages import require_prf_output
from kms.labels import labelled

PUBLIC_KEY_LENGTH = 32  # RFC 8032 section 5.1.5
SIGNATURE_LENGTH = 64  # RFC 8032 section 5.1.6
_SEED_LENGTH = 32


class SignatureInvalid(KmsError):
    """A signature is not by the key, over the bytes or under the label that was expected."""

    code = "signature-invalid"


class Identity:
    """Signs for the KMS. `public_key` is the raw 32 bytes that guests pin."""

    __slots__ = ("_key", "public_key")

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public_key = key.public_key().public_bytes_raw()

    @classmethod
    def from_prf(cls, output: bytes) -> Self:
        """Make the identity from the root PRF's 64 bytes for `root_messages.identity_message`.

        The seed is the first 32 of them. The output serves nothing else, so no expansion is needed to
        keep uses apart.

        Raises:
            ValueError: not 64 bytes.

        """
        return cls(Ed25519PrivateKey.from_private_bytes(require_prf_output(output)[:_SEED_LENGTH]))

    def sign(self, label: str, message: bytes) -> bytes:
        """Sign ``label || 0x00 || message``: 64 bytes."""
        return self._key.sign(labelled(label, message))

    @override
    def __repr__(self) -> str:
        return f"Identity({self.public_key.hex()})"


def verify_signed(label: str, message: bytes, signature: bytes, public_key: bytes) -> None:
    """Verify an Ed25519 `signature` (64 bytes) by `public_key` (32 bytes) over ``label || 0x00 || message``.

    Raises:
        SignatureInvalid: it is not that, wrong lengths included.

    """
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, labelled(label, message))
    except (InvalidSignature, ValueError):
        raise SignatureInvalid("the signature is not by this key, over these bytes, for this use") from None
