"""History: every change of the revision in force, in order, each with who made it, why, and who signed.

A revision is a set of documents and says nothing of time; a change says when one came into force. Sequence
numbers begin at 1 and only grow, so that a rollback is a new change and never an old one again.
"""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from typing_extensions import override


class Intent(StrEnum):
    """What a change does to what guests may have. Whatever does not only narrow, widens."""

    WIDEN = "widen"
    NARROW = "narrow"


class ChangeKind(StrEnum):
    """What was asked for."""

    APPLY = "apply"
    FOLDER = "folder"
    ROLLBACK = "rollback"
    REVOKE = "revoke"


class SignatureFormat(StrEnum):
    """How a signature was made."""

    ED25519 = "ed25519"
    SSHSIG = "sshsig"


@dataclass(frozen=True, slots=True)
class PolicySignature:
    """A signature over a statement: the raw Ed25519 public key (32 bytes) that it claims, and its bytes.

    `signature` is 64 bytes for `ED25519`, and the binary SSHSIG blob for `SSHSIG`. Nothing is verified yet.
    """

    format: SignatureFormat
    public_key: bytes
    signature: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Head:
    """The revision in force and the sequence number of the change that put it there."""

    sequence: int
    revision: str

    @override
    def __str__(self) -> str:
        return f"{self.revision} (change {self.sequence})"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyChange:
    """One change: `revision` took the place of `previous` (None for the first).

    `author` and `message` are for people and at most 256 and 4096 characters. `folder` is the digest of the
    watched folder when it was applied last. `signatures` are over the change's statement
    (`kms.policy.statement`).
    """

    sequence: int
    revision: str
    previous: str | None
    intent: Intent
    kind: ChangeKind
    author: str
    message: str
    made_at: datetime
    folder: str | None = None
    signatures: tuple[PolicySignature, ...] = ()

    @property
    def head(self) -> Head:
        """The state that this change leads to."""
        return Head(self.sequence, self.revision)
