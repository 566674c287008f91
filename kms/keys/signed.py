"""A text signed by the KMS identity, as it travels: ``{"payload","signature","identity"}``."""

from dataclasses import dataclass
from typing import Self

from typing_extensions import override

from kms.encoding import b64url
from kms.keys.identity import PUBLIC_KEY_LENGTH, SIGNATURE_LENGTH, Identity, verify_signed
from kms.strict_json import Fields

MAX_PAYLOAD = 1 << 20  # bytes; what this KMS sends is far below


def read_public_key(fields: Fields, name: str) -> bytes:
    """Read a raw Ed25519 or X25519 public key, 32 bytes; anything else raises the fields' error."""
    key = fields.base64(name, at_most=PUBLIC_KEY_LENGTH)
    if len(key) != PUBLIC_KEY_LENGTH:
        fields.fail(f"`{name}` must have {PUBLIC_KEY_LENGTH} bytes")
    return key


@dataclass(frozen=True, slots=True)
class Signed:
    """`payload` bytes as signed, the 64-byte `signature`, and the 32-byte `identity` that claims it.

    Nothing is verified until `verify`, which says nothing about whose key `identity` is: compare it with
    a pin. `payload` may be secret (a released envelope), so it is in no repr.
    """

    payload: bytes
    signature: bytes
    identity: bytes

    @classmethod
    def by(cls, identity: Identity, label: str, payload: bytes) -> Self:
        """Sign `payload` under `label`."""
        return cls(payload, identity.sign(label, payload), identity.public_key)

    @classmethod
    def read(cls, fields: Fields) -> Self:
        """Read the JSON object; unknown members, other lengths and encodings raise the fields' error."""
        signed = cls(
            fields.base64("payload", at_most=MAX_PAYLOAD),
            fields.base64("signature", at_most=SIGNATURE_LENGTH),
            fields.base64("identity", at_most=PUBLIC_KEY_LENGTH),
        )
        fields.end()
        return signed

    def verify(self, label: str) -> None:
        """Verify the signature by `identity` under `label`. Raises `SignatureInvalid`."""
        verify_signed(label, self.payload, self.signature, self.identity)

    def to_json(self) -> dict[str, str]:
        """Give the JSON object, binary as base64url."""
        return {
            "payload": b64url(self.payload),
            "signature": b64url(self.signature),
            "identity": b64url(self.identity),
        }

    @override
    def __repr__(self) -> str:
        return f"Signed(payload=<{len(self.payload)} bytes>, identity={self.identity.hex()})"
