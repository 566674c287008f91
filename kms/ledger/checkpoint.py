"""Checkpoints: what the log says of its tree at a size, as a signed note (https://c2sp.org/tlog-checkpoint).

A log never signs two checkpoints of which one is not the beginning of the other: whoever holds an old one can
ask for the proof.
"""

import re
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typing_extensions import override

from kms.errors import KmsError
from kms.ledger.merkle import EMPTY_ROOT, HASH_LENGTH, MAX_SIZE
from kms.ledger.signed_note import (
    NoteInvalid,
    from_note_base64,
    is_key_name,
    open_note,
    sign_note,
    to_base64,
    verifier_key,
)

_SIZE: Final = re.compile(r"0|[1-9][0-9]{0,18}")


class CheckpointInvalid(KmsError):
    """Not a checkpoint of the log, or not one that its key signed."""

    code = "checkpoint-invalid"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A tree of the log `origin`: its size in leaves and its root (32 bytes)."""

    origin: str
    size: int
    root: bytes

    def __post_init__(self) -> None:
        if not is_key_name(self.origin):
            raise ValueError("an origin is printable, without spaces and plus")
        if not 0 <= self.size <= MAX_SIZE or len(self.root) != HASH_LENGTH:
            raise ValueError(f"a tree has 0 to {MAX_SIZE} leaves and a root of {HASH_LENGTH} bytes")
        if self.size == 0 and self.root != EMPTY_ROOT:
            raise ValueError("a tree without leaves has another root")

    @property
    def text(self) -> str:
        """The text that is signed: three lines."""
        return f"{self.origin}\n{self.size}\n{to_base64(self.root)}\n"


class CheckpointKey:
    """Signs the checkpoints of one log. `verifier_key` is what others verify them with."""

    __slots__ = ("_key", "origin", "verifier_key")

    def __init__(self, seed: bytes, origin: str) -> None:
        """Take an Ed25519 seed (32 bytes) and the log's origin, which is also the key's name.

        Raises:
            ValueError: another length, or an origin that cannot be a key's name.

        """
        if not is_key_name(origin):
            raise ValueError("an origin is printable, without spaces and plus")
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.origin = origin
        self.verifier_key = verifier_key(origin, self._key.public_key().public_bytes_raw())

    def sign(self, checkpoint: Checkpoint) -> str:
        """Give the signed note.

        Raises:
            ValueError: a checkpoint of another log.

        """
        if checkpoint.origin != self.origin:
            raise ValueError("a checkpoint of another origin")
        return sign_note(checkpoint.text, self.origin, self._key)

    @override
    def __repr__(self) -> str:
        return f"CheckpointKey({self.verifier_key})"


def open_checkpoint(note: str, key: str) -> Checkpoint:
    """Give the checkpoint that the verifier key `key` signed; its origin is the key's name.

    Signatures of others (witnesses') are passed over. Extension lines are refused: this log signs none.

    Raises:
        CheckpointInvalid: it is not that.

    """
    try:
        text = open_note(note, key)
        origin, size, root, *rest = text.split("\n")
        if rest != [""] or not _SIZE.fullmatch(size):
            raise CheckpointInvalid("a checkpoint is an origin, a size without leading zeros, and a root")
        checkpoint = Checkpoint(origin=origin, size=int(size), root=from_note_base64(root))
    except NoteInvalid as error:
        raise CheckpointInvalid(error.detail) from None
    except ValueError:
        raise CheckpointInvalid("the note is not a checkpoint") from None
    if origin != key.partition("+")[0]:
        raise CheckpointInvalid("a checkpoint of another origin")
    return checkpoint
