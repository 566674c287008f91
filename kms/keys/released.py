"""A key on its way to a guest: what the KMS derived, and what the guest reads out of the payload."""

from dataclasses import dataclass, field
from typing import Final, Self

from cryptography.hazmat.primitives.asymmetric.ec import SECP256K1, derive_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from kms.encoding import b64url
from kms.keys import p256
from kms.keys.certificates import CHAIN_LENGTH, IssuedCertificate, certified_key
from kms.keys.names import DSTACK_KINDS, Algorithm, KeyName, KeyRequest, Scope
from kms.keys.signed import Signed
from kms.strict_json import Fields, JsonValue

VALUE_LENGTH: Final = 32  # bytes, of every algorithm but P-256: protocol, section 1

_CERTIFIED: Final = Algorithm.P_256  # these come with certificates, which have their public keys


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasedKey:
    """One key with its value, which no repr shows.

    `value` is 32 bytes, for ``tls`` PKCS#8; None where the guest wanted a certificate for a key of its own.
    `epoch` is None for keys of dstack's. `public_key` is as `public_half` gives it. `statement` is the KMS
    identity's word that the ``signing`` key is the app's, otherwise None. `certificate_chain` is of ``tls``:
    the certificate, its issuer (the app's CA) and the CA of all apps, each one PEM text; otherwise None.
    """

    name: KeyName
    scope: Scope
    epoch: int | None
    value: bytes | None = field(repr=False)
    public_key: bytes | None = None
    statement: Signed | None = None
    certificate_chain: tuple[str, ...] | None = None

    @property
    def algorithm(self) -> Algorithm:
        """What `value` is."""
        return self.name.algorithm

    @property
    def secret(self) -> bytes:
        """The value. Raises `ValueError` where there is none: the guest has its certificate's key itself."""
        if self.value is None:
            raise ValueError("a certificate for the guest's own key comes without one")
        return self.value

    @property
    def issued(self) -> IssuedCertificate | None:
        """The certificate that was issued, as the record keeps it."""
        return None if self.certificate_chain is None else IssuedCertificate.of(self.certificate_chain[0])

    def to_json(self) -> dict[str, JsonValue]:
        """Give the entry of the payload's ``keys``. It holds the secret."""
        entry: dict[str, JsonValue] = {
            "name": str(self.name),
            "scope": self.scope.value,
            "epoch": self.epoch,
            "algorithm": self.algorithm.value,
        }
        if self.value is not None:
            entry["value"] = b64url(self.value)
        if self.public_key is not None and self.algorithm is not _CERTIFIED:
            entry["public_key"] = b64url(self.public_key)
        if self.statement is not None:
            entry["statement"] = {**self.statement.to_json()}
        if self.certificate_chain is not None:
            entry["certificate_chain"] = [*self.certificate_chain]
        return entry

    @classmethod
    def read(cls, fields: Fields) -> Self:
        """Read an entry, guest's side; anything that does not fit raises the fields' error.

        The public half must be the one of the value: a guest never publishes a key that it does not hold.
        Statement and certificates are read, not verified (`kms.keys.envelope` does that).
        """
        name, scope = fields.text("name", at_most=256), fields.text("scope", at_most=16)
        epoch = fields.nullable("epoch", lambda member: fields.integer(member, minimum=1))
        # Name, scope and epoch together: some scopes exist only for some names.
        request = fields.convert("name", name, lambda text: KeyRequest.parse(text, scope, epoch))
        if epoch is None and request.name.kind not in DSTACK_KINDS:
            fields.fail("`epoch` must be an integer")
        algorithm = request.name.algorithm
        if fields.text("algorithm") != algorithm:
            fields.fail("`algorithm` is not the one of the name")
        chain = fields.texts("certificate_chain", at_most=CHAIN_LENGTH) if algorithm is _CERTIFIED else None
        value = _read_value(fields, algorithm)
        try:
            public_key = certified_key(chain or ()) if value is None else public_half(algorithm, value)
        except ValueError as error:
            fields.fail(str(error))
        shown = None if algorithm is _CERTIFIED else public_key
        if shown is not None and fields.base64("public_key", at_most=len(shown)) != shown:
            fields.fail("`public_key` is not the one of the value")
        signing = algorithm is Algorithm.ED25519
        statement = Signed.read(fields.object("statement")) if signing else None
        fields.end()
        return cls(
            name=request.name,
            scope=request.scope,
            epoch=epoch,
            value=value,
            public_key=public_key,
            statement=statement,
            certificate_chain=chain,
        )


def public_half(algorithm: Algorithm, value: bytes) -> bytes | None:
    """Give the public key of a private value; None where there is none.

    32 raw bytes for X25519 and Ed25519; SEC 1 points of 33 bytes (compressed) for secp256k1, of 65
    (uncompressed) for P-256.

    Raises:
        ValueError: no private key of this algorithm; the message says nothing of it.

    """
    match algorithm:
        case Algorithm.SYMMETRIC_256:
            return None
        case Algorithm.X25519:
            return X25519PrivateKey.from_private_bytes(value).public_key().public_bytes_raw()
        case Algorithm.ED25519:
            return Ed25519PrivateKey.from_private_bytes(value).public_key().public_bytes_raw()
        case Algorithm.P_256:
            return p256.point_of_pkcs8(value)
        case Algorithm.SECP256K1:
            key = derive_private_key(int.from_bytes(value, "big"), SECP256K1())
            return key.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)


def _read_value(fields: Fields, algorithm: Algorithm) -> bytes | None:
    if algorithm is _CERTIFIED:
        # Absent where the certificate is for a key of the guest's own.
        return fields.base64("value", at_most=p256.MAX_PKCS8) if fields.has("value") else None
    value = fields.base64("value", at_most=VALUE_LENGTH)
    if len(value) != VALUE_LENGTH:
        fields.fail(f"`value` must have {VALUE_LENGTH} bytes")
    return value
