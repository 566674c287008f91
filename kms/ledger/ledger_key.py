"""The ledger's own key: how it is derived, and the KMS identity's word for it.

It signs checkpoints and nothing else, in a format of others (C2SP's signed notes) that has no room for our
labels: so it is not the identity. The identity says whose it is, under ``attested-kms/v1/ledger-key``: who
pins the identity need pin nothing else.
"""

from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Self

from kms.keys.identity import Identity
from kms.keys.root_messages import require_prf_output
from kms.keys.signed import Signed
from kms.labels import LEDGER_KEY, LEDGER_ORIGIN
from kms.ledger.checkpoint import CheckpointKey
from kms.strict_json import Fields, canonical_json, parse

_SEED_LENGTH: Final = 32
_NAMED_BY: Final = 16  # hex digits
_MAX_TEXT: Final = 512  # characters


def derive_checkpoint_key(output: bytes, founding_identity: bytes) -> CheckpointKey:
    """Make the key from the root PRF's 64 bytes for `root_messages.ledger_message`: its seed is the first 32.

    `founding_identity` is the public key (32 bytes) of the identity's first generation: it names the KMS in
    the ledger's origin, whichever generation answers guests.

    Raises:
        ValueError: not 64 bytes.

    """
    origin = f"{LEDGER_ORIGIN}/{sha256(founding_identity).hexdigest()[:_NAMED_BY]}"
    return CheckpointKey(require_prf_output(output)[:_SEED_LENGTH], origin)


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerKey:
    """The ledger's name (`origin`, the first line of its checkpoints) and key, as C2SP's verifier key."""

    origin: str
    key: str

    @classmethod
    def of(cls, key: CheckpointKey) -> Self:
        """Give the public half."""
        return cls(origin=key.origin, key=key.verifier_key)

    def signed_by(self, identity: Identity) -> Signed:
        """Give the identity's statement: the RFC 8785 form of ``{"key","origin"}``, signed."""
        text = canonical_json({"origin": self.origin, "key": self.key})
        return Signed.by(identity, LEDGER_KEY, text)

    @classmethod
    def verify(cls, signed: Signed) -> Self:
        """Read a statement; it says nothing about whose key `signed.identity` is: compare it with a pin.

        Raises:
            SignatureInvalid: it is not signed by the identity that it names.
            JsonError: the text is no such statement.

        """
        signed.verify(LEDGER_KEY)
        fields = Fields(parse(signed.payload), "the ledger's key")
        read = cls(origin=fields.text("origin", at_most=_MAX_TEXT), key=fields.text("key", at_most=_MAX_TEXT))
        fields.end()
        return read
