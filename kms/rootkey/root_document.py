"""The text of a root key file.

::

    {"format": "attested-kms/root-key", "version": 1, "mode": "production",
     "created_at": "2026-01-02T03:04:05Z",
     "epochs": [{"epoch": 1, "secret": "<base64url, 32 bytes>"}],
     "checksum": "<hex SHA-256>"}

The checksum is over the RFC 8785 form of the document without it. It finds damage, not malice: whoever
can write the file can compute it. Against another root in this one's place there is the key-check value.

Under a passphrase this text is the plaintext of another document (`kms.keys.passphrase_document`).
"""

import hashlib
import hmac
import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import rfc8785

from kms.encoding import b64url, from_whole_seconds, whole_seconds
from kms.keys.root_messages import FOUNDING_EPOCH, MAX_EPOCHS, SECRET_LENGTH, Mode
from kms.strict_json import Fields, JsonValue, parse_object

_FORMAT: Final = "attested-kms/root-key"
_VERSION: Final = 1


class RootDocumentError(ValueError):
    """The text is not an intact root key document. Never repeats any of it."""


@dataclass(frozen=True, slots=True)
class RootDocument:
    """A root: its mark, when it was made, and each epoch's secret (32 bytes), oldest first."""

    mode: Mode
    created_at: datetime
    secrets: dict[int, bytes] = field(repr=False)

    def __post_init__(self) -> None:
        # Epochs are only ever added. A gap is a lost secret, and without the first one there is no
        # identity and no challenge key.
        if not self.secrets or list(self.secrets) != list(range(FOUNDING_EPOCH, len(self.secrets) + 1)):
            raise ValueError("the epochs must be 1, 2, … without a gap")
        if len(self.secrets) > MAX_EPOCHS:
            raise ValueError(f"more than {MAX_EPOCHS} epochs")
        for secret in self.secrets.values():
            if len(secret) != SECRET_LENGTH or not any(secret):
                raise ValueError(f"an epoch's secret must be {SECRET_LENGTH} bytes, not all zero")
        if self.created_at.tzinfo is None:
            raise ValueError("a time without a zone")


def write(document: RootDocument) -> bytes:
    """Give the text of the file. It holds the secrets, and cannot be overwritten in memory."""
    body: dict[str, JsonValue] = {
        "format": _FORMAT,
        "version": _VERSION,
        "mode": document.mode.value,
        "created_at": whole_seconds(document.created_at),
        "epochs": [{"epoch": epoch, "secret": b64url(secret)} for epoch, secret in document.secrets.items()],
    }
    whole = body | {"checksum": _checksum(body).hex()}
    return json.dumps(whole, indent=1).encode("ascii") + b"\n"


def read(content: bytes | bytearray) -> RootDocument:
    """Read and verify the text of a file, strictly.

    The caller can overwrite `content` afterwards; the JSON parser's texts and the secrets decoded from them
    are Python's, and stay in memory until it is used for something else.

    Raises:
        RootDocumentError: damaged, of an unknown format or version, or not as written by `write`.

    """
    try:
        return _read(content)
    except RootDocumentError:
        raise
    except ValueError as error:
        raise RootDocumentError(f"damaged: {error}") from None


def _read(content: bytes | bytearray) -> RootDocument:
    body = parse_object(content)
    fields = Fields(body, "document")
    if fields.text("format") != _FORMAT or fields.integer("version") != _VERSION:
        raise RootDocumentError("not a root key of a format that this version reads")
    checksum = fields.hex("checksum", bytes)
    del body["checksum"]
    if not hmac.compare_digest(checksum, _checksum(body)):
        raise RootDocumentError("damaged: the checksum does not fit")
    mode = fields.convert("mode", fields.text("mode"), Mode.parse)
    created_at = fields.convert("created_at", fields.text("created_at"), from_whole_seconds)
    epochs = [_epoch(Fields(item, "epoch")) for item in fields.array("epochs", at_most=MAX_EPOCHS)]
    fields.end()
    if len(dict(epochs)) != len(epochs):
        raise RootDocumentError("damaged: an epoch appears twice")
    return RootDocument(mode, created_at, dict(epochs))


def _epoch(fields: Fields) -> tuple[int, bytes]:
    epoch = fields.integer("epoch", minimum=FOUNDING_EPOCH)
    secret = fields.base64("secret", at_most=SECRET_LENGTH)
    fields.end()
    return epoch, secret


def _checksum(body: dict[str, JsonValue]) -> bytes:
    return hashlib.sha256(rfc8785.dumps(body)).digest()
