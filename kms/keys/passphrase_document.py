"""A document with secrets under a passphrase: a root key file, or the file of a recovery key.

::

    {"format": "attested-kms/root-key-encrypted", "version": 1,    (each kind of file has its own name)
     "kdf": {"name": "argon2id", "memory_kib": 65536, "iterations": 3, "lanes": 4,
             "salt": "<base64url, 16 bytes>"},
     "nonce": "<base64url, 12 bytes>", "ciphertext": "<base64url>"}

The key (32 bytes) is Argon2id (RFC 9106, version 0x13) of the passphrase's bytes; the ciphertext is
AES-256-GCM, its tag last, of the text that the file would be without a passphrase. The associated data is the
RFC 8785 form of this document without `ciphertext`: the format's name is the label, and no parameter can be
changed. Salt and nonce are new in each file that is written.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Final

import rfc8785
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from kms.encoding import b64url
from kms.keys.wiping import wipe
from kms.strict_json import Fields, JsonError, JsonValue, parse_object

SHORTEST_PASSPHRASE: Final = 12  # bytes, when encrypting

_VERSION: Final = 1
_KDF: Final = "argon2id"
_KEY_LENGTH: Final = 32
_SALT_LENGTH: Final = 16  # RFC 9106 section 3.1: recommended for password hashing
_NONCE_LENGTH: Final = 12  # NIST SP 800-38D section 5.2.1.1
_TAG_LENGTH: Final = 16
_AT_MOST: Final = 1 << 20  # bytes of ciphertext

# RFC 9106 section 4, the second recommended option. Nobody ever wrote less.
_MEMORY: Final = 64 << 10  # KiB
_ITERATIONS: Final = 3
_LANES: Final = 4

# A file must not make us take gigabytes, or minutes, before we know whether it is ours.
_MOST_MEMORY: Final = 256 << 10  # KiB
_MOST_ITERATIONS: Final = 10
_MOST_LANES: Final = 16

# OpenSSL gives the lanes of a derivation to threads of one pool for the whole process: of two that begin at
# once, each waits for threads that the other holds, for ever (seen with OpenSSL 4.0.3 and four lanes).
_ONE_AT_A_TIME: Final = Lock()


class PassphraseDocumentError(ValueError):
    """Not a document of this format, or its parameters are out of bounds; the message says which."""


class PassphraseTooShort(ValueError):
    """The passphrase has fewer than `SHORTEST_PASSPHRASE` bytes."""


class NotOpened(ValueError):
    """The passphrase is another one, or the file is damaged: nobody can tell which."""


@dataclass(frozen=True, slots=True)
class _Argon2:
    memory: int  # KiB
    iterations: int
    lanes: int
    salt: bytes

    def cipher(self, passphrase: bytes) -> AESGCM:
        """Derive the key, some tenths of a second, and give its cipher, which keeps a copy out of reach."""
        key = bytearray(_KEY_LENGTH)
        argon2 = Argon2id(
            salt=self.salt,
            length=_KEY_LENGTH,
            iterations=self.iterations,
            lanes=self.lanes,
            memory_cost=self.memory,
        )
        try:
            with _ONE_AT_A_TIME:
                argon2.derive_into(passphrase, key)
            return AESGCM(key)
        except MemoryError:
            raise PassphraseDocumentError(f"there are no {self.memory} KiB to derive its key with") from None
        finally:
            wipe(key)


def is_encrypted(content: bytes | bytearray, form: str) -> bool:
    """Say whether a text claims to be such a document, of the format with this name."""
    try:
        return parse_object(content).get("format") == form
    except JsonError:
        return False


def encrypt(plaintext: bytes, passphrase: bytes, form: str, *, random: Callable[[int], bytes]) -> bytes:
    """Give the text of a file of the format `form` that `passphrase` opens.

    `random` gives that many bytes of the system's randomness.

    Raises:
        PassphraseTooShort: it could be guessed.

    """
    if len(passphrase) < SHORTEST_PASSPHRASE:
        raise PassphraseTooShort
    argon2 = _Argon2(_MEMORY, _ITERATIONS, _LANES, random(_SALT_LENGTH))
    nonce = random(_NONCE_LENGTH)
    header: dict[str, JsonValue] = {
        "format": form,
        "version": _VERSION,
        "kdf": {
            "name": _KDF,
            "memory_kib": argon2.memory,
            "iterations": argon2.iterations,
            "lanes": argon2.lanes,
            "salt": b64url(argon2.salt),
        },
        "nonce": b64url(nonce),
    }
    ciphertext = argon2.cipher(passphrase).encrypt(nonce, plaintext, rfc8785.dumps(header))
    return json.dumps(header | {"ciphertext": b64url(ciphertext)}, indent=1).encode("ascii") + b"\n"


def decrypt(content: bytes | bytearray, passphrase: bytes, form: str) -> bytearray:
    """Give the plaintext, which the caller overwrites when it was read.

    Raises:
        NotOpened: another passphrase, or damaged.
        PassphraseDocumentError: not a document of the format `form`, or its parameters are out of bounds.

    """
    try:
        header = parse_object(content)
        fields = Fields(header, "document")
        if fields.text("format") != form or fields.integer("version") != _VERSION:
            raise PassphraseDocumentError("not encrypted in a format and version that this version reads")
        argon2 = _argon2(fields.object("kdf"))
        nonce = _exactly(fields, "nonce", _NONCE_LENGTH)
        ciphertext = fields.base64("ciphertext", at_most=_AT_MOST)
        fields.end()
        if len(ciphertext) < _TAG_LENGTH:
            raise PassphraseDocumentError("damaged: the ciphertext is too short")
    except JsonError as error:
        raise PassphraseDocumentError(f"damaged: {error}") from None
    del header["ciphertext"]
    plaintext = bytearray(len(ciphertext) - _TAG_LENGTH)
    try:
        argon2.cipher(passphrase).decrypt_into(nonce, ciphertext, rfc8785.dumps(header), plaintext)
    except InvalidTag:
        wipe(plaintext)
        raise NotOpened from None
    return plaintext


def _argon2(fields: Fields) -> _Argon2:
    if fields.text("name") != _KDF:
        fields.fail(f"`name` must be {_KDF}")
    argon2 = _Argon2(
        fields.integer("memory_kib", minimum=_MEMORY, maximum=_MOST_MEMORY),
        fields.integer("iterations", minimum=_ITERATIONS, maximum=_MOST_ITERATIONS),
        fields.integer("lanes", minimum=_LANES, maximum=_MOST_LANES),
        _exactly(fields, "salt", _SALT_LENGTH),
    )
    fields.end()
    return argon2


def _exactly(fields: Fields, name: str, length: int) -> bytes:
    data = fields.base64(name, at_most=length)
    if len(data) != length:
        fields.fail(f"`{name}` must have {length} bytes")
    return data
