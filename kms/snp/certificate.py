"""A certificate as we use it: AMD's extensions read strictly, signatures as AMD makes them.

AMD's profile: Versioned Chip Endorsement Key specification 57230, section "certificate extensions";
observed in genuine certificates of Milan, Genoa and Turin. `kms.snp.endorsement` makes these from DER.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

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
_RSA_BITS = (2048, 4096)
_RSA_EXPONENT = 65537


class ExtensionInvalid(ValueError):
    """An extension is missing, doubled, or not of its type. The message names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A parsed X.509 certificate, as far as we need it. Parsing says nothing about trust.

    `extensions` maps dotted OIDs to raw values. If one occurs twice it is `doubled`, and `extensions` is
    empty: nothing of such a certificate may be used.
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
    doubled: str | None

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
        # AMD's keys have 4096 bits and this exponent; a stranger's larger ones would only cost us time.
        if not _RSA_BITS[0] <= key.key_size <= _RSA_BITS[1] or key.public_numbers().e != _RSA_EXPONENT:
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
        return self.doubled is None and all(
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
        return oid in self.extensions or oid == self.doubled

    def has_level(self, component: str) -> bool:
        """Say whether the certificate names a level for this TCB component."""
        return self.has(OID_LEVELS[component])

    def _extension(self, name: str, oid: str) -> bytes:
        if self.doubled is not None:
            raise ExtensionInvalid(f"{name} cannot be read: extension {self.doubled} occurs twice")
        if oid not in self.extensions:
            raise ExtensionInvalid(f"{name} is missing")
        return self.extensions[oid]


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
