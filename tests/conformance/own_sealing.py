"""Opening what the server seals, in the three suites, without the server's code.

The plain HPKE suite is written out from RFC 9180, so that two implementations have to agree.
"""

import hashlib
import hmac
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import mlkem
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, MLKEM768X25519PrivateKey, Suite
from nacl.public import PrivateKey, SealedBox

SEALED_BOX = "x25519-sealedbox"
HPKE = "hpke-x25519-hkdf-sha256-aes-256-gcm"
HYBRID = "hpke-mlkem768x25519-hkdf-sha256-aes-256-gcm"
SUITES = (SEALED_BOX, HPKE, HYBRID)

_KEM_ID = (0x0020).to_bytes(2, "big")
_HPKE_ID = b"HPKE" + _KEM_ID + (0x0001).to_bytes(2, "big") + (0x0002).to_bytes(2, "big")


def _labeled_extract(suite: bytes, salt: bytes, label: bytes, ikm: bytes) -> bytes:
    """RFC 9180, 4."""
    return hmac.digest(salt, b"HPKE-v1" + suite + label + ikm, "sha256")


def _labeled_expand(suite: bytes, prk: bytes, label: bytes, info: bytes, length: int) -> bytes:
    """RFC 9180, 4; HKDF-Expand of RFC 5869 with at most two blocks."""
    labeled = length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info
    first = hmac.digest(prk, labeled + b"\x01", "sha256")
    second = hmac.digest(prk, first + labeled + b"\x02", "sha256")
    return (first + second)[:length]


def hpke_open(sealed: bytes, private: X25519PrivateKey, info: bytes) -> bytes:
    """Open `enc || ciphertext` in base mode with empty AAD (RFC 9180, 4.1, 5.1, 5.2)."""
    enc, ciphertext = sealed[:32], sealed[32:]
    kem = b"KEM" + _KEM_ID
    exchanged = private.exchange(X25519PublicKey.from_public_bytes(enc))
    context = enc + private.public_key().public_bytes_raw()
    shared = _labeled_expand(
        kem, _labeled_extract(kem, b"", b"eae_prk", exchanged), b"shared_secret", context, 32
    )
    schedule = b"\x00" + _labeled_extract(_HPKE_ID, b"", b"psk_id_hash", b"")
    schedule += _labeled_extract(_HPKE_ID, b"", b"info_hash", info)
    secret = _labeled_extract(_HPKE_ID, shared, b"secret", b"")
    key = _labeled_expand(_HPKE_ID, secret, b"key", schedule, 32)
    nonce = _labeled_expand(_HPKE_ID, secret, b"base_nonce", schedule, 12)
    return AESGCM(key).decrypt(nonce, ciphertext, b"")


@dataclass(frozen=True, slots=True)
class Recipient:
    """A fresh key pair for one request."""

    suite: str
    x25519: X25519PrivateKey
    ml_kem: mlkem.MLKEM768PrivateKey | None

    @property
    def public_key(self) -> bytes:
        """32 bytes; for the hybrid 1184 bytes of ML-KEM-768 before them."""
        classical = self.x25519.public_key().public_bytes_raw()
        return classical if self.ml_kem is None else self.ml_kem.public_key().public_bytes_raw() + classical

    def open(self, sealed: bytes, request: bytes) -> bytes:
        """Open what was sealed for this request."""
        info = b"attested-kms/v1/release\x00" + hashlib.sha512(request).digest()
        if self.suite == SEALED_BOX:
            return SealedBox(PrivateKey(self.x25519.private_bytes_raw())).decrypt(sealed)
        if self.ml_kem is None:
            return hpke_open(sealed, self.x25519, info)
        suite = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
        return suite.decrypt(sealed, MLKEM768X25519PrivateKey(self.ml_kem, self.x25519), info)


def new_recipient(suite: str) -> Recipient:
    ml_kem = mlkem.MLKEM768PrivateKey.generate() if suite == HYBRID else None
    return Recipient(suite, X25519PrivateKey.generate(), ml_kem)
