"""Environments sealed to an app: its owner seals, and only the app's guests open, with their ``env`` key.

HPKE (RFC 9180) in base mode, KEM 0x0020, KDF 0x0001, AEAD 0x0002, empty associated data, and

    info = "attested-kms/v1/env" || 0x00 || frame(app_id, u64(epoch))

Anyone can seal to a public key. So a guest learns that only its app can read this, and nothing about who
wrote it: that must come from elsewhere, as a digest in what is measured, or a signature.
"""

import json
from dataclasses import dataclass
from typing import Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from kms.encoding import b64url
from kms.errors import KmsError
from kms.identifiers import AppId
from kms.keys.env_key import EnvKey, EnvKeyRejected
from kms.keys.root_messages import integer
from kms.keys.sealing import HPKE_SUITES, Suite
from kms.keys.signed import read_public_key
from kms.labels import ENV, frame, labelled
from kms.strict_json import Fields, JsonError, parse

MAX_ENV: Final = 1 << 20  # bytes
MAX_FILE: Final = 2 << 20  # bytes; base64 and a few members

_FORMAT: Final = "attested-kms/sealed-env"
_VERSION: Final = 1
_OVERHEAD: Final = 32 + 16  # the encapsulated key and the tag
_HPKE: Final = HPKE_SUITES[Suite.HPKE_X25519]


class SealedEnvRejected(KmsError):
    """A sealed environment that this guest cannot use.

    `reason`: ``sealed-env-malformed``, ``app-mismatch``, ``epoch-mismatch`` or ``cannot-open``.
    """

    code = "sealed-env-rejected"


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedEnv:
    """What a file holds, none of it proven. `identity` (32 bytes) vouched for the key that was sealed to."""

    app_id: AppId
    epoch: int
    identity: bytes
    sealed: bytes

    @classmethod
    def seal(cls, environment: bytes, key: EnvKey) -> Self:
        """Seal at most `MAX_ENV` bytes to a verified key.

        Raises:
            EnvKeyRejected: the key is a point of low order, to which nothing can be sealed.
            ValueError: the environment is longer.

        """
        if len(environment) > MAX_ENV:
            raise ValueError(f"an environment has at most {MAX_ENV} bytes")
        public_key = X25519PublicKey.from_public_bytes(key.public_key)
        try:
            sealed = _HPKE.encrypt(environment, public_key, _info(key.app_id, key.epoch))
        except ValueError:  # RFC 9180 section 7.1.4: the shared secret is zero
            raise EnvKeyRejected("an X25519 point of low order", reason="env-key-malformed") from None
        return cls(app_id=key.app_id, epoch=key.epoch, identity=key.identity, sealed=sealed)

    def open(self, private_key: bytes, *, app_id: AppId, epoch: int | None) -> bytes:
        """Open it with the ``env`` private key (32 bytes) that the KMS released for this app and epoch.

        Raises:
            SealedEnvRejected: it is for another app or epoch, was sealed to another key, or is damaged.

        """
        if self.app_id != app_id:
            raise SealedEnvRejected(
                f"sealed to the app {self.app_id.hex()}, and this guest is of {app_id.hex()}",
                reason="app-mismatch",
            )
        if self.epoch != epoch:
            raise SealedEnvRejected(
                f"sealed to epoch {self.epoch}, and the key is of epoch {epoch}", reason="epoch-mismatch"
            )
        try:
            key = X25519PrivateKey.from_private_bytes(private_key)
            return _HPKE.decrypt(self.sealed, key, _info(self.app_id, self.epoch))
        except InvalidTag:
            raise SealedEnvRejected(
                "sealed to another key (of another KMS?), or changed since", reason="cannot-open"
            ) from None

    def to_json(self) -> bytes:
        """Give the file."""
        document = {
            "format": _FORMAT,
            "version": _VERSION,
            "app_id": self.app_id.hex(),
            "epoch": self.epoch,
            "identity": b64url(self.identity),
            "sealed": b64url(self.sealed),
        }
        return (json.dumps(document, indent=1) + "\n").encode("ascii")

    @classmethod
    def parse(cls, file: bytes) -> Self:
        """Read a file of at most `MAX_FILE` bytes. Raises `SealedEnvRejected`."""
        try:
            fields = Fields(parse(file), "sealed environment")
            if fields.text("format", at_most=64) != _FORMAT:
                fields.fail(f"`format` must be {_FORMAT}")
            fields.integer("version", minimum=_VERSION, maximum=_VERSION)
            read = cls(
                app_id=fields.hex("app_id", AppId),
                epoch=fields.integer("epoch", minimum=1),
                identity=read_public_key(fields, "identity"),
                sealed=fields.base64("sealed", at_most=MAX_ENV + _OVERHEAD),
            )
            fields.end()
        except JsonError as error:
            raise SealedEnvRejected(str(error), reason="sealed-env-malformed") from None
        return read


def _info(app_id: AppId, epoch: int) -> bytes:
    return labelled(ENV, frame(app_id, integer(epoch)))
