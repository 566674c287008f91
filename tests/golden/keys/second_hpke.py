"""HPKE as docs/reference/keys.md uses it, receiving: RFC 9180 base mode with HKDF-SHA-256 and AES-256-GCM.

Nothing of `kms` is imported here; curves, ML-KEM and AES come from `cryptography`.
"""

import hashlib
import hmac

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM


def _extract(salt: bytes, suite_id: bytes, name: bytes, material: bytes) -> bytes:
    return hmac.new(salt, b"HPKE-v1" + suite_id + name + material, hashlib.sha256).digest()


def _expand(key: bytes, suite_id: bytes, name: bytes, info: bytes, length: int) -> bytes:
    labelled_info = length.to_bytes(2, "big") + b"HPKE-v1" + suite_id + name + info
    return hmac.new(key, labelled_info + b"\x01", hashlib.sha256).digest()[:length]


def _open(kem_id: int, shared_secret: bytes, ciphertext: bytes, info: bytes) -> bytes:
    """Sections 5.1 (key schedule, mode_base) and 5.2."""
    suite_id = b"HPKE" + kem_id.to_bytes(2, "big") + b"\x00\x01" + b"\x00\x02"
    psk_id_hash = _extract(b"", suite_id, b"psk_id_hash", b"")
    info_hash = _extract(b"", suite_id, b"info_hash", info)
    context = b"\x00" + psk_id_hash + info_hash
    secret = _extract(shared_secret, suite_id, b"secret", b"")
    key = _expand(secret, suite_id, b"key", context, 32)
    nonce = _expand(secret, suite_id, b"base_nonce", context, 12)
    return AESGCM(key).decrypt(nonce, ciphertext, b"")


def open_x25519(private: X25519PrivateKey, sealed: bytes, info: bytes) -> bytes:
    """Section 4.1 (DHKEM) with KEM 0x0020."""
    enc, ciphertext = sealed[:32], sealed[32:]
    suite_id = b"KEM" + (0x0020).to_bytes(2, "big")
    shared = private.exchange(X25519PublicKey.from_public_bytes(enc))
    context = enc + private.public_key().public_bytes_raw()
    prk = _extract(b"", suite_id, b"eae_prk", shared)
    secret = _expand(prk, suite_id, b"shared_secret", context, 32)
    return _open(0x0020, secret, ciphertext, info)


def open_hybrid(mlkem: MLKEM768PrivateKey, x25519: X25519PrivateKey, sealed: bytes, info: bytes) -> bytes:
    """X-Wing, KEM 0x647a."""
    ct_mlkem, ct_x25519, ciphertext = sealed[:1088], sealed[1088:1120], sealed[1120:]
    secret = hashlib.sha3_256(
        mlkem.decapsulate(ct_mlkem)
        + x25519.exchange(X25519PublicKey.from_public_bytes(ct_x25519))
        + ct_x25519
        + x25519.public_key().public_bytes_raw()
        + bytes.fromhex("5c2e2f2f5e5c")
    ).digest()
    return _open(0x647A, secret, ciphertext, info)
