"""Certificates of apps for TLS: what the KMS issues, and how a guest checks what it was given.

What a certificate says comes from the app's policy and from what the guest proved, never from the request
(field lesson 32).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from kms.identifiers import AppId, FixedBytes
from kms.keys import p256
from kms.keys.apps_ca import AppCa, app_ca_name, apps_ca_name, key_usage

# ITU-T X.667: an OID made of a UUID, which needs no registration. The UUID is
# 6b2f83a5-a46d-43aa-8d61-3592fc3ab169.
OID_BOOT_INFO: Final = x509.ObjectIdentifier("2.25.142474103620529662591416442187402621289")
CHAIN_LENGTH: Final = 3

_DIGEST_LENGTH: Final = 32
_OCTET_STRING: Final = bytes([0x04, _DIGEST_LENGTH])  # DER tag and length (X.690 section 8.7)
_SERIAL_LENGTH: Final = 20  # bytes: RFC 5280 section 4.1.2.2 allows no more
_BACKDATE: Final = timedelta(minutes=5)  # clocks of guests that boot are often a little behind


class Fingerprint(FixedBytes):
    """SHA-256 of a certificate's DER: 32 bytes."""

    lengths = frozenset({32})


class SerialNumber(FixedBytes):
    """The serial number of a certificate, big-endian: 20 bytes."""

    lengths = frozenset({20})


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """What the audit record keeps of a certificate."""

    fingerprint: Fingerprint
    serial: SerialNumber

    @classmethod
    def of(cls, pem: str) -> Self:
        """Describe the certificate in a PEM text. Raises `ValueError` if there is none."""
        certificate = x509.load_pem_x509_certificate(pem.encode("ascii"))
        return cls(
            Fingerprint(sha256(certificate.public_bytes(Encoding.DER)).digest()),
            SerialNumber(certificate.serial_number.to_bytes(_SERIAL_LENGTH, "big")),
        )


def certify(
    app_ca: AppCa,
    public_key: bytes,
    *,
    names: Sequence[str],
    life: timedelta,
    boot_info: bytes,
    now: datetime,
    random: Callable[[int], bytes],
) -> tuple[str, str, str]:
    """Issue a certificate for TLS, as server and as client, and give it with its issuers: PEM, top last.

    `public_key` is the P-256 point (65 bytes); `names` and `life` are of the app's policy; `boot_info` is
    `BootInfo.digest` (32 bytes) of the guest that asked. The life begins five minutes before `now`.

    Raises:
        ValueError: a length that is wrong, a point that is none, no name, or a life that is not positive.

    """
    if len(boot_info) != _DIGEST_LENGTH:
        raise ValueError(f"a BootInfo digest has {_DIGEST_LENGTH} bytes")
    if not names or life <= timedelta(0):
        raise ValueError("a certificate needs a name and a life")
    key = p256.public_key(public_key)
    start = now.replace(microsecond=0) - _BACKDATE
    # The last second counts (RFC 5280 section 4.1.2.5), and to clients with a limit of days a second too many
    # is a day too many. The CAs above end when time does.
    end = start + life - timedelta(seconds=1)
    builder = (
        x509.CertificateBuilder()
        # Names stand where clients look for them (RFC 9525), and nowhere else. Then the subject must be empty
        # and the extension critical: RFC 5280 section 4.1.2.6.
        .subject_name(x509.Name([]))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=True)
        .public_key(key)
        # 159 bits: one more would be the sign.
        .serial_number(int.from_bytes(random(_SERIAL_LENGTH), "big") >> 1)
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.UnrecognizedExtension(OID_BOOT_INFO, _OCTET_STRING + boot_info), critical=False)
    )
    return to_pem(app_ca.issue(builder)), to_pem(app_ca.certificate), to_pem(app_ca.issuer)


def to_pem(certificate: x509.Certificate) -> str:
    """Give a certificate as PEM text."""
    return certificate.public_bytes(Encoding.PEM).decode("ascii")


def check_chain(chain: Sequence[str], *, public_key: bytes, app_id: AppId, epoch: int) -> None:
    """Check, guest's side, that a chain is for this key, and of the app and epoch that it should be of.

    Names, signatures, key usage, CA bits and path lengths are checked as RFC 5280 has it, as of the day when
    the certificate began: a guest may have no clock yet, and whoever it talks to looks at the dates. That it
    was this KMS that made the chain is said by the signature around it.

    Raises:
        ValueError: it is not; the message says in what, without values.

    """
    leaf, app_ca, apps_ca = _read_chain(chain)
    try:
        verifier = PolicyBuilder().store(Store([apps_ca])).time(leaf.not_valid_before_utc)
        verified = verifier.build_client_verifier().verify(leaf, [app_ca]).chain
        # The verifier takes its anchor as it is.
        apps_ca.verify_directly_issued_by(apps_ca)
        point = p256.point_of(leaf.public_key())
        apps_ca_key = p256.public_key(p256.point_of(apps_ca.public_key()))
    except (VerificationError, InvalidSignature, UnsupportedAlgorithm, TypeError, ValueError):
        raise ValueError("the certificates do not make a chain") from None
    if verified != [leaf, app_ca, apps_ca]:
        raise ValueError("the certificates do not make a chain")
    if point != public_key:
        raise ValueError("the certificate is for another key")
    names = (apps_ca.subject, app_ca.subject)
    if names != (apps_ca_name(apps_ca_key), app_ca_name(apps_ca_key, app_id, epoch)):
        raise ValueError("the certificate is of another app or epoch")


def certified_key(chain: Sequence[str]) -> bytes:
    """Give the key (65-byte point) that a chain is for; nothing of it is verified. Raises `ValueError`."""
    try:
        return p256.point_of(_read_chain(chain)[0].public_key())
    except UnsupportedAlgorithm:
        raise ValueError("not a P-256 key") from None


def _read_chain(chain: Sequence[str]) -> list[x509.Certificate]:
    if len(chain) != CHAIN_LENGTH:
        raise ValueError(f"a chain has {CHAIN_LENGTH} certificates")
    try:
        certificates = [x509.load_pem_x509_certificate(pem.encode("ascii")) for pem in chain]
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion):
        raise ValueError("not a certificate in PEM") from None
    # As the KMS writes them, and nothing beside: another certificate, or a key, could hide behind the first.
    if [to_pem(each) for each in certificates] != [*chain]:
        raise ValueError("not a certificate in PEM")
    return certificates
