"""Loading endorsement certificates: the one place where DER becomes our `Certificate`.

AMD's VCEK and VLEK have serial number 0, which `cryptography` announces it will refuse one day
(docs/decisions/0005). Everything else works on `Certificate`, so that day changes this file only.
"""

from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID, SignatureAlgorithmOID

from kms.errors import MalformedEvidence
from kms.snp.certificate import Certificate

_LONGEST_DER: Final = 16384
_LONGEST_NAME: Final = 64  # AMD's longest is SEV-VLEK-<product>


def load_der(data: bytes) -> Certificate:
    """Parse one DER certificate.

    Raises:
        MalformedEvidence: it is not a certificate. The detail does not repeat the input.

    """
    if len(data) > _LONGEST_DER:
        raise MalformedEvidence(
            f"a certificate longer than {_LONGEST_DER} bytes", reason="certificate-unreadable"
        )
    try:
        return _convert(x509.load_der_x509_certificate(data), data)
    except Exception as error:  # hostile DER makes the library raise TypeError and others too
        raise MalformedEvidence("a certificate does not parse", reason="certificate-unreadable") from error


def load_pem(data: bytes) -> tuple[Certificate, ...]:
    """Parse one or more PEM certificates; what stands between them is ignored.

    Raises:
        MalformedEvidence: there is none, or one does not parse.

    """
    try:
        found = x509.load_pem_x509_certificates(data)
    except Exception as error:
        raise MalformedEvidence(
            "a PEM certificate does not parse", reason="certificate-unreadable"
        ) from error
    return tuple(load_der(certificate.public_bytes(Encoding.DER)) for certificate in found)


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
    except ValueError:
        return False
    return True


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
        signed_with_pss_sha384=_is_pss_sha384(parsed)
        and _has_one_spelling(der, parsed.tbs_certificate_bytes),
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


def _is_pss_sha384(parsed: x509.Certificate) -> bool:
    if parsed.signature_algorithm_oid != SignatureAlgorithmOID.RSASSA_PSS:
        return False
    parameters = parsed.signature_algorithm_parameters
    return (
        isinstance(parsed.signature_hash_algorithm, hashes.SHA384)
        and isinstance(parameters, padding.PSS)
        and isinstance(parameters.mgf, padding.MGF1)
    )


def _has_one_spelling(der: bytes, tbs: bytes) -> bool:
    """Say whether what stands outside the signed part is the only thing that could stand there.

    The algorithm beside the signature must be, byte for byte, the signed one (RFC 5280 section 4.1.1.2), and
    the signature whole bytes. Otherwise a certificate could be changed there and still verify: one
    certificate under many fingerprints.
    """
    _, algorithm, signature = _elements(_content(der))
    # TBSCertificate: [0] version, serialNumber, signature (the algorithm), …
    return algorithm == _elements(_content(tbs))[2] and _content(signature)[:1] == b"\x00"


def _content(element: bytes) -> bytes:
    """Give the content of one DER element. The library has checked the DER before."""
    return element[_header(element, 0)[0] :]


def _elements(content: bytes) -> list[bytes]:
    """Split DER content into its elements, headers included."""
    found = []
    offset = 0
    while offset < len(content):
        start, length = _header(content, offset)
        found.append(content[offset : start + length])
        offset = start + length
    return found


def _header(data: bytes, offset: int) -> tuple[int, int]:
    first = data[offset + 1]
    if first < 0x80:
        return offset + 2, first
    octets = first & 0x7F
    start = offset + 2 + octets
    return start, int.from_bytes(data[offset + 2 : start], "big")


def _common_name(name: x509.Name) -> str:
    names = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1 or not isinstance(names[0].value, str):
        return ""
    # A stranger's name goes into what operators read: no control characters, and not pages of it.
    name_text = names[0].value
    return name_text if name_text.isprintable() and len(name_text) <= _LONGEST_NAME else ""
