"""The files of recovery keys: a private one of each recipient, and the list of those who may get backups.

A private key::

    {"format": "attested-kms/recovery-key", "version": 1, "suite": "hpke-mlkem768x25519-…",
     "public_key": "<base64url, 1216 bytes>", "private_key": "<base64url, 96 bytes>"}

or that text under a passphrase (`kms.keys.passphrase_document`, format
``attested-kms/recovery-key-encrypted``). The list (``KMS_RECOVERY_KEYS``) is TOML, a line each::

    alice = "mlkem768x25519:<base64url, 1216 bytes>"

Whoever can write the list gets the root with the next backup: so it is a file of the server's user or of
root's that nobody else can write.
"""

import json
import os
import secrets
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

from kms import private_files
from kms.encoding import b64url, from_base64
from kms.errors import ConfigurationError
from kms.keys import passphrase_document
from kms.keys.backup import MAX_RECIPIENTS
from kms.keys.passphrase_document import (
    SHORTEST_PASSPHRASE,
    NotOpened,
    PassphraseDocumentError,
    PassphraseTooShort,
)
from kms.keys.recovery_key import PRIVATE_LENGTH, PUBLIC_LENGTH, RecoveryKey, RecoveryRecipient
from kms.keys.sealing import Suite
from kms.keys.wiping import wipe
from kms.strict_json import Fields, JsonError, parse_object

_FORMAT: Final = "attested-kms/recovery-key"
_ENCRYPTED: Final = "attested-kms/recovery-key-encrypted"
_VERSION: Final = 1
_SUITE: Final = Suite.HPKE_MLKEM768X25519.value
_PREFIX: Final = "mlkem768x25519:"
_MOST_LIST: Final = 256 << 10  # bytes; `MAX_RECIPIENTS` take half of it
_FOREIGN_WRITE: Final = 0o022
_LINE: Final = 'a line for each recipient: NAME = "mlkem768x25519:…", as `kms keys recovery-key` prints it'


def recipient_line(recipient: RecoveryRecipient) -> str:
    """Give the line of the list."""
    return f'{recipient.name} = "{_PREFIX}{b64url(recipient.public_key)}"'


def read_recipients(path: Path | None) -> dict[str, RecoveryRecipient]:
    """Read the list that ``KMS_RECOVERY_KEYS`` names: recipients by name.

    Raises:
        ConfigurationError: there is none, others can write it, or it makes no sense.

    """
    if path is None:
        raise ConfigurationError(
            "nobody may get a backup: KMS_RECOVERY_KEYS is not set",
            remedy=f"set it to a file with {_LINE}",
        )
    try:
        content = private_files.read(
            path, at_most=_MOST_LIST, owners={os.geteuid(), 0}, foreign=_FOREIGN_WRITE
        )
        listed = tomllib.loads(content.decode("utf-8"))
    except OSError as error:
        _unusable(path, f"cannot be read: {error.strerror}", "It must be a regular file, not a link.")
    except private_files.Unfit as unfit:
        _unusable(
            path,
            str(unfit),
            "Whoever can write it gets the root with the next backup: it must be a file of this user's or"
            f" root's, chmod 0644 {path}, if what it says is still right.",
        )
    except ValueError:  # tomllib's and the decoder's
        _unusable(path, "is not TOML", f"Write {_LINE}.")
    if not 1 <= len(listed) <= MAX_RECIPIENTS:
        _unusable(path, f"must name 1 to {MAX_RECIPIENTS} recipients", f"Write {_LINE}.")
    recipients = {name: _recipient(path, name, value) for name, value in listed.items()}
    if len({each.public_key for each in recipients.values()}) != len(recipients):
        _unusable(path, "has one key under two names", "One of the two is not whom it says.")
    return recipients


def write_recovery_key(key: RecoveryKey, passphrase: bytes | None) -> bytes:
    """Give the text of a private key's file.

    Raises:
        ConfigurationError: the passphrase is too short.

    """
    document = {
        "format": _FORMAT,
        "version": _VERSION,
        "suite": _SUITE,
        "public_key": b64url(key.public_key),
        "private_key": b64url(key.private_bytes()),
    }
    text = json.dumps(document, indent=1).encode("ascii") + b"\n"
    if passphrase is None:
        return text
    try:
        return passphrase_document.encrypt(text, passphrase, _ENCRYPTED, random=secrets.token_bytes)
    except PassphraseTooShort:
        raise ConfigurationError(
            f"the passphrase of the recovery key has fewer than {SHORTEST_PASSPHRASE} bytes",
            remedy="Choose a longer one: whoever has the file can guess as fast as they can pay for.",
        ) from None


def read_recovery_key(
    path: Path, content: bytes | bytearray, passphrase: Callable[[], bytes] | None
) -> RecoveryKey:
    """Read what `write_recovery_key` gives; `path` names the file in messages.

    Raises:
        ConfigurationError: it is not that, is damaged, or needs another passphrase.

    """
    try:
        if not passphrase_document.is_encrypted(content, _ENCRYPTED):
            return _parse(content)
        if passphrase is None:
            raise ConfigurationError(
                f"the recovery key {path} is encrypted", remedy="say --passphrase-file FILE"
            )
        plaintext = passphrase_document.decrypt(content, passphrase(), _ENCRYPTED)
        try:
            return _parse(plaintext)
        finally:
            wipe(plaintext)
    except NotOpened:
        raise ConfigurationError(
            f"the recovery key {path}: the passphrase does not open it, or the file is damaged"
        ) from None
    except (PassphraseDocumentError, JsonError) as error:
        raise ConfigurationError(f"{path} is no recovery key: {error}") from None


def _parse(content: bytes | bytearray) -> RecoveryKey:
    fields = Fields(parse_object(content), "recovery key")
    if fields.text("format") != _FORMAT or fields.text("suite") != _SUITE:
        fields.fail("not of a format and suite that this version reads")
    fields.integer("version", minimum=_VERSION, maximum=_VERSION)
    public_key = fields.base64("public_key", at_most=PUBLIC_LENGTH)
    private_key = fields.base64("private_key", at_most=PRIVATE_LENGTH)
    fields.end()
    if len(private_key) != PRIVATE_LENGTH:
        fields.fail(f"`private_key` must have {PRIVATE_LENGTH} bytes")
    key = RecoveryKey(private_key)
    if key.public_key != public_key:
        # A flipped bit would be noticed on the day that the backup is needed.
        fields.fail("damaged: the public key is not that of the private one")
    return key


def _recipient(path: Path, name: str, value: object) -> RecoveryRecipient:
    try:
        if not isinstance(value, str) or not value.startswith(_PREFIX):
            raise ValueError(f'not "{_PREFIX}…"')
        return RecoveryRecipient(name, from_base64(value.removeprefix(_PREFIX)))
    except ValueError as error:
        _unusable(path, f"`{name}`: {error}", f"Write {_LINE}.")


def _unusable(path: Path, why: str, remedy: str) -> NoReturn:
    raise ConfigurationError(f"the list of recovery keys {path} {why}", remedy=remedy)
