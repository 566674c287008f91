"""The second reader of certificates: AMD's profile and nothing else, without the library's X.509 parser.

AMD's certificates bend the rules that a parser may come to insist on: VCEKs and VLEKs have serial number 0
(RFC 5280 wants it positive), authorities write a default out and count unused bits short. This reader takes
exactly those forms (VCEK specification 57230; the certificates that AMD's key distribution service hands
out), so that whatever it accepts is a certificate of AMD's shape. `kms.snp.endorsement` asks it when the
library refuses; docs/decisions/0005 says why that gives a forger nothing.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from kms.snp import der
from kms.snp.certificate import AMD_ARC, Certificate, displayable
from kms.snp.der import DerError, Element

_VERSION: Final = 0xA0  # [0] EXPLICIT
_EXTENSIONS: Final = 0xA3  # [3] EXPLICIT
_VERSION_3: Final = b"\x02\x01\x02"
_LONGEST_SERIAL: Final = 20  # bytes, RFC 5280 section 4.1.2.2
_LONGEST_NAME: Final = 64  # bytes of an attribute: X.520's bound for most
_COMMON_NAME: Final = "2.5.4.3"
_COUNTRY: Final = "2.5.4.6"
_ATTRIBUTES: Final = frozenset({_COMMON_NAME, _COUNTRY, "2.5.4.7", "2.5.4.8", "2.5.4.10", "2.5.4.11"})

_BASIC_CONSTRAINTS: Final = "2.5.29.19"
_KEY_USAGE: Final = "2.5.29.15"
# Key identifiers and the list's address: nothing here uses them, so their contents are not looked into.
_UNUSED: Final = frozenset({"2.5.29.14", "2.5.29.31", "2.5.29.35"})
_STANDARD: Final = frozenset({_BASIC_CONSTRAINTS, _KEY_USAGE, *_UNUSED})
_AMD: Final = f"{AMD_ARC}."
_KEY_CERT_SIGN: Final = 0x04  # bit 5 of keyUsage
_ENCIPHER_ONLY: Final = 0x01

# RSASSA-PSS with SHA-384, MGF1 of SHA-384, salt of 48 bytes (RFC 4055): AMD's older certificates write the
# default trailer out, newer ones leave it out.
_PARAMETERS: Final = (
    "a00f300d06096086480165030402020500a11c301a06092a864886f70d010108300d06096086480165030402020500a203020130"
)
_PSS_SHA384: Final = frozenset(
    {
        bytes.fromhex(f"304106092a864886f70d01010a3034{_PARAMETERS}"),
        bytes.fromhex(f"304606092a864886f70d01010a3039{_PARAMETERS}a303020101"),
    }
)
# AlgorithmIdentifiers of keys: rsaEncryption with NULL (RFC 3279), id-ecPublicKey on secp384r1 (RFC 5480).
_KEY_ALGORITHMS: Final = frozenset(
    {
        bytes.fromhex("300d06092a864886f70d0101010500"),
        bytes.fromhex("301006072a8648ce3d020106052b81040022"),
    }
)


def read_certificate(data: bytes) -> Certificate:
    """Read one DER certificate of AMD's profile.

    Raises:
        DerError: it is anything else. The message does not repeat the input.

    """
    signed, algorithm, signature = _children(der.only(data, der.SEQUENCE), 3)
    version, serial, inner, issuer, validity, subject, key, extensions = _children(signed, 8)
    if der.expect(version, _VERSION).content != _VERSION_3:
        raise DerError("not version 3")
    if algorithm.whole not in _PSS_SHA384 or algorithm.whole != inner.whole:
        raise DerError("not signed with RSASSA-PSS and SHA-384")
    not_before, not_after = (der.time(each) for each in _children(validity, 2))
    found = _extensions(der.only(der.expect(extensions, _EXTENSIONS).content, der.SEQUENCE))
    return Certificate(
        der=data,
        subject=subject.whole,
        issuer=issuer.whole,
        subject_name=_common_name(subject),
        issuer_name=_common_name(issuer),
        serial=der.unsigned(serial, at_most=_LONGEST_SERIAL),
        not_before=not_before,
        not_after=not_after,
        public_key=_public_key(key),
        signed=signed.whole,
        signature=der.whole_bytes(signature),
        signed_with_pss_sha384=True,
        is_ca=found.is_ca,
        may_sign_certificates=found.may_sign_certificates,
        extensions=found.values,
        doubled=found.doubled,
    )


def _children(element: Element, count: int, tag: int = der.SEQUENCE) -> list[Element]:
    found = der.elements(der.expect(element, tag).content)
    if len(found) != count:
        raise DerError(f"{len(found)} elements where {count} belong")
    return found


def _common_name(name: Element) -> str:
    names = []
    for relative in der.elements(der.expect(name, der.SEQUENCE).content):
        (attribute,) = _children(relative, 1, der.SET)
        kind, value = _children(attribute, 2)
        oid, text = der.object_identifier(kind), der.text(value)
        length = len(value.content)
        fits = length == 2 if oid == _COUNTRY else length <= _LONGEST_NAME
        if oid not in _ATTRIBUTES or not fits:
            raise DerError("an attribute that AMD's names do not have")
        if oid == _COMMON_NAME:
            names.append(text)
    return displayable(names)


def _public_key(info: Element) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey:
    algorithm, _ = _children(info, 2)
    if algorithm.whole not in _KEY_ALGORITHMS:
        raise DerError("a key that is neither RSA nor on P-384")
    try:
        key = load_der_public_key(info.whole)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise DerError("a public key that is none") from error
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise DerError("a key that is neither RSA nor on P-384")
    return key


class _Found(NamedTuple):
    values: Mapping[str, bytes]
    doubled: str | None = None
    is_ca: bool | None = None
    may_sign_certificates: bool | None = None


def _extensions(sequence: Element) -> _Found:
    raw: dict[str, bytes] = {}
    doubled: str | None = None
    for extension in der.elements(sequence.content):
        oid, value = _extension(extension)
        if oid in raw and doubled is None:
            doubled = oid
        raw[oid] = value
    if not raw:
        raise DerError("no extension")
    if doubled is not None:
        return _Found({}, doubled)
    constraints, usage = raw.get(_BASIC_CONSTRAINTS), raw.get(_KEY_USAGE)
    return _Found(
        {oid: value for oid, value in raw.items() if oid.startswith(_AMD)},
        is_ca=None if constraints is None else _is_ca(constraints),
        may_sign_certificates=None if usage is None else _may_sign(usage),
    )


def _extension(extension: Element) -> tuple[str, bytes]:
    parts = der.elements(der.expect(extension, der.SEQUENCE).content)
    if len(parts) == 3:  # critical; what to do with it is the same either way
        der.boolean_true(parts.pop(1))
    if len(parts) != 2:
        raise DerError("not an extension")
    oid = der.object_identifier(parts[0])
    if oid not in _STANDARD and not oid.startswith(_AMD):
        raise DerError("an extension that AMD's certificates do not have")
    return oid, der.expect(parts[1], der.OCTET_STRING).content


def _is_ca(value: bytes) -> bool:
    """Read BasicConstraints: SEQUENCE { cA BOOLEAN DEFAULT FALSE, pathLenConstraint INTEGER OPTIONAL }."""
    parts = der.elements(der.only(value, der.SEQUENCE).content)
    is_ca = bool(parts) and parts[0].tag == der.BOOLEAN and der.boolean_true(parts.pop(0))
    if parts:
        der.unsigned(parts.pop(), at_most=1)
    if parts:
        raise DerError("not basic constraints")
    return is_ca


def _may_sign(value: bytes) -> bool:
    """Read keyUsage: a BIT STRING of one byte, whose unused bits are zero; AMD's count too few of them."""
    bits = der.only(value, der.BIT_STRING).content
    if len(bits) != 2 or bits[0] > 7 or bits[1] & ((1 << bits[0]) - 1) or bits[1] & _ENCIPHER_ONLY:
        raise DerError("not a key usage of AMD's")
    return bool(bits[1] & _KEY_CERT_SIGN)
