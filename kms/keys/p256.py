"""P-256: private keys out of derived bytes, and public keys as points.

A scalar is made by FIPS 186-5 appendix A.2.1, "extra random bits": ``(OS2IP(48 bytes) mod (n - 1)) + 1``. It
asks for 64 bits more than n has; there are 128, so no scalar is likelier than another by more than 2^-128.
Taking 32 bytes and trying again where they are not below n would need a loop that a second implementation
gets wrong where no test ever comes.
"""

from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    derive_private_key,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
)

MATERIAL_LENGTH: Final = 48
POINT_LENGTH: Final = 65  # SEC 1 section 2.3.3: 0x04, x, y
MAX_PKCS8: Final = 512  # bytes; what we write has 138

_CURVE: Final = SECP256R1()


def private_key(material: bytes) -> EllipticCurvePrivateKey:
    """Make the private key of 48 derived bytes.

    Raises:
        ValueError: another length.

    """
    if len(material) != MATERIAL_LENGTH:
        raise ValueError(f"a P-256 key is made of {MATERIAL_LENGTH} bytes")
    return derive_private_key(int.from_bytes(material, "big") % (_CURVE.group_order - 1) + 1, _CURVE)


def point_of(key: object) -> bytes:
    """Give the public key as an uncompressed point: 65 bytes.

    Raises:
        ValueError: it is no public key, or one of another curve or algorithm.

    """
    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    raise ValueError("not a P-256 key")


def public_key(point: bytes) -> EllipticCurvePublicKey:
    """Read an uncompressed point.

    Raises:
        ValueError: another length or form, or not on the curve.

    """
    if len(point) != POINT_LENGTH:
        raise ValueError(f"a P-256 point has {POINT_LENGTH} bytes")
    return EllipticCurvePublicKey.from_encoded_point(_CURVE, point)


def to_pkcs8(key: EllipticCurvePrivateKey) -> bytes:
    """Give the private key as it is released: 138 bytes of DER.

    RFC 5208 PrivateKeyInfo (version 0, id-ecPublicKey with the named curve, no attributes) around RFC 5915
    ECPrivateKey (version 1, 32-byte scalar, no parameters, the public key as uncompressed point).
    """
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def point_of_pkcs8(der: bytes) -> bytes:
    """Give the public key (65 bytes) of a released private key.

    Raises:
        ValueError: not a P-256 private key in PKCS#8, unencrypted; the message says nothing of it.

    """
    try:
        key = load_der_private_key(der, None)
        if isinstance(key, EllipticCurvePrivateKey):
            return point_of(key.public_key())
    except (ValueError, TypeError, UnsupportedAlgorithm):
        pass  # what the reader says may quote the key
    raise ValueError("not a P-256 private key")
