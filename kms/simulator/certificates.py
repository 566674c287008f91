"""Certificates of the SIMULATED platform, as values that can be changed in any detail and then signed.

``replace(certificate, serial_number=7)`` makes a forged variant; `Certificate.signed` does not judge what it
signs. The profile is that of AMD's certificates (VCEK specification 57230): X.509 v3, RSASSA-PSS.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA384, HashAlgorithm
from cryptography.x509.oid import NameOID

from kms.simulator import der

_SHA384_OID = "2.16.840.1.101.3.4.2.2"  # RFC 5754
_RSASSA_PSS_OID = "1.2.840.113549.1.1.10"  # RFC 4055
_MGF1_OID = "1.2.840.113549.1.1.8"
_SALT_LENGTH = 48


class Extension(NamedTuple):
    """One extension: dotted OID, and the content of extnValue exactly as it will be in the certificate."""

    oid: str
    value: bytes
    critical: bool = False


@dataclass(frozen=True, slots=True)
class SignatureScheme:
    """How a certificate is signed: the DER AlgorithmIdentifier, and the padding and hash that it names."""

    algorithm: bytes
    padding: padding.AsymmetricPadding
    hash: HashAlgorithm


def _pss_sha384() -> SignatureScheme:
    sha384 = der.tlv(der.SEQUENCE, der.object_identifier(_SHA384_OID), der.tlv(der.NULL))
    parameters = der.tlv(
        der.SEQUENCE,
        der.context(0, sha384),
        der.context(1, der.tlv(der.SEQUENCE, der.object_identifier(_MGF1_OID), sha384)),
        der.context(2, der.integer(_SALT_LENGTH)),
    )
    return SignatureScheme(
        algorithm=der.tlv(der.SEQUENCE, der.object_identifier(_RSASSA_PSS_OID), parameters),
        padding=padding.PSS(mgf=padding.MGF1(SHA384()), salt_length=_SALT_LENGTH),
        hash=SHA384(),
    )


PSS_SHA384 = _pss_sha384()


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What a certificate says, before anybody signs it.

    `issuer` and `subject` are DER Names, `public_key` is a DER SubjectPublicKeyInfo. Extensions are written
    in the order given, doubled ones included.
    """

    serial_number: int
    issuer: bytes
    subject: bytes
    not_before: datetime
    not_after: datetime
    public_key: bytes
    extensions: tuple[Extension, ...]
    scheme: SignatureScheme = PSS_SHA384

    def signed(self, key: RSAPrivateKey) -> bytes:
        """Sign it: DER of the certificate (RFC 5280, section 4.1)."""
        tbs = der.tlv(
            der.SEQUENCE,
            der.context(0, der.integer(2)),  # version 3
            der.integer(self.serial_number),
            self.scheme.algorithm,
            self.issuer,
            der.tlv(
                der.SEQUENCE,
                der.time(self.not_before.astimezone(UTC)),
                der.time(self.not_after.astimezone(UTC)),
            ),
            self.subject,
            self.public_key,
            der.context(3, der.tlv(der.SEQUENCE, *map(write_extension, self.extensions))),
        )
        signature = key.sign(tbs, self.scheme.padding, self.scheme.hash)
        return der.tlv(der.SEQUENCE, tbs, self.scheme.algorithm, der.tlv(der.BIT_STRING, b"\x00", signature))


def write_extension(extension: Extension) -> bytes:
    """Encode an extension of a certificate or revocation list (RFC 5280, section 4.1)."""
    # FALSE is the default and so, in DER, absent.
    critical = der.tlv(der.BOOLEAN, b"\xff") if extension.critical else b""
    return der.tlv(
        der.SEQUENCE,
        der.object_identifier(extension.oid),
        critical,
        der.tlv(der.OCTET_STRING, extension.value),
    )


def simulation_name(common_name: str) -> bytes:
    """Give a DER Name with AMD's attributes in AMD's order, whose values say that this is a simulation."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "Development only"),
            x509.NameAttribute(NameOID.COUNTRY_NAME, "ZZ"),  # ISO 3166: for private use, no country
            x509.NameAttribute(NameOID.LOCALITY_NAME, "Simulation"),
            x509.NameAttribute(NameOID.STATE_OR_PROVINCE_NAME, "Simulation"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Attested KMS simulator"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    ).public_bytes()
