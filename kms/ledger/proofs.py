"""The proof that an entry is in the ledger, and the receipt that promised it would be.

A guest gets its receipt with its keys, at once. The proof exists from the next checkpoint on; it needs no
entry, only the digest that the receipt names, so that anybody may have it.
"""

from dataclasses import dataclass
from typing import Final, Self

from kms.encoding import b64url, from_base64
from kms.errors import KmsError
from kms.keys.identity import SignatureInvalid
from kms.keys.signed import Signed
from kms.labels import RECEIPT
from kms.ledger.checkpoint import Checkpoint, CheckpointInvalid, open_checkpoint
from kms.ledger.entries import SALT_LENGTH
from kms.ledger.merkle import HASH_LENGTH, leaf_hash, verify_inclusion
from kms.strict_json import Fields, JsonError, JsonValue, parse

_MOST_HASHES: Final = 64  # of a path in a tree of 2^63 leaves
_MAX_ID: Final = 64  # characters
_MAX_NOTE: Final = 64 << 10


class ProofInvalid(KmsError):
    """A proof or receipt that proves nothing. `reason` says why.

    ``checkpoint-invalid`` (not signed by the ledger's key), ``proof-malformed``, ``size-differs`` (a proof
    for another tree than the checkpoint's), ``not-included``, ``receipt-malformed``, ``receipt-signature``,
    ``receipt-identity`` (of another KMS), ``receipt-differs`` (of another release, or of another entry),
    ``entry-removed`` (the tree has the entry, and the record has not).
    """

    code = "proof-invalid"


@dataclass(frozen=True, slots=True, kw_only=True)
class InclusionProof:
    """That the entry with this digest (32 bytes) is leaf `index` of the tree of the signed `checkpoint`.

    `hashes` are those of RFC 6962 section 2.1.1, from the leaf's sibling up; 32 bytes each.
    """

    release_id: str
    digest: bytes
    index: int
    size: int
    hashes: tuple[bytes, ...]
    checkpoint: str

    def to_json(self) -> dict[str, JsonValue]:
        """Give the JSON object that `/v1/ledger/proofs` answers."""
        return {
            "release_id": self.release_id,
            "entry_sha256": self.digest.hex(),
            "index": self.index,
            "size": self.size,
            "inclusion": [b64url(each) for each in self.hashes],
            "checkpoint": self.checkpoint,
        }

    @classmethod
    def read(cls, value: JsonValue) -> Self:
        """Read the JSON object, nothing verified. Raises `ProofInvalid`."""
        try:
            fields = Fields(value, "proof")
            hashes = fields.texts("inclusion", at_most=_MOST_HASHES)
            read = cls(
                release_id=fields.text("release_id", at_most=_MAX_ID),
                digest=fields.hex("entry_sha256", _hash),
                index=fields.integer("index"),
                size=fields.integer("size", minimum=1),
                hashes=tuple(fields.convert("inclusion", each, _hash_of_text) for each in hashes),
                checkpoint=fields.text("checkpoint", at_most=_MAX_NOTE),
            )
            fields.end()
        except JsonError as error:
            raise ProofInvalid(str(error), reason="proof-malformed") from None
        return read

    def verify(self, verifier_key: str) -> Checkpoint:
        """Verify the checkpoint by the ledger's key, and the proof by the checkpoint; give the checkpoint.

        Raises:
            ProofInvalid: it proves nothing.

        """
        try:
            checkpoint = open_checkpoint(self.checkpoint, verifier_key)
        except CheckpointInvalid as error:
            raise ProofInvalid(error.detail, reason="checkpoint-invalid") from None
        if checkpoint.size != self.size:
            raise ProofInvalid(
                f"the proof is for a tree of {self.size} entries, the checkpoint of {checkpoint.size}",
                reason="size-differs",
            )
        if not verify_inclusion(leaf_hash(self.digest), self.index, self.size, self.hashes, checkpoint.root):
            raise ProofInvalid(
                f"the entry is not number {self.index} of the tree of the checkpoint", reason="not-included"
            )
        return checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a KMS promised a guest: that an entry with this digest (32 bytes) is in its record.

    `identity` (32 bytes) is whose promise it is; `salt` has 16 bytes.
    """

    release_id: str
    decided_at: str
    digest: bytes
    salt: bytes
    identity: bytes

    @classmethod
    def verify(cls, value: JsonValue, *, pinned: bytes | None) -> Self:
        """Read a receipt as the guest got it, and verify its signature.

        `pinned` is the KMS identity that it must be of; None takes anybody's promise for their own.

        Raises:
            ProofInvalid: it is none.

        """
        try:
            signed = Signed.read(Fields(value, "receipt"))
            signed.verify(RECEIPT)
            fields = Fields(parse(signed.payload), "receipt")
            receipt = cls(
                release_id=fields.text("release_id", at_most=_MAX_ID),
                decided_at=fields.text("decided_at", at_most=32),
                digest=fields.hex("entry_sha256", _hash),
                salt=fields.convert("salt", fields.text("salt", at_most=_MAX_ID), _salt_of_text),
                identity=signed.identity,
            )
            fields.end()
        except SignatureInvalid as error:
            raise ProofInvalid(error.detail, reason="receipt-signature") from None
        except JsonError as error:
            raise ProofInvalid(str(error), reason="receipt-malformed") from None
        if pinned is not None and receipt.identity != pinned:
            raise ProofInvalid("the receipt is another KMS's promise", reason="receipt-identity")
        return receipt

    def require_kept_by(self, proof: InclusionProof) -> None:
        """Compare what was promised with what is proven.

        Raises:
            ProofInvalid: reason ``receipt-differs``.

        """
        if proof.release_id != self.release_id:
            raise ProofInvalid("the proof is for another release than the receipt", reason="receipt-differs")
        if proof.digest != self.digest:
            raise ProofInvalid(
                "the entry in the ledger is not the one that the receipt promised", reason="receipt-differs"
            )


def _hash(value: bytes) -> bytes:
    if len(value) != HASH_LENGTH:
        raise ValueError(f"must have {HASH_LENGTH} bytes")
    return value


def _hash_of_text(text: str) -> bytes:
    return _hash(from_base64(text))


def _salt_of_text(text: str) -> bytes:
    salt = from_base64(text)
    if len(salt) != SALT_LENGTH:
        raise ValueError(f"must have {SALT_LENGTH} bytes")
    return salt
