"""docs/reference/keys.md, built a second time from that page alone: nothing of `kms` is imported here.

Key derivation and MACs use only hmac and hashlib. Curves, ML-KEM and AES come from `cryptography`, used
by their primitives.
"""

import base64
import hashlib
import hmac
import json
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

ALGORITHMS = {"disk": "symmetric-256", "env": "x25519", "signing": "ed25519", "custom": "symmetric-256"}


def label(name: str, body: bytes) -> bytes:
    return name.encode() + b"\0" + body


def frame(*fields: bytes) -> bytes:
    out = b""
    for field in fields:
        out += len(field).to_bytes(4, "big") + field
    return out


def u64(number: int) -> bytes:
    return number.to_bytes(8, "big")


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def compact(document: dict[str, Any]) -> bytes:
    return json.dumps(document).replace(": ", ":").replace(", ", ",").encode()


def prf(secret: bytes, message: bytes) -> bytes:
    return hmac.new(secret, message, hashlib.sha512).digest()


def app_secret(root: bytes, app_id: bytes) -> bytes:
    return prf(root, label("attested-kms/v1/root-app", frame(app_id)))


def identity_seed(root: bytes, generation: int) -> bytes:
    return prf(root, label("attested-kms/v1/root-identity", frame(u64(generation))))[:32]


def challenge_key(root: bytes) -> bytes:
    return prf(root, label("attested-kms/v1/root-challenge", b""))


def check_value(root: bytes, mode: str, epoch: int) -> bytes:
    return prf(root, label("attested-kms/v1/root-check", frame(mode.encode(), u64(epoch))))[:32]


def key_value(
    root: bytes, app_id: bytes, epoch: int, *, name: str, scope: str, scope_value: bytes
) -> tuple[str, bytes]:
    """Give the algorithm and the value."""
    kind, _, path = name.partition(":")
    algorithm = ALGORITHMS[kind]
    fields = frame(
        app_id, u64(epoch), kind.encode(), path.encode(), scope.encode(), scope_value, algorithm.encode()
    )
    message = label("attested-kms/v1/app-key", fields) + b"\x01"
    value = bytearray(hmac.new(app_secret(root, app_id), message, hashlib.sha512).digest()[:32])
    if algorithm == "x25519":
        value[0] &= 0b11111000
        value[31] &= 0b01111111
        value[31] |= 0b01000000
    return algorithm, bytes(value)


def public_key(algorithm: str, value: bytes) -> bytes | None:
    if algorithm == "x25519":
        return X25519PrivateKey.from_private_bytes(value).public_key().public_bytes_raw()
    if algorithm == "ed25519":
        return Ed25519PrivateKey.from_private_bytes(value).public_key().public_bytes_raw()
    return None


def signed(seed: bytes, name: str, payload: bytes) -> dict[str, str]:
    key = Ed25519PrivateKey.from_private_bytes(seed)
    return {
        "payload": b64(payload),
        "signature": b64(key.sign(label(name, payload))),
        "identity": b64(key.public_key().public_bytes_raw()),
    }


def statement(seed: bytes, app_id: bytes, epoch: int, public: bytes) -> dict[str, str]:
    text = {"app_id": app_id.hex(), "epoch": epoch, "algorithm": "ed25519", "public_key": b64(public)}
    return signed(seed, "attested-kms/v1/signing-statement", compact(text))


def entry(
    seed: bytes, root: bytes, app_id: bytes, epoch: int, *, name: str, scope: str, scope_value: bytes
) -> dict[str, Any]:
    """Give one member of the payload's keys."""
    algorithm, value = key_value(root, app_id, epoch, name=name, scope=scope, scope_value=scope_value)
    out: dict[str, Any] = {
        "name": name,
        "scope": scope,
        "epoch": epoch,
        "algorithm": algorithm,
        "value": b64(value),
    }
    public = public_key(algorithm, value)
    if public is not None:
        out["public_key"] = b64(public)
    if public is not None and algorithm == "ed25519":
        out["statement"] = statement(seed, app_id, epoch, public)
    return out


def envelope(
    seed: bytes, release_id: str, request: bytes, app_id: bytes, entries: list[dict[str, Any]]
) -> bytes:
    payload = {
        "release_id": release_id,
        "request_sha512": hashlib.sha512(request).hexdigest(),
        "app_id": app_id.hex(),
        "keys": entries,
    }
    return compact(signed(seed, "attested-kms/v1/payload", compact(payload)))


def challenge(root: bytes, nonce: bytes, expiry: int) -> bytes:
    body = b"\x01" + nonce + u64(expiry)
    mac = hmac.new(challenge_key(root), label("attested-kms/v1/challenge", body), hashlib.sha256).digest()
    return body + mac


# --- RFC 9180 base mode, receiving, for KDF HKDF-SHA-256 and AEAD AES-256-GCM ---


def _extract(salt: bytes, suite_id: bytes, name: bytes, material: bytes) -> bytes:
    return hmac.new(salt, b"HPKE-v1" + suite_id + name + material, hashlib.sha256).digest()


def _expand(key: bytes, suite_id: bytes, name: bytes, info: bytes, length: int) -> bytes:
    labelled_info = length.to_bytes(2, "big") + b"HPKE-v1" + suite_id + name + info
    return hmac.new(key, labelled_info + b"\x01", hashlib.sha256).digest()[:length]


def _open(kem_id: int, shared_secret: bytes, ciphertext: bytes, request: bytes) -> bytes:
    """Sections 5.1 (key schedule, mode_base) and 5.2."""
    suite_id = b"HPKE" + kem_id.to_bytes(2, "big") + b"\x00\x01" + b"\x00\x02"
    info = label("attested-kms/v1/release", hashlib.sha512(request).digest())
    psk_id_hash = _extract(b"", suite_id, b"psk_id_hash", b"")
    info_hash = _extract(b"", suite_id, b"info_hash", info)
    context = b"\x00" + psk_id_hash + info_hash
    secret = _extract(shared_secret, suite_id, b"secret", b"")
    key = _expand(secret, suite_id, b"key", context, 32)
    nonce = _expand(secret, suite_id, b"base_nonce", context, 12)
    return AESGCM(key).decrypt(nonce, ciphertext, b"")


def open_x25519(private: X25519PrivateKey, sealed: bytes, request: bytes) -> bytes:
    """Section 4.1 (DHKEM) with KEM 0x0020."""
    enc, ciphertext = sealed[:32], sealed[32:]
    suite_id = b"KEM" + (0x0020).to_bytes(2, "big")
    shared = private.exchange(X25519PublicKey.from_public_bytes(enc))
    context = enc + private.public_key().public_bytes_raw()
    prk = _extract(b"", suite_id, b"eae_prk", shared)
    secret = _expand(prk, suite_id, b"shared_secret", context, 32)
    return _open(0x0020, secret, ciphertext, request)


def open_hybrid(mlkem: MLKEM768PrivateKey, x25519: X25519PrivateKey, sealed: bytes, request: bytes) -> bytes:
    """X-Wing, KEM 0x647a."""
    ct_mlkem, ct_x25519, ciphertext = sealed[:1088], sealed[1088:1120], sealed[1120:]
    secret = hashlib.sha3_256(
        mlkem.decapsulate(ct_mlkem)
        + x25519.exchange(X25519PublicKey.from_public_bytes(ct_x25519))
        + ct_x25519
        + x25519.public_key().public_bytes_raw()
        + bytes.fromhex("5c2e2f2f5e5c")
    ).digest()
    return _open(0x647A, secret, ciphertext, request)
