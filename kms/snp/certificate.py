"""A certificate as we use it: AMD's extensions read strictly, signatures as AMD makes them.

AMD's profile: Versioned Chip Endorsement Key specification 57230, section "certificate extensions";
observed in genuine certificates of Milan, Genoa and Turin. `kms.snp.endorsement` makes these from DER.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from typing_extensions import override

from kms.snp.signatures import is_signature

AMD_ARC: Final = "1.3.6.1.4.1.3704.1"  # AMD's enterprise arc for the extensions below
OID_PRODUCT_NAME: Final = f"{AMD_ARC}.2"
OID_HWID: Final = f"{AMD_ARC}.4"
OID_CSP_ID: Final = f"{AMD_ARC}.5"
# One INTEGER each: the security patch level that the key was derived for.
OID_LEVELS: Final[Mapping[str, str]] = {
    "bootloader": f"{AMD_ARC}.3.1",
    "tee": f"{AMD_ARC}.3.2",
    "snp": f"{AMD_ARC}.3.3",
    "microcode": f"{AMD_ARC}.3.8",
    "fmc": f"{AMD_ARC}.3.9",
}
# Levels of bytes that every layout reserves; where a certificate has them they are zero.
OID_RESERVED_LEVELS: Final = tuple(f"{AMD_ARC}.3.{number}" for number in (4, 5, 6, 7))

_LONGEST_NAME = 64  # AMD's longest is SEV-VLEK-<product>
_TAG_INTEGER = 0x02
_TAG_OCTET_STRING = 0x04
_TAG_IA5_STRING = 0x16


class ExtensionInvalid(ValueError):
    """An extension is missing, doubled, or not of its type. The message names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A parsed X.509 certificate, as far as we need it. Parsing says nothing about trust.

    `extensions` maps dotted OIDs to raw values. If one occurs twice it is `doubled`, and `extensions` is
    empty: nothing of such a certificate may be used.
    `is_ca` and `may_sign_certificates` are None when the certificate does not say.
    `fingerprint` is the SHA-256 of the DER, `public_key_sha256` that of `public_key_der` (the DER
    SubjectPublicKeyInfo), the form in which ARKs are pinned: 32 bytes each; empty without a readable key.
    `validity` is the period in words.
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
    # Computed once, because every verification asks for them.
    fingerprint: bytes = field(init=False, repr=False, compare=False)
    public_key_der: bytes = field(init=False, repr=False, compare=False)
    public_key_sha256: bytes = field(init=False, repr=False, compare=False)
    validity: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        key = self.public_key
        spki = b"" if key is None else key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        object.__setattr__(self, "fingerprint", sha256(self.der).digest())
        object.__setattr__(self, "public_key_der", spki)
        object.__setattr__(self, "public_key_sha256", sha256(spki).digest() if spki else b"")
        object.__setattr__(
            self, "validity", f"from {self.not_before.isoformat()} to {self.not_after.isoformat()}"
        )

    @override
    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def is_signed_by(self, issuer: "Certificate") -> bool:
        """Say whether `issuer`'s RSA key signed this certificate with RSA-PSS and SHA-384.

        Only the signature: names, validity and CA bits are `kms.snp.chain`'s.
        """
        return self.signed_with_pss_sha384 and is_signature(
            issuer.public_key_der, self.signed, self.signature
        )

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


def displayable(common_names: Sequence[str]) -> str:
    """Give the one common name, or nothing if there is not exactly one that operators can read.

    A stranger's name goes into what they read: no control characters, and not pages of it.
    """
    if len(common_names) != 1:
        return ""
    name = common_names[0]
    return name if name.isprintable() and len(name) <= _LONGEST_NAME else ""


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
