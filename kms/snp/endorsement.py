"""Endorsement certificates: the one place where a certificate becomes ours.

AMD's VCEK and VLEK have serial number 0, which `cryptography` announces it will refuse one day
(docs/decisions/0005). Everything else works on `Certificate`, so that day changes this file only.

AMD's profile: Versioned Chip Endorsement Key specification 57230, section "certificate extensions";
observed in genuine certificates of Milan, Genoa and Turin.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID, SignatureAlgorithmOID

from kms.errors import MalformedEvidence

_ARC: Final = "1.3.6.1.4.1.3704.1"  # AMD's enterprise arc for the extensions below
OID_PRODUCT_NAME: Final = f"{_ARC}.2"
OID_HWID: Final = f"{_ARC}.4"
OID_CSP_ID: Final = f"{_ARC}.5"
# One INTEGER each: the security patch level that the key was derived for.
OID_LEVELS: Final[Mapping[str, str]] = {
    "bootloader": f"{_ARC}.3.1",
    "tee": f"{_ARC}.3.2",
    "snp": f"{_ARC}.3.3",
    "microcode": f"{_ARC}.3.8",
    "fmc": f"{_ARC}.3.9",
}
# Levels of bytes that every layout reserves; where a certificate has them they are zero.
OID_RESERVED_LEVELS: Final = tuple(f"{_ARC}.3.{number}" for number in (4, 5, 6, 7))

_TAG_INTEGER = 0x02
_TAG_OCTET_STRING = 0x04
_TAG_IA5_STRING = 0x16
_LONGEST_DER = 16384
_RSA_BITS = (2048, 4096)


class ExtensionInvalid(ValueError):
    """An extension is missing, doubled, or not of its type. The message names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A parsed X.509 certificate, as far as we need it. Parsing says nothing about trust.

    `extensions` maps dotted OIDs to raw values; an OID that occurs twice is in `doubled` instead.
    `is_ca` and `may_sign_certificates` are None when the certificate does not say.
    """

    der: bytes = field(repr=False)
    subject: bytes = field(repr=False)
    issuer: bytes = field(repr=False)
    subject_name: str
    issuer_name: str
    serial: int
    not_before: datetime
    not_after: datetime
    public_key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey | None = field(repr=False)
    signed: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    signed_with_pss_sha384: bool
    is_ca: bool | None
    may_sign_certificates: bool | None
    extensions: Mapping[str, bytes] = field(repr=False)
    doubled: frozenset[str]

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the DER: 32 bytes."""
        return sha256(self.der).digest()

    @property
    def public_key_sha256(self) -> bytes:
        """SHA-256 of the DER SubjectPublicKeyInfo, the form in which ARKs are pinned: 32 bytes."""
        if self.public_key is None:
            return b""
        return sha256(self.public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()

    def is_signed_by(self, issuer: "Certificate") -> bool:
        """Say whether `issuer`'s RSA key signed this certificate with RSA-PSS and SHA-384.

        Only the signature: names, validity and CA bits are `kms.snp.chain`'s.
        """
        key = issuer.public_key
        if not self.signed_with_pss_sha384 or not isinstance(key, rsa.RSAPublicKey):
            return False
        # AMD's keys have 4096 bits; a stranger's larger one would only cost us time.
        if not _RSA_BITS[0] <= key.key_size <= _RSA_BITS[1]:
            return False
        scheme = padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=padding.PSS.AUTO)
        try:
            key.verify(self.signature, self.signed, scheme, hashes.SHA384())
        except (InvalidSignature, ValueError):
            return False
        return True

    def level(self, component: str) -> int:
        """Give the security patch level of a TCB component, 0 to 255.

        Raises:
            ExtensionInvalid: missing, doubled, or not a minimal DER INTEGER of that range.

        """
        return _small_integer(component, self._extension(component, OID_LEVELS[component]))

    def reserved_levels_are_zero(self) -> bool:
        """Say whether the levels of reserved TCB bytes are absent or zero."""
        return not self.doubled.intersection(OID_RESERVED_LEVELS) and all(
            self.extensions.get(oid, b"\x02\x01\x00") == b"\x02\x01\x00" for oid in OID_RESERVED_LEVELS
        )

    def product_name(self) -> str:
        """Give productName (`Milan-B0`, `Genoa`). Raises `ExtensionInvalid`."""
        return _ia5_string("productName", self._extension("productName", OID_PRODUCT_NAME))

    def csp_id(self) -> str:
        """Give the cloud provider's id of a VLEK. Raises `ExtensionInvalid`."""
        return _ia5_string("cspID", self._extension("cspID", OID_CSP_ID))

    def hwid(self) -> bytes:
        """Give the chip id of a VCEK: 64 bytes, on Turin 8. Raises `ExtensionInvalid`.

        Genuine certificates hold the bare bytes, without a tag; an OCTET STRING around them is taken too.
        """
        value = self._extension("hwID", OID_HWID)
        if len(value) in {8, 64}:
            return value
        if len(value) in {10, 66} and value[0] == _TAG_OCTET_STRING and value[1] == len(value) - 2:
            return value[2:]
        raise ExtensionInvalid("hwID is not 8 or 64 bytes")

    def has(self, oid: str) -> bool:
        """Say whether an extension occurs at all."""
        return oid in self.extensions or oid in self.doubled

    def has_level(self, component: str) -> bool:
        """Say whether the certificate names a level for this TCB component."""
        return self.has(OID_LEVELS[component])

    def _extension(self, name: str, oid: str) -> bytes:
        if oid in self.doubled:
            raise ExtensionInvalid(f"{name} occurs twice")
        if oid not in self.extensions:
            raise ExtensionInvalid(f"{name} is missing")
        return self.extensions[oid]


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


def _convert(parsed: x509.Certificate, der: bytes) -> Certificate:
    extensions: dict[str, bytes] = {}
    doubled: set[str] = set()
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
        # Nothing of such a certificate's extensions may be used; which one it was is what we report.
        extensions.clear()
        doubled.add(error.oid.dotted_string)
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
        and _algorithms_agree(der, parsed.tbs_certificate_bytes),
        is_ca=is_ca,
        may_sign_certificates=may_sign,
        extensions=extensions,
        doubled=frozenset(doubled),
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


def _algorithms_agree(der: bytes, tbs: bytes) -> bool:
    """Say whether the algorithm beside the signature is, byte for byte, the one that is signed.

    RFC 5280 section 4.1.1.2 demands it. The outer one is not signed, so without this a certificate could be
    changed there and still verify: the same certificate under many fingerprints.
    """
    outer = _elements(_content(der))[1]
    # TBSCertificate: [0] version, serialNumber, signature (the algorithm), …
    return outer == _elements(_content(tbs))[2]


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
    return names[0].value


def _small_integer(name: str, value: bytes) -> int:
    # A minimal DER INTEGER from 0 to 255: 02 01 xx, or 02 02 00 xx for xx >= 0x80. Nothing shorter,
    # longer, negative or padded: taking "the last byte of anything" is a peer's bug.
    if len(value) == 3 and value[:2] == bytes((_TAG_INTEGER, 1)) and value[2] < 0x80:
        return value[2]
    if len(value) == 4 and value[:3] == bytes((_TAG_INTEGER, 2, 0)) and value[3] >= 0x80:
        return value[3]
    raise ExtensionInvalid(f"{name} is not a DER INTEGER from 0 to 255")


def _ia5_string(name: str, value: bytes) -> str:
    if len(value) < 3 or value[0] != _TAG_IA5_STRING or value[1] != len(value) - 2 or value[1] >= 0x80:
        raise ExtensionInvalid(f"{name} is not an IA5String")
    try:
        text = value[2:].decode("ascii")
    except UnicodeDecodeError:
        raise ExtensionInvalid(f"{name} is not ASCII") from None
    if not text.isprintable():
        raise ExtensionInvalid(f"{name} has control characters")
    return text
