"""The keys that a dstack KMS with the same roots would give, so that its apps can move here with their data.

As in dstack's ``ra-tls/src/kdf.rs``, ``kms/src/main_service.rs`` and ``kms/src/crypto.rs``
(https://github.com/Dstack-TEE/dstack)::

    derive(root, info) = HKDF-SHA-256(secret root, salt "RATLS", info), 32 bytes: the scalar of a private key
    dh_secret(info)    = SHA-256(PKCS#8 DER of the P-256 key derive(CA, info))

    dstack:disk        = dh_secret(app id || instance id || "app-disk-crypt-key")
    dstack:env         = dh_secret(app id || "env-encrypt-key")
    dstack:k256        = derive(k256, app id || "app-key")

Nothing frames the ids in `info`: with ids of any length, one app could have ids that read as those of another
(field lesson 27). Here each id has 20 bytes and no other length, so every `info` can be read in one way only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256K1,
    SECP256R1,
    EllipticCurve,
    EllipticCurvePublicKey,
    derive_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from kms.errors import RootKeyUnavailable
from kms.identifiers import AppId, InstanceId
from kms.keys.names import KeyKind, KeyRequest, Scope
from kms.keys.p256 import point_of
from kms.keys.released import ReleasedKey, public_half

ROOT_LENGTH: Final = 32
ID_LENGTH: Final = 20  # of app ids and instance ids alike: an address, or the beginning of a SHA-256

_CA_CURVE: Final = SECP256R1()
_K256_CURVE: Final = SECP256K1()
_SALT: Final = b"RATLS"
_WORDS: Final[Mapping[KeyKind, bytes]] = {
    KeyKind.DSTACK_DISK: b"app-disk-crypt-key",
    KeyKind.DSTACK_ENV: b"env-encrypt-key",
    KeyKind.DSTACK_K256: b"app-key",
}
# What stands before the scalar (32 bytes) and before the point (65 bytes, uncompressed) in the PKCS#8 DER of
# a P-256 key (RFC 5208, RFC 5915). Not left to an encoder: RFC 5915 lets it leave the point out, or name the
# curve once more, and then every disk would have another key.
_BEFORE_SCALAR: Final = bytes.fromhex(
    "308187020100301306072a8648ce3d020106082a8648ce3d030107046d306b0201010420"
)
_BEFORE_POINT: Final = bytes.fromhex("a144034200")


@dataclass(frozen=True, slots=True)
class DstackRoots:
    """The private keys of a dstack KMS, 32 bytes each, big-endian: its CA's on P-256, and its secp256k1 key.

    They are secrets of their own, never part of our derivation.

    Raises:
        ValueError: not the private keys of their curves.

    """

    ca: bytes = field(repr=False)
    k256: bytes = field(repr=False)

    def __post_init__(self) -> None:
        for root, curve in ((self.ca, _CA_CURVE), (self.k256, _K256_CURVE)):
            if len(root) != ROOT_LENGTH or not _is_scalar(root, curve):
                raise ValueError(f"not a private key of {curve.name}")

    @property
    def ca_fingerprint(self) -> bytes:
        """SHA-256 (32 bytes) of the CA's SubjectPublicKeyInfo, as of the `ca_cert` that dstack publishes."""
        public_key = _public_key(self.ca, _CA_CURVE)
        return sha256(public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()

    @property
    def k256_public_key(self) -> bytes:
        """The secp256k1 public key (33 bytes, SEC 1 compressed): the `k256_pubkey` that dstack publishes."""
        return _public_key(self.k256, _K256_CURVE).public_bytes(Encoding.X962, PublicFormat.CompressedPoint)


def dstack_obstacle(request: KeyRequest, *, app_id: AppId, instance_id: InstanceId | None) -> str | None:
    """Give the reason code why dstack would have no such key, or None.

    ``dstack-id-length`` (an id that does not have 20 bytes) or ``instance-unbound`` (`dstack:disk`, and the
    bound identity has no instance id). Policy makes a refusal of it before anything is derived.
    """
    if request.scope is Scope.INSTANCE and instance_id is None:
        return "instance-unbound"
    if any(len(each) != ID_LENGTH for each in _ids(request, app_id, instance_id)):
        return "dstack-id-length"
    return None


def derive_dstack(
    roots: DstackRoots, request: KeyRequest, *, app_id: AppId, instance_id: InstanceId | None
) -> ReleasedKey:
    """Derive what a dstack KMS gives as ``disk_crypt_key``, ``env_crypt_key`` or ``k256_key``.

    The ids are the bound ones, never the request's. The value is byte for byte dstack's: so the X25519 key of
    `dstack:env` is not clamped as our own is, which changes nothing for whoever uses it (RFC 7748 section 5).

    Raises:
        ValueError: not one of dstack's keys, or `dstack_obstacle` has a reason against it (policy refuses
            such a request before).
        RootKeyUnavailable: reason ``dstack-key-undefined``: for about one in 2^32 apps and instances, what is
            derived is no P-256 scalar; a dstack KMS fails there too, so no data is under such a key.

    """
    name = request.name
    if name.kind not in _WORDS:
        raise ValueError("dstack has no key of this name")
    reason = dstack_obstacle(request, app_id=app_id, instance_id=instance_id)
    if reason is not None:
        raise ValueError(f"asked to derive a key that policy should have refused: {reason}")
    info = b"".join(_ids(request, app_id, instance_id)) + _WORDS[name.kind]
    if name.kind is KeyKind.DSTACK_K256:
        value = _derive(roots.k256, info, _K256_CURVE)
    else:
        value = dh_secret(roots.ca, info)
    return ReleasedKey(
        name=name,
        scope=request.scope,
        epoch=None,
        value=value,
        public_key=public_half(name.algorithm, value),
    )


def dh_secret(ca: bytes, info: bytes) -> bytes:
    """Give dstack's ``derive_dh_secret`` (32 bytes) of the CA's scalar and all of its context.

    Raises:
        RootKeyUnavailable: as `derive_dstack`.

    """
    scalar = _derive(ca, info, _CA_CURVE)
    return sha256(_BEFORE_SCALAR + scalar + _BEFORE_POINT + point_of(_public_key(scalar, _CA_CURVE))).digest()


def _ids(request: KeyRequest, app_id: AppId, instance_id: InstanceId | None) -> tuple[bytes, ...]:
    if request.scope is Scope.INSTANCE and instance_id is not None:
        return app_id, instance_id
    return (app_id,)


def _derive(root: bytes, info: bytes, curve: EllipticCurve) -> bytes:
    scalar = HKDF(SHA256(), ROOT_LENGTH, salt=_SALT, info=info).derive(root)
    if not _is_scalar(scalar, curve):
        raise RootKeyUnavailable("dstack has no such key for this app", reason="dstack-key-undefined")
    return scalar


def _public_key(scalar: bytes, curve: EllipticCurve) -> EllipticCurvePublicKey:
    return derive_private_key(int.from_bytes(scalar, "big"), curve).public_key()


def _is_scalar(value: bytes, curve: EllipticCurve) -> bool:
    return 0 < int.from_bytes(value, "big") < curve.group_order
