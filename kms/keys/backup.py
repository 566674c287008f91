"""Backups of the root, sealed to recovery keys.

::

    {"format": "attested-kms/root-backup", "version": 1, "mode": "production",
     "created_at": "2026-01-02T03:04:05Z", "identity": "<public key of generation 1, 32 bytes>",
     "later_generations": ["2026-01-02T03:04:05Z"],
     "epochs": [{"epoch": 1, "check_value": "<32 bytes>",
                 "adopted": {"made_at": "…", "active_from": "…", "retired_at": null}}],
     "dstack": {"ca_spki_sha256": "<hex>", "k256_public_key": "<hex>"},    (null where none were imported)
     "recipients": [{"name": "alice", "public_key_sha256": "<hex>", "sealed": "<1168 bytes>"}],
     "nonce": "<12 bytes>", "ciphertext": "<base64url>"}

A content key of 32 random bytes is sealed to each recipient (`kms.keys.recovery_key`). Under it AES-256-GCM
encrypts the secrets of the epochs, 32 bytes each and oldest first, then dstack's two roots. HPKE info and
associated data are the same: ``label(BACKUP, SHA-256(header))``, where the header is the RFC 8785 form of the
document without `ciphertext` and without each `sealed`. So nothing that can be read in a backup can be
changed, and damage to what is sealed to one recipient does not keep out the others.

`later_generations` (when each after the first was made) and `adopted` (null for an epoch that waits to be)
are what the database said (`kms.keys.key_history`).

Whoever has a recipient's public key can make a backup, of a root of their own: the identity says whose it is.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import sha256
from typing import Final, Self

import rfc8785
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kms.encoding import b64url
from kms.errors import KmsError
from kms.keys.key_history import KeyHistory
from kms.keys.opening import CannotOpen
from kms.keys.recovery_key import OVERHEAD, RecoveryKey, RecoveryRecipient, fingerprint
from kms.keys.root_copy import Description, RootCopy
from kms.keys.root_messages import MAX_EPOCHS
from kms.keys.wiping import wipe
from kms.labels import BACKUP, labelled
from kms.strict_json import Fields, JsonError, JsonValue, parse

MAX_FILE: Final = 4 << 20  # bytes; more than the most epochs and recipients need
MAX_RECIPIENTS: Final = 64

_FORMAT: Final = "attested-kms/root-backup"
_VERSION: Final = 1
_CONTENT_KEY_LENGTH: Final = 32
_SEALED_LENGTH: Final = _CONTENT_KEY_LENGTH + OVERHEAD
_NONCE_LENGTH: Final = 12  # NIST SP 800-38D section 5.2.1.1
_TAG_LENGTH: Final = 16
_DIGEST_LENGTH: Final = 32
_MOST_PLAINTEXT: Final = 1 << 18
_MOST_VALUES: Final = 8 * MAX_EPOCHS


class BackupRejected(KmsError):
    """A backup that cannot be used.

    `reason`: ``backup-malformed``, ``backup-not-for-key``, ``cannot-open`` or ``backup-inconsistent``.
    """

    code = "backup-rejected"


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedContentKey:
    """The content key as one recipient gets it. `fingerprint` is that of the recipient's public key."""

    name: str
    fingerprint: bytes
    sealed: bytes

    def header(self) -> dict[str, JsonValue]:
        """Give who the recipient is."""
        return {"name": self.name, "public_key_sha256": self.fingerprint.hex()}

    def to_json(self) -> dict[str, JsonValue]:
        """Give the entry."""
        return self.header() | {"sealed": b64url(self.sealed)}

    @classmethod
    def read(cls, value: JsonValue) -> Self:
        """Read an entry. Raises `JsonError`."""
        fields = Fields(value, "recipient")
        read = cls(
            name=fields.text("name", at_most=64),
            fingerprint=fields.hex("public_key_sha256", bytes),
            sealed=fields.base64("sealed", at_most=_SEALED_LENGTH),
        )
        fields.end()
        if len(read.fingerprint) != _DIGEST_LENGTH or len(read.sealed) != _SEALED_LENGTH:
            fields.fail("a digest or sealed key of another length")
        return read


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """What a file holds. The description is proven only by `open`."""

    description: Description
    recipients: tuple[SealedContentKey, ...]
    nonce: bytes
    ciphertext: bytes

    @classmethod
    def seal(
        cls,
        root: RootCopy,
        recipients: Sequence[RecoveryRecipient],
        *,
        history: KeyHistory,
        now: datetime,
        random: Callable[[int], bytes],
    ) -> Self:
        """Seal a root to recipients; `history` is what the database says of its epochs and generations.

        `random` gives that many bytes of the system's randomness.

        Raises:
            ValueError: nobody to seal to, more than `MAX_RECIPIENTS`, or the same one twice.

        """
        keys = {each.public_key for each in recipients}
        if not 1 <= len(recipients) <= MAX_RECIPIENTS or len(keys) != len(recipients):
            raise ValueError(f"a backup is for 1 to {MAX_RECIPIENTS} different recipients")
        header = cls(
            description=root.described(now.replace(microsecond=0), history),
            recipients=tuple(
                SealedContentKey(name=each.name, fingerprint=each.fingerprint, sealed=b"")
                for each in recipients
            ),
            nonce=random(_NONCE_LENGTH),
            ciphertext=b"",
        )
        context = header._context()
        content_key, plaintext = bytearray(random(_CONTENT_KEY_LENGTH)), root.plaintext()
        try:
            sealed = tuple(
                replace(entry, sealed=each.seal(content_key, context))
                for entry, each in zip(header.recipients, recipients, strict=True)
            )
            ciphertext = AESGCM(content_key).encrypt(header.nonce, plaintext, context)
        finally:
            wipe(content_key)
            wipe(plaintext)
        return replace(header, recipients=sealed, ciphertext=ciphertext)

    def open(self, key: RecoveryKey) -> RootCopy:
        """Open it with a recipient's key, and make sure that it is the root that it says.

        Raises:
            BackupRejected: ``backup-not-for-key``; ``cannot-open`` where anything was changed;
                ``backup-inconsistent`` where whoever made it sealed something else than it says.

        """
        mine = fingerprint(key.public_key)
        sealed = next((each.sealed for each in self.recipients if each.fingerprint == mine), None)
        if sealed is None:
            names = ", ".join(each.name for each in self.recipients)
            raise BackupRejected(
                f"not sealed to this recovery key, but to those of: {names}", reason="backup-not-for-key"
            )
        context = self._context()
        content_key = bytearray()
        plaintext = bytearray(self.description.plaintext_length)
        try:
            content_key += key.open(sealed, context)
            AESGCM(content_key).decrypt_into(self.nonce, self.ciphertext, context, plaintext)
            return RootCopy.of(plaintext, self.description)
        except (CannotOpen, InvalidTag):
            raise BackupRejected("damaged, or changed since it was made", reason="cannot-open") from None
        except ValueError as error:
            raise BackupRejected(f"made wrongly: {error}", reason="backup-inconsistent") from None
        finally:
            wipe(content_key)
            wipe(plaintext)

    def to_json(self) -> bytes:
        """Give the file."""
        document = {
            **self._header(),
            "recipients": [each.to_json() for each in self.recipients],
            "ciphertext": b64url(self.ciphertext),
        }
        return (json.dumps(document, indent=1) + "\n").encode("ascii")

    @classmethod
    def parse(cls, file: bytes) -> Self:
        """Read a file of at most `MAX_FILE` bytes. Raises `BackupRejected` (``backup-malformed``)."""
        try:
            return cls._read(Fields(parse(file, most_values=_MOST_VALUES), "backup"))
        except JsonError as error:
            raise BackupRejected(str(error), reason="backup-malformed") from None

    @classmethod
    def _read(cls, fields: Fields) -> Self:
        if fields.text("format", at_most=64) != _FORMAT:
            fields.fail(f"`format` must be {_FORMAT}")
        fields.integer("version", minimum=_VERSION, maximum=_VERSION)
        read = cls(
            description=Description.read(fields),
            recipients=tuple(
                SealedContentKey.read(item)
                for item in fields.array("recipients", at_least=1, at_most=MAX_RECIPIENTS)
            ),
            nonce=fields.base64("nonce", at_most=_NONCE_LENGTH),
            ciphertext=fields.base64("ciphertext", at_most=_MOST_PLAINTEXT),
        )
        fields.end()
        if len(read.nonce) != _NONCE_LENGTH:
            fields.fail(f"`nonce` must have {_NONCE_LENGTH} bytes")
        if len(read.ciphertext) != read.description.plaintext_length + _TAG_LENGTH:
            fields.fail("`ciphertext` is not as long as the secrets of its epochs")
        return read

    def _header(self) -> dict[str, JsonValue]:
        return {
            "format": _FORMAT,
            "version": _VERSION,
            **self.description.to_json(),
            "recipients": [each.header() for each in self.recipients],
            "nonce": b64url(self.nonce),
        }

    def _context(self) -> bytes:
        return labelled(BACKUP, sha256(rfc8785.dumps(self._header())).digest())
