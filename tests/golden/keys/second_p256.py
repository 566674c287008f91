"""P-256 as docs/reference/keys.md has it: scalars, PKCS#8, and ECDSA with the nonces of RFC 6979 written out.

Nothing of `kms` is imported here. Only the multiplication of the base point comes from `cryptography`.
"""

import hashlib
import hmac

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def scalar(material: bytes) -> int:
    """Make a private key of 48 bytes."""
    return int.from_bytes(material, "big") % (N - 1) + 1


def point(private: int) -> bytes:
    """Give the public key, 65 bytes."""
    key = ec.derive_private_key(private, ec.SECP256R1()).public_key()
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def pkcs8(private: int) -> bytes:
    before = "308187020100301306072a8648ce3d020106082a8648ce3d030107046d306b0201010420"
    return bytes.fromhex(before) + private.to_bytes(32, "big") + bytes.fromhex("a144034200") + point(private)


def sign(private: int, message: bytes) -> tuple[int, int]:
    """Give r and s of ECDSA with SHA-256."""
    digest = hashlib.sha256(message).digest()
    nonce = _nonce(private, digest)
    r = int.from_bytes(point(nonce)[1:33], "big") % N
    s = pow(nonce, -1, N) * (int.from_bytes(digest, "big") + r * private) % N
    return r, s


def _nonce(private: int, digest: bytes) -> int:
    """RFC 6979 section 3.2, for a curve and a hash of 256 bits."""
    seed = private.to_bytes(32, "big") + (int.from_bytes(digest, "big") % N).to_bytes(32, "big")
    k, v = bytes(32), b"\x01" * 32
    for step in (b"\x00", b"\x01"):
        k = _mac(k, v + step + seed)
        v = _mac(k, v)
    while True:
        v = _mac(k, v)
        if 1 <= int.from_bytes(v, "big") < N:
            return int.from_bytes(v, "big")
        k = _mac(k, v + b"\x00")
        v = _mac(k, v)


def _mac(key: bytes, message: bytes) -> bytes:
    return hmac.new(key, message, hashlib.sha256).digest()
