"""The authorities of a SIMULATED key hierarchy: what the certificates of an ARK, ASK and ASVK say.

Extensions, their order and encodings are those of AMD's authorities (the chains that AMD's key distribution
service hands out); the CRL's address is under `.invalid`, where nothing can ever answer.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID

from kms.simulator.certificates import Certificate, Extension, simulation_name
from kms.snp.product import Product

_LIFE = timedelta(days=25 * 365)
BACKDATED = timedelta(days=1)  # as AMD's service does, so that a slow clock does not refuse a new certificate

# The extensions' contents (RFC 5280, sections 4.2.1.9 and 4.2.1.3).
_CA = bytes.fromhex("30030101ff")
_CA_OF_LEAVES = bytes.fromhex("30060101ff020100")  # path length 0
# AMD's, to the bit: DER would count two unused bits (03020204).
_SIGNS_CERTIFICATES = bytes.fromhex("03020104")
_SIGNS_CERTIFICATES_AND_CRLS = bytes.fromhex("03020106")


class Role(StrEnum):
    """An authority's place: the root, the issuer of VCEKs, the issuer of VLEKs."""

    ARK = "ark"
    ASK = "ask"
    ASVK = "asvk"

    def common_name(self, product: Product) -> str:
        """Give AMD's common name, which verifiers read."""
        prefix = {Role.ARK: "ARK", Role.ASK: "SEV", Role.ASVK: "SEV-VLEK"}[self]
        return f"{prefix}-{product.certificate_name}"


# AMD's, from the chains that its key distribution service hands out.
_SERIAL_NUMBERS = {
    Product.MILAN: {Role.ARK: 0x10000, Role.ASK: 0x10001, Role.ASVK: 0x10101},
    Product.GENOA: {Role.ARK: 0x20000, Role.ASK: 0x20002, Role.ASVK: 0x20101},
    Product.TURIN: {Role.ARK: 0x30000, Role.ASK: 0x30001, Role.ASVK: 0x30101},
}


@dataclass(frozen=True, slots=True)
class Authority:
    """An authority of the simulation: its certificate (DER) and its private key."""

    certificate: bytes = field(repr=False)
    key: RSAPrivateKey = field(repr=False)

    @property
    def name(self) -> bytes:
        """Its DER Name: the issuer of what it signs."""
        return x509.load_der_x509_certificate(self.certificate).subject.public_bytes()

    @property
    def pem(self) -> bytes:
        """Its certificate as PEM, for example for `KMS_DEVELOPMENT_ROOTS`."""
        return x509.load_der_x509_certificate(self.certificate).public_bytes(Encoding.PEM)


def authority_certificate(
    product: Product, role: Role, public_key: RSAPublicKey, root_key: RSAPublicKey, *, now: datetime
) -> Certificate:
    """Give the unsigned certificate of an authority, valid for 25 years from a day before `now`."""
    not_before = (now - BACKDATED).replace(microsecond=0)
    return Certificate(
        serial_number=_SERIAL_NUMBERS[product][role],
        issuer=simulation_name(Role.ARK.common_name(product)),
        subject=simulation_name(role.common_name(product)),
        not_before=not_before,
        not_after=not_before + _LIFE,
        public_key=public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        extensions=_extensions(product, role, public_key, root_key),
    )


def _extensions(
    product: Product, role: Role, public_key: RSAPublicKey, root_key: RSAPublicKey
) -> tuple[Extension, ...]:
    subject_key = Extension(
        ExtensionOID.SUBJECT_KEY_IDENTIFIER.dotted_string,
        x509.SubjectKeyIdentifier.from_public_key(public_key).public_bytes(),
    )
    root_key_id = Extension(
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER.dotted_string,
        x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key).public_bytes(),
    )
    service = "vlek" if role is Role.ASVK else "vcek"
    address = f"https://kds.simulation.invalid/{service}/v1/{product.certificate_name}/crl"
    uri = x509.UniformResourceIdentifier(address)
    crl = Extension(
        ExtensionOID.CRL_DISTRIBUTION_POINTS.dotted_string,
        x509.CRLDistributionPoints([x509.DistributionPoint([uri], None, None, None)]).public_bytes(),
    )
    if role is Role.ARK:
        return (_key_usage(_SIGNS_CERTIFICATES_AND_CRLS), subject_key, _basic_constraints(_CA), crl)
    return (
        subject_key,
        root_key_id,
        _basic_constraints(_CA_OF_LEAVES),
        _key_usage(_SIGNS_CERTIFICATES),
        crl,
    )


def _basic_constraints(content: bytes) -> Extension:
    return Extension(ExtensionOID.BASIC_CONSTRAINTS.dotted_string, content, critical=True)


def _key_usage(content: bytes) -> Extension:
    return Extension(ExtensionOID.KEY_USAGE.dotted_string, content, critical=True)
