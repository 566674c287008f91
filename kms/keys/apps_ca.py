"""The certificate authorities of apps: one of the KMS above all, one of each app and epoch below it.

::

    apps' CA    scalar from PRF(root of epoch 1, label ROOT_APPS_CA || 0x00)               first 48 bytes
    app CA      scalar from HKDF-Expand-SHA-512(app secret, label APP_CA || 0x00 || frame(app id, epoch), 48)

Neither private key ever leaves the KMS (field lesson 31: a CA key handed to anybody). Neither is stored: key,
names, serial number, dates and signature follow from the root alone, so the certificates are the same bytes
on every server and after every start, and whoever trusts one need never look for it again. For the same
reason they do not expire: nobody could renew them without all that trusts them breaking.

They are unrelated to the CA of the KMS's own TLS, so that no app's certificate can pose as the KMS.
"""

from datetime import UTC, datetime
from hashlib import sha256
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256, SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from typing_extensions import override

from kms.identifiers import AppId
from kms.keys import p256
from kms.keys.root_messages import integer, require_prf_output
from kms.labels import APP_CA, frame, labelled

_SERIAL_LENGTH: Final = 16  # bytes of a CA's serial number, from the hash of its key
_MARK_LENGTH: Final = 8  # bytes of that hash by which the names of two KMSs differ

# Before any of this existed, so that no guest whose clock is behind finds a CA that is yet to come.
_FROM: Final = datetime(2020, 1, 1, tzinfo=UTC)
# RFC 5280 section 4.1.2.5: what a certificate says that has no well-defined expiration date.
_FOR_EVER: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


class Authority:
    """A private key that signs certificates, and its own certificate."""

    __slots__ = ("_key", "certificate")

    def __init__(self, key: EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self.certificate = certificate

    def issue(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        """Add issuer and authority key identifier, and sign. The same builder gives the same bytes."""
        identifier = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
        builder = builder.add_extension(authority, critical=False)
        return _sign(builder.issuer_name(self.certificate.subject), self._key)

    @override
    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.certificate.subject.rfc4514_string()})"


class AppCa(Authority):
    """The CA of one app in one epoch. `issuer` is the certificate of the CA above it."""

    __slots__ = ("issuer",)

    def __init__(
        self, key: EllipticCurvePrivateKey, certificate: x509.Certificate, issuer: x509.Certificate
    ) -> None:
        super().__init__(key, certificate)
        self.issuer = issuer


class AppsCa(Authority):
    """The CA above every app's own. `certificate` is self-signed."""

    __slots__ = ()

    @classmethod
    def from_prf(cls, output: bytes) -> Self:
        """Make it from the root PRF's 64 bytes for `root_messages.apps_ca_message`; it uses the first 48.

        Raises:
            ValueError: not 64 bytes.

        """
        key = p256.private_key(require_prf_output(output)[: p256.MATERIAL_LENGTH])
        name = apps_ca_name(key.public_key())
        return cls(key, _sign(_describe(key.public_key(), name, path_length=1).issuer_name(name), key))

    def app_ca(self, app_secret: bytes, app_id: AppId, epoch: int) -> AppCa:
        """Make an app's CA from the PRF's 64 bytes under that epoch for `root_messages.app_message`.

        Raises:
            ValueError: a secret of another length, or no epoch.

        """
        info = labelled(APP_CA, frame(app_id, integer(epoch)))
        expand = HKDFExpand(SHA512(), p256.MATERIAL_LENGTH, info)
        key = p256.private_key(expand.derive(require_prf_output(app_secret)))
        name = app_ca_name(self._key.public_key(), app_id, epoch)
        certificate = self.issue(_describe(key.public_key(), name, path_length=0))
        return AppCa(key, certificate, self.certificate)


def apps_ca_name(public_key: EllipticCurvePublicKey) -> x509.Name:
    """Give the name of the CA with this key; the key is in it, so that no two KMSs have one name."""
    return x509.Name([_mark(public_key), _common_name("Attested KMS apps CA")])


def app_ca_name(apps_ca: EllipticCurvePublicKey, app_id: AppId, epoch: int) -> x509.Name:
    """Give the name of an app's CA under the CA with the key `apps_ca`.

    The id has an attribute of its own: one of 32 bytes fills the 64 characters that RFC 5280 appendix A.1
    allows for it (ub-serial-number), as it would those of a common name.
    """
    return x509.Name(
        [
            _mark(apps_ca),
            _common_name(f"Attested KMS app CA epoch {epoch}"),
            x509.NameAttribute(NameOID.SERIAL_NUMBER, app_id.hex()),
        ]
    )


def _describe(
    public_key: EllipticCurvePublicKey, name: x509.Name, *, path_length: int
) -> x509.CertificateBuilder:
    """Describe a CA; its issuer and signature are still missing."""
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .public_key(public_key)
        .serial_number(int.from_bytes(_key_hash(public_key)[:_SERIAL_LENGTH], "big"))
        .not_valid_before(_FROM)
        .not_valid_after(_FOR_EVER)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    """Give the key usage of a CA, or of a certificate for TLS."""
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _sign(builder: x509.CertificateBuilder, key: EllipticCurvePrivateKey) -> x509.Certificate:
    # RFC 6979: the same bytes every time, and no signature can give the key away by bad randomness.
    return builder.sign(key, SHA256(), ecdsa_deterministic=True)


def _mark(public_key: EllipticCurvePublicKey) -> x509.NameAttribute[str]:
    mark = _key_hash(public_key)[:_MARK_LENGTH].hex()
    return x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, mark)


def _common_name(text: str) -> x509.NameAttribute[str]:
    return x509.NameAttribute(NameOID.COMMON_NAME, text)


def _key_hash(public_key: EllipticCurvePublicKey) -> bytes:
    return sha256(public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
