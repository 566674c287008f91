"""Loading endorsement certificates: the one place where DER becomes our `Certificate`.

There are two readers. The library's X.509 parser is asked first; it announces that it will refuse one day
what all of AMD's VCEKs and VLEKs have, the serial number 0 (docs/decisions/0005). What it refuses, our own
reader of AMD's profile may still accept (`kms.snp.certificate_reader`). Everything else works on
`Certificate`.
"""

from functools import lru_cache
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from kms.errors import MalformedEvidence
from kms.snp.certificate import Certificate, displayable
from kms.snp.certificate_reader import read_certificate
from kms.snp.der import DerError
from kms.snp.pem import PemError, pem_blocks
from kms.snp.signatures import has_one_spelling, names_pss_sha384

_LONGEST_DER: Final = 16384
# Parsed certificates are remembered by their exact bytes: the same bytes always give the same certificate, so
# a stranger who crowds this memory costs time only. AMD's have 1 to 2 KiB; longer ones are not kept, so that
# it stays within some 16 MiB whatever is sent.
_LONGEST_REMEMBERED: Final = 4096
_REMEMBERED: Final = 512


def load_der(data: bytes) -> Certificate:
    """Parse one DER certificate.

    Raises:
        MalformedEvidence: it is not a certificate. The detail does not repeat the input.

    """
    if len(data) > _LONGEST_DER:
        raise MalformedEvidence(
            f"a certificate longer than {_LONGEST_DER} bytes", reason="certificate-unreadable"
        )
    return _parse_once(data) if len(data) <= _LONGEST_REMEMBERED else _parse(data)


def load_pem(data: bytes) -> tuple[Certificate, ...]:
    """Parse one or more PEM certificates; what stands between them is ignored.

    Raises:
        MalformedEvidence: there is none, too many, or one that does not parse.

    """
    try:
        blocks = pem_blocks(data, "CERTIFICATE")
    except PemError as error:
        raise MalformedEvidence(
            f"a PEM certificate does not parse: {error}", reason="certificate-unreadable"
        ) from error
    return tuple(load_der(block) for block in blocks)


def load_any(data: bytes) -> tuple[Certificate, ...]:
    """Parse PEM (one or more) or one DER certificate. Raises `MalformedEvidence`."""
    return load_pem(data) if b"-----BEGIN" in data else (load_der(data),)


def is_revocation_list(data: bytes) -> bool:
    """Say whether this is a certificate revocation list, PEM or DER, and not a certificate."""
    try:
        if b"-----BEGIN X509 CRL" in data:
            x509.load_pem_x509_crl(data)
        else:
            x509.load_der_x509_crl(data)
    except Exception:  # noqa: BLE001 -- hostile DER makes the library raise more than ValueError
        return False
    return True


def read_with_library(data: bytes) -> Certificate:
    """Read with the library's parser alone. Raises whatever that raises, on hostile DER more than it says."""
    return _convert(x509.load_der_x509_certificate(data), data)


def _parse(data: bytes) -> Certificate:
    try:
        return read_with_library(data)
    except Exception as refusal:  # hostile DER makes the library raise TypeError and others too
        second = _read_again(data)
        if second is None:
            raise MalformedEvidence(
                "a certificate does not parse", reason="certificate-unreadable"
            ) from refusal
        return second


_parse_once = lru_cache(maxsize=_REMEMBERED)(_parse)  # what raises is not remembered


def _read_again(data: bytes) -> Certificate | None:
    try:
        return read_certificate(data)
    except DerError:
        return None


def _convert(parsed: x509.Certificate, der: bytes) -> Certificate:
    extensions: dict[str, bytes] = {}
    doubled: str | None = None
    is_ca: bool | None = None
    may_sign: bool | None = None
    try:
        for extension in parsed.extensions:
            oid = extension.oid.dotted_string
            if isinstance(extension.value, x509.UnrecognizedExtension):
                extensions[oid] = extension.value.value
            elif isinstance(extension.value, x509.BasicConstraints):
                is_ca = extension.value.ca
            elif isinstance(extension.value, x509.KeyUsage):
                may_sign = extension.value.key_cert_sign
    except x509.DuplicateExtension as error:
        extensions.clear()
        doubled = error.oid.dotted_string
        is_ca = may_sign = None
    return Certificate(
        der=der,
        subject=parsed.subject.public_bytes(),
        issuer=parsed.issuer.public_bytes(),
        subject_name=_common_name(parsed.subject),
        issuer_name=_common_name(parsed.issuer),
        serial=parsed.serial_number,
        not_before=parsed.not_valid_before_utc,
        not_after=parsed.not_valid_after_utc,
        public_key=_public_key(parsed),
        signed=parsed.tbs_certificate_bytes,
        signature=parsed.signature,
        signed_with_pss_sha384=names_pss_sha384(
            parsed.signature_algorithm_oid,
            parsed.signature_algorithm_parameters,
            parsed.signature_hash_algorithm,
        )
        and has_one_spelling(der, parsed.tbs_certificate_bytes),
        is_ca=is_ca,
        may_sign_certificates=may_sign,
        extensions=extensions,
        doubled=doubled,
    )


def _public_key(parsed: x509.Certificate) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey | None:
    try:
        key = parsed.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return None
    return key if isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey) else None


def _common_name(name: x509.Name) -> str:
    values = [each.value for each in name.get_attributes_for_oid(NameOID.COMMON_NAME)]
    return displayable([each for each in values if isinstance(each, str)] if len(values) == 1 else [])
