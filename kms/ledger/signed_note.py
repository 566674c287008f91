"""Signed notes with Ed25519: https://c2sp.org/signed-note, the form in which transparency logs sign texts.

A note is a text, an empty line, and a line for each signature: ``— name base64(key id || signature)``. The
text counts only as what one key signed; other signatures (witnesses') are passed over, as C2SP demands.
"""

from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from hashlib import sha256
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from kms.encoding import from_hex
from kms.errors import KmsError

MAX_NOTE_LENGTH: Final = (
    1 << 18
)  # characters; 16 signatures of 5 kB, which C2SP asks for, are under half of it
MAX_SIGNATURES: Final = 64
_ED25519: Final = b"\x01"  # the signature type of Ed25519 over the text
_KEY_ID_LENGTH: Final = 4
_PUBLIC_KEY_LENGTH: Final = 32  # RFC 8032 section 5.1.5
_DASH: Final = "\u2014 "  # an em dash, not a hyphen


class NoteInvalid(KmsError):
    """Not a signed note, or not one that the key signed."""

    code = "note-invalid"


def is_key_name(name: str) -> bool:
    """Say whether a key may have this name: not empty, no Unicode space, no ``+``, nothing unprintable."""
    return bool(name) and name.isprintable() and not any(each.isspace() or each == "+" for each in name)


def verifier_key(name: str, public_key: bytes) -> str:
    """Give ``name+key id+base64(0x01 || public key)``: all that it takes to verify notes."""
    key_id = _key_id(name, public_key).hex()
    return f"{name}+{key_id}+{to_base64(_ED25519 + public_key)}"


def sign_note(text: str, name: str, key: Ed25519PrivateKey) -> str:
    """Give the note over `text`, signed by `key` under the name.

    Raises:
        ValueError: a text that no note can have, or a name that no key can have.

    """
    if not is_key_name(name) or not _is_text(text):
        raise ValueError("not the text of a note, or not the name of a key")
    signature = key.sign(text.encode())
    identified = _key_id(name, key.public_key().public_bytes_raw()) + signature
    return f"{text}\n{_DASH}{name} {to_base64(identified)}\n"


def open_note(note: str, key: str) -> str:
    """Give the text of a note if the verifier key `key` signed it.

    Raises:
        NoteInvalid: the note or the key is not of its form, the key did not sign it, or did so twice.

    """
    name, key_id, public_key = _parse_verifier_key(key)
    if len(note) > MAX_NOTE_LENGTH:
        raise NoteInvalid(f"a note has at most {MAX_NOTE_LENGTH} characters")
    text, separator, lines = note.rpartition("\n\n")
    text += "\n"
    if not separator or not lines.endswith("\n") or not _is_text(text) or not _is_text(lines):
        raise NoteInvalid("not a text, an empty line and lines of signatures, without control characters")
    signatures = [_parse_signature(line) for line in lines[:-1].split("\n")]
    if len(signatures) > MAX_SIGNATURES:
        raise NoteInvalid(f"a note has at most {MAX_SIGNATURES} signatures")
    ours = [signature for signer, signer_id, signature in signatures if (signer, signer_id) == (name, key_id)]
    # A second one adds nothing, and would give one signed text many forms.
    if len(ours) != 1:
        raise NoteInvalid("the key signed the note not at all, or has two lines in it")
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(ours[0], text.encode())
    except (InvalidSignature, ValueError):
        raise NoteInvalid("the signature is not by the key over this text") from None
    return text


def to_base64(data: bytes) -> str:
    """Encode as standard base64 with padding (RFC 4648 section 4), the only one in notes."""
    return b64encode(data).decode("ascii")


def from_note_base64(text: str) -> bytes:
    """Decode what `to_base64` gives.

    Raises:
        NoteInvalid: another form, also of the same bytes.

    """
    try:
        data = b64decode(text, validate=True)
    except (Base64Error, ValueError):
        raise NoteInvalid("not standard base64") from None
    if to_base64(data) != text:
        raise NoteInvalid("not the canonical base64 of its bytes")
    return data


def _key_id(name: str, public_key: bytes) -> bytes:
    return sha256(name.encode() + b"\n" + _ED25519 + public_key).digest()[:_KEY_ID_LENGTH]


def _parse_verifier_key(key: str) -> tuple[str, bytes, bytes]:
    """Read a verifier key: name, key id, public key."""
    name, _, rest = key.partition("+")
    hexadecimal, _, encoded = rest.partition("+")
    try:
        key_id = from_hex(hexadecimal)
    except ValueError:
        raise NoteInvalid("not a verifier key: name+key id+base64") from None
    typed = from_note_base64(encoded)
    if not is_key_name(name) or len(typed) != 1 + _PUBLIC_KEY_LENGTH or typed[:1] != _ED25519:
        raise NoteInvalid("not a verifier key for Ed25519")
    if key_id != _key_id(name, typed[1:]):
        raise NoteInvalid("the id in the verifier key is not that of its name and public key")
    return name, key_id, typed[1:]


def _parse_signature(line: str) -> tuple[str, bytes, bytes]:
    """Read a line of a signature: name, key id, signature."""
    name, _, encoded = line.removeprefix(_DASH).partition(" ")
    if not line.startswith(_DASH) or not is_key_name(name):
        raise NoteInvalid("a line of a signature is an em dash, a key's name and base64, a space between")
    identified = from_note_base64(encoded)
    if len(identified) <= _KEY_ID_LENGTH:
        raise NoteInvalid("a line without a signature")
    return name, identified[:_KEY_ID_LENGTH], identified[_KEY_ID_LENGTH:]


def _is_text(text: str) -> bool:
    """Say whether lines are UTF-8 without control characters, each with its newline."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return text.endswith("\n") and all(each >= " " or each == "\n" for each in text)
