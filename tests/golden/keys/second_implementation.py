"""docs/reference/keys.md, built a second time from that page alone: nothing of `kms` is imported here.

Key derivation and MACs use only hmac and hashlib; curves come from `cryptography`. HPKE, certificates,
published keys and files are in the other `second_…` modules beside this one.
"""

import base64
import hashlib
import hmac
import json
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tests.golden.keys import second_p256 as p256

ALGORITHMS = {
    "disk": "symmetric-256",
    "env": "x25519",
    "signing": "ed25519",
    "tls": "p-256",
    "custom": "symmetric-256",
}


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


def challenge_message() -> bytes:
    return label("attested-kms/v1/root-challenge", b"")


def challenge_key(root: bytes) -> bytes:
    return prf(root, challenge_message())


def check_message(mode: str, epoch: int) -> bytes:
    return label("attested-kms/v1/root-check", frame(mode.encode(), u64(epoch)))


def check_value(root: bytes, mode: str, epoch: int) -> bytes:
    return prf(root, check_message(mode, epoch))[:32]


def entries_key(root: bytes) -> bytes:
    """Give the key of the MACs of the ledger's entries."""
    return prf(root, label("attested-kms/v1/root-entries", b""))[:32]


def ledger_seed(root: bytes) -> bytes:
    """Give the Ed25519 seed of the key that signs checkpoints."""
    return prf(root, label("attested-kms/v1/root-ledger", b""))[:32]


def entry_mac(root: bytes, *fields: bytes) -> bytes:
    """Give the MAC of an entry: kind, id, server, salt, entry."""
    message = label("attested-kms/v1/entry", frame(*fields))
    return hmac.new(entries_key(root), message, hashlib.sha256).digest()


def rows_key(root: bytes) -> bytes:
    return prf(root, label("attested-kms/v1/root-rows", b""))[:32]


def foreign_key(root: bytes) -> bytes:
    return prf(root, label("attested-kms/v1/root-foreign", b""))[:32]


def apps_ca_scalar(root: bytes) -> int:
    return p256.scalar(prf(root, label("attested-kms/v1/root-apps-ca", b""))[:48])


def in_development(message: bytes) -> bytes:
    """Give what a development server asks of a root without a mark."""
    return label("attested-kms/v1/root-development", frame(message))


def expand(secret: bytes, info: bytes, length: int) -> bytes:
    """Give the first block of HKDF-Expand with SHA-512."""
    return hmac.new(secret, info + b"\x01", hashlib.sha512).digest()[:length]


def app_ca_scalar(root: bytes, app_id: bytes, epoch: int) -> int:
    info = label("attested-kms/v1/app-ca", frame(app_id, u64(epoch)))
    return p256.scalar(expand(app_secret(root, app_id), info, 48))


def app_key(
    root: bytes, app_id: bytes, epoch: int, *, name: str, scope: str, scope_value: bytes, length: int
) -> bytes:
    kind, _, path = name.partition(":")
    fields = frame(
        app_id,
        u64(epoch),
        kind.encode(),
        path.encode(),
        scope.encode(),
        scope_value,
        ALGORITHMS[kind].encode(),
    )
    return expand(app_secret(root, app_id), label("attested-kms/v1/app-key", fields), length)


def tls_scalar(root: bytes, app_id: bytes, epoch: int) -> int:
    material = app_key(root, app_id, epoch, name="tls", scope="app", scope_value=b"", length=48)
    return p256.scalar(material)


def key_value(
    root: bytes, app_id: bytes, epoch: int, *, name: str, scope: str, scope_value: bytes
) -> tuple[str, bytes]:
    """Give the algorithm and the value; not of `tls`, whose value is `p256.pkcs8` of its scalar."""
    algorithm = ALGORITHMS[name.partition(":")[0]]
    value = bytearray(
        app_key(root, app_id, epoch, name=name, scope=scope, scope_value=scope_value, length=32)
    )
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


def row_mac(root: bytes, table: str, *columns: str | None) -> bytes:
    fields = [b"\x00" if column is None else b"\x01" + column.encode() for column in columns]
    message = label("attested-kms/v1/row", frame(table.encode(), *fields))
    return hmac.new(rows_key(root), message, hashlib.sha256).digest()


def challenge(root: bytes, nonce: bytes, expiry: int) -> bytes:
    body = b"\x01" + nonce + u64(expiry)
    mac = hmac.new(challenge_key(root), label("attested-kms/v1/challenge", body), hashlib.sha256).digest()
    return body + mac


def release_info(request: bytes) -> bytes:
    return label("attested-kms/v1/release", hashlib.sha512(request).digest())
