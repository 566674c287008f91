"""Sealing a released envelope to the key that the guest's hardware signed (field lesson 29).

Only the guest that asked can open it, whoever ends TLS. With HPKE the digest of the exact request is in
the context as well, so that an answer cannot be opened as the answer to another request; a sealed box
has no such place, and there only the signed payload's `request_sha512` says it.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Self

from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from nacl.public import PublicKey, SealedBox

from kms.errors import MalformedRequest
from kms.labels import RELEASE, labelled

X25519_LENGTH: Final = 32  # RFC 7748
MLKEM768_LENGTH: Final = 1184  # FIPS 203 table 3: encapsulation key of ML-KEM-768
REQUEST_DIGEST_LENGTH: Final = 64  # SHA-512


class Suite(StrEnum):
    """How keys are sealed; the protocol's names."""

    X25519_SEALEDBOX = "x25519-sealedbox"
    HPKE_X25519 = "hpke-x25519-hkdf-sha256-aes-256-gcm"
    HPKE_MLKEM768X25519 = "hpke-mlkem768x25519-hkdf-sha256-aes-256-gcm"


# RFC 9180 section 7: KDF 0x0001 and AEAD 0x0002 for both; KEM 0x0020, and 0x647a (MLKEM768-X25519).
HPKE_SUITES: Final = {
    Suite.HPKE_X25519: hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM),
    Suite.HPKE_MLKEM768X25519: hpke.Suite(
        hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM
    ),
}

_P: Final = 2**255 - 19
# The u-coordinates of the points of order 1, 2, 4 and 8 on Curve25519 and its twist, as libsodium lists
# them (crypto_scalarmult/curve25519/ref10, has_small_order). With them the shared secret is zero, and
# whoever sees the sealed bytes can open them.
_LOW_ORDER: Final = frozenset(
    {
        0,
        1,
        _P - 1,
        0x00B8495F16056286FDB1329CEB8D09DA6AC49FF1FAE35616AEB8413B7C7AEBE0,
        0x57119FD0DD4E22D8868E1C58C45C44045BEF839C55B1D0B1248C50A3BC959C5F,
    }
)

_PublicKey = PublicKey | X25519PublicKey | hpke.MLKEM768X25519PublicKey


@dataclass(frozen=True, slots=True)
class Recipient:
    """A guest's public key that was checked. `public_key` is its bytes on the wire."""

    suite: Suite
    public_key: bytes
    _key: _PublicKey = field(repr=False, compare=False)

    @classmethod
    def parse(cls, suite: str, public_key: bytes) -> Self:
        """Check what the request calls its recipient.

        `public_key`: 32 bytes, or for the hybrid 1184 bytes of ML-KEM-768 followed by 32 of X25519.

        Raises:
            MalformedRequest: an unknown suite, another length, an X25519 point of low order in any
                encoding, or an ML-KEM key whose coefficients are not reduced (FIPS 203 section 7.2).

        """
        try:
            known = Suite(suite)
        except ValueError:
            raise MalformedRequest("unknown suite", reason="suite-unknown") from None
        hybrid = known is Suite.HPKE_MLKEM768X25519
        length = X25519_LENGTH + (MLKEM768_LENGTH if hybrid else 0)
        if len(public_key) != length:
            raise MalformedRequest(f"this suite's public key has {length} bytes", reason="public-key-invalid")
        point = public_key[-X25519_LENGTH:]
        _refuse_low_order(point)
        if known is Suite.X25519_SEALEDBOX:
            return cls(known, public_key, PublicKey(point))
        x25519 = X25519PublicKey.from_public_bytes(point)
        if not hybrid:
            return cls(known, public_key, x25519)
        try:
            mlkem = MLKEM768PublicKey.from_public_bytes(public_key[:MLKEM768_LENGTH])
        except ValueError:
            raise MalformedRequest("not an ML-KEM-768 key", reason="public-key-invalid") from None
        return cls(known, public_key, hpke.MLKEM768X25519PublicKey(mlkem, x25519))


def seal(recipient: Recipient, plaintext: bytes, request_sha512: bytes) -> bytes:
    """Seal to the recipient: ``enc || ciphertext``, or a libsodium sealed box.

    `request_sha512` is the 64-byte digest of the exact request bytes.

    Raises:
        ValueError: a digest of another length.

    """
    key = recipient._key  # noqa: SLF001 -- `parse` alone makes it, this alone uses it
    info = hpke_info(request_sha512)
    if isinstance(key, PublicKey):
        return bytes(SealedBox(key).encrypt(plaintext))
    return HPKE_SUITES[recipient.suite].encrypt(plaintext, key, info)


def hpke_info(request_sha512: bytes) -> bytes:
    """Give the HPKE info that binds the sealed bytes to one request.

    Raises:
        ValueError: not 64 bytes; a digest in hex must not pass for one.

    """
    if len(request_sha512) != REQUEST_DIGEST_LENGTH:
        raise ValueError(f"a request digest has {REQUEST_DIGEST_LENGTH} bytes")
    return labelled(RELEASE, request_sha512)


def _refuse_low_order(point: bytes) -> None:
    # As X25519 reads it (RFC 7748 section 5): bit 255 is ignored and the rest taken modulo p, so this one
    # comparison covers every encoding of a low-order point, the non-canonical ones included.
    u = (int.from_bytes(point, "little") & (2**255 - 1)) % _P
    if u in _LOW_ORDER:
        raise MalformedRequest("an X25519 point of low order", reason="public-key-invalid")
