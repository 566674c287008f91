"""The root's files and backups, built from docs/reference/keys.md alone: nothing of `kms` is imported."""

import base64
import hashlib
import json
from typing import Any

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from tests.golden.keys import second_dstack as dstack
from tests.golden.keys import second_hpke
from tests.golden.keys import second_implementation as second


def canonical(document: dict[str, Any]) -> bytes:
    """Give the RFC 8785 form, of documents in which everything is ASCII and whole."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def root_document(mode: str, created_at: str, secrets: dict[int, bytes]) -> dict[str, Any]:
    document: dict[str, Any] = {
        "format": "attested-kms/root-key",
        "version": 1,
        "mode": mode,
        "created_at": created_at,
        "epochs": [{"epoch": epoch, "secret": second.b64(secret)} for epoch, secret in secrets.items()],
    }
    return document | {"checksum": hashlib.sha256(canonical(document)).hexdigest()}


# --- under a passphrase ---


def encrypt(form: str, plaintext: bytes, passphrase: bytes, *, salt: bytes, nonce: bytes) -> dict[str, Any]:
    header = {
        "format": form,
        "version": 1,
        "kdf": {
            "name": "argon2id",
            "memory_kib": 65536,
            "iterations": 3,
            "lanes": 4,
            "salt": second.b64(salt),
        },
        "nonce": second.b64(nonce),
    }
    ciphertext = _cipher(header, passphrase).encrypt(nonce, plaintext, canonical(header))
    return header | {"ciphertext": second.b64(ciphertext)}


def decrypt(document: dict[str, Any], passphrase: bytes) -> bytes:
    header = {name: value for name, value in document.items() if name != "ciphertext"}
    return _cipher(header, passphrase).decrypt(
        unb64(header["nonce"]), unb64(document["ciphertext"]), canonical(header)
    )


def _cipher(header: dict[str, Any], passphrase: bytes) -> AESGCM:
    kdf = header["kdf"]
    argon2 = Argon2id(
        salt=unb64(kdf["salt"]),
        length=32,
        iterations=kdf["iterations"],
        lanes=kdf["lanes"],
        memory_cost=kdf["memory_kib"],
    )
    return AESGCM(argon2.derive(passphrase))


# --- backups ---


def recovery_pair(private: bytes) -> tuple[MLKEM768PrivateKey, X25519PrivateKey]:
    return MLKEM768PrivateKey.from_seed_bytes(private[:64]), X25519PrivateKey.from_private_bytes(private[64:])


def recovery_public(private: bytes) -> bytes:
    mlkem, x25519 = recovery_pair(private)
    return mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()


def fingerprint(private: bytes) -> str:
    return hashlib.sha256(recovery_public(private)).hexdigest()


def open_backup(backup: dict[str, Any], private: bytes) -> bytes:
    """Give the secrets, joined."""
    header = {name: value for name, value in backup.items() if name != "ciphertext"}
    header["recipients"] = [
        {name: value for name, value in each.items() if name != "sealed"} for each in backup["recipients"]
    ]
    context = second.label("attested-kms/v1/backup", hashlib.sha256(canonical(header)).digest())
    mine = fingerprint(private)
    [sealed] = [each["sealed"] for each in backup["recipients"] if each["public_key_sha256"] == mine]
    content_key = second_hpke.open_hybrid(*recovery_pair(private), unb64(sealed), context)
    return AESGCM(content_key).decrypt(unb64(backup["nonce"]), unb64(backup["ciphertext"]), context)


def described(
    mode: str, secrets: dict[int, bytes], ca: bytes, k256: bytes, *, adopted: list[Any], later: list[str]
) -> dict[str, Any]:
    """Give what a backup says without a secret; `adopted` and `later` are what the database said."""
    identity = second.public_key("ed25519", second.identity_seed(secrets[1], 1)) or b""
    return {
        "mode": mode,
        "identity": second.b64(identity),
        "epochs": [
            {
                "epoch": epoch,
                "check_value": second.b64(second.check_value(secret, mode, epoch)),
                "adopted": said,
            }
            for (epoch, secret), said in zip(secrets.items(), adopted, strict=True)
        ],
        "later_generations": later,
        "dstack": {
            "ca_spki_sha256": dstack.fingerprint(ca).hex(),
            "k256_public_key": dstack.compressed(k256).hex(),
        },
    }


# --- rows of the database ---


def foreign_context() -> bytes:
    return second.label("attested-kms/v1/root-foreign", second.frame(b"dstack"))


def seal_foreign(root: bytes, nonce: bytes, ca: bytes, k256: bytes) -> bytes:
    return nonce + AESGCM(second.foreign_key(root)).encrypt(nonce, ca + k256, foreign_context())
