"""The statement that operators sign: which change of policy, after which, on which KMS, to what end.

Its bytes are the RFC 8785 form of ``{"intent","kms_identity","previous","revision","sequence"}``, so that
whoever signs can read what they sign. An Ed25519 signature is over ``label || 0x00 || bytes``; an SSH
signature (PROTOCOL.sshsig of OpenSSH) is over the bytes in the namespace `SSH_NAMESPACE`.
"""

from dataclasses import dataclass
from typing import Final

import rfc8785

from kms.encoding import b64url
from kms.labels import POLICY_STATEMENT
from kms.policy.history import Intent, PolicyChange
from kms.strict_json import JsonValue

SSH_NAMESPACE: Final = POLICY_STATEMENT


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What a signature covers. `kms_identity` is the KMS's public key, 32 bytes."""

    revision: str
    sequence: int
    previous: str | None
    kms_identity: bytes
    intent: Intent

    @classmethod
    def of(cls, change: PolicyChange, kms_identity: bytes) -> "Statement":
        """Give the statement of a change on this KMS."""
        return cls(
            revision=change.revision,
            sequence=change.sequence,
            previous=change.previous,
            kms_identity=kms_identity,
            intent=change.intent,
        )

    def to_json(self) -> dict[str, JsonValue]:
        """Give the JSON object."""
        return {
            "revision": self.revision,
            "sequence": self.sequence,
            "previous": self.previous,
            "kms_identity": b64url(self.kms_identity),
            "intent": self.intent.value,
        }

    @property
    def canonical(self) -> bytes:
        """The bytes that are signed, without the label."""
        return rfc8785.dumps(self.to_json())
