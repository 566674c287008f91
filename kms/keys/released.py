"""A key on its way to a guest: what the KMS derived, and what the guest reads out of the payload."""

from dataclasses import dataclass, field
from typing import Final, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from kms.encoding import b64url
from kms.keys.names import Algorithm, KeyName, KeyRequest, Scope
from kms.keys.signed import Signed
from kms.strict_json import Fields, JsonValue

VALUE_LENGTH: Final = 32  # bytes of every algorithm that is derived: protocol, section 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasedKey:
    """One key with its value (32 bytes), which no repr shows.

    `public_key` is 32 bytes for ``env`` and ``signing``, otherwise None. `statement` is the KMS
    identity's word that the ``signing`` key is the app's, otherwise None.
    """

    name: KeyName
    scope: Scope
    epoch: int
    value: bytes = field(repr=False)
    public_key: bytes | None = None
    statement: Signed | None = None

    @property
    def algorithm(self) -> Algorithm:
        """What `value` is."""
        return self.name.algorithm

    def to_json(self) -> dict[str, JsonValue]:
        """Give the entry of the payload's ``keys``. It holds the secret."""
        entry: dict[str, JsonValue] = {
            "name": str(self.name),
            "scope": self.scope.value,
            "epoch": self.epoch,
            "algorithm": self.algorithm.value,
            "value": b64url(self.value),
        }
        if self.public_key is not None:
            entry["public_key"] = b64url(self.public_key)
        if self.statement is not None:
            entry["statement"] = {**self.statement.to_json()}
        return entry

    @classmethod
    def read(cls, fields: Fields) -> Self:
        """Read an entry, guest's side; anything that does not fit raises the fields' error.

        The public half must be the one of the value: a guest never publishes a key that it does not hold.
        The statement is read, not verified (`kms.keys.envelope` does that).
        """
        name, scope = fields.text("name", at_most=256), fields.text("scope", at_most=16)
        epoch = fields.integer("epoch", minimum=1)
        # Name, scope and epoch together: some scopes exist only for some names.
        request = fields.convert("name", name, lambda text: KeyRequest.parse(text, scope, epoch))
        if fields.text("algorithm") != request.name.algorithm:
            fields.fail("`algorithm` is not the one of the name")
        value = fields.base64("value", at_most=VALUE_LENGTH)
        if len(value) != VALUE_LENGTH:
            fields.fail(f"`value` must have {VALUE_LENGTH} bytes")
        public_key = public_half(request.name.algorithm, value)
        if public_key is not None and fields.base64("public_key", at_most=len(public_key)) != public_key:
            fields.fail("`public_key` is not the one of the value")
        signing = request.name.algorithm is Algorithm.ED25519
        statement = Signed.read(fields.object("statement")) if signing else None
        fields.end()
        return cls(
            name=request.name,
            scope=request.scope,
            epoch=epoch,
            value=value,
            public_key=public_key,
            statement=statement,
        )


def public_half(algorithm: Algorithm, value: bytes) -> bytes | None:
    """Give the raw public key (32 bytes) of a 32-byte private value; None where there is none."""
    if algorithm is Algorithm.X25519:
        return X25519PrivateKey.from_private_bytes(value).public_key().public_bytes_raw()
    if algorithm is Algorithm.ED25519:
        return Ed25519PrivateKey.from_private_bytes(value).public_key().public_bytes_raw()
    return None
