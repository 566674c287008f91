"""dstack's keys, built a second time from docs/guides/dstack.md alone: nothing of `kms` is imported here.

HKDF is written out (RFC 5869); curves and the encoding of a private key come from `cryptography`.
"""

import hashlib
import hmac

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat


def hkdf(secret: bytes, info: bytes) -> bytes:
    extracted = hmac.new(b"RATLS", secret, hashlib.sha256).digest()
    return hmac.new(extracted, info + b"\x01", hashlib.sha256).digest()


def pkcs8(scalar: bytes) -> bytes:
    key = ec.derive_private_key(int.from_bytes(scalar, "big"), ec.SECP256R1())
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def dh_secret(ca: bytes, info: bytes) -> bytes:
    return hashlib.sha256(pkcs8(hkdf(ca, info))).digest()


def compressed(scalar: bytes) -> bytes:
    key = ec.derive_private_key(int.from_bytes(scalar, "big"), ec.SECP256K1()).public_key()
    return key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)


def fingerprint(ca: bytes) -> bytes:
    key = ec.derive_private_key(int.from_bytes(ca, "big"), ec.SECP256R1()).public_key()
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


def keys(ca: bytes, k256: bytes, app_id: bytes, instance_id: bytes) -> dict[str, dict[str, str]]:
    """Give all that dstack gives an app, as the vectors have it."""
    env = dh_secret(ca, app_id + b"env-encrypt-key")
    app_key = hkdf(k256, app_id + b"app-key")
    public_env = X25519PrivateKey.from_private_bytes(env).public_key().public_bytes_raw()
    return {
        "dstack:disk": {"value": dh_secret(ca, app_id + instance_id + b"app-disk-crypt-key").hex()},
        "dstack:env": {"value": env.hex(), "public_key": public_env.hex()},
        "dstack:k256": {"value": app_key.hex(), "public_key": compressed(app_key).hex()},
    }
