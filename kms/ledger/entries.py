"""One decision as it is written down for ever.

An entry is the RFC 8785 form of a JSON object, so that its bytes, and their hash, are the same whoever
writes them. Its digest is salted: a digest may be published (a receipt, later a transparency log) without
letting anybody guess an entry from it.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from hashlib import sha256
from typing import Final

import rfc8785

from kms.boot_info import BootInfo
from kms.checks import Check
from kms.policy.decision import Ask
from kms.strict_json import JsonValue

SALT_LENGTH: Final = 16
RELEASED: Final = "released"
REFUSED: Final = "refused"


# Not slotted: its bytes are made once, and `cached_property` needs a place for them.
@dataclass(frozen=True, kw_only=True)
class DecisionEntry:
    """A release, or a refusal with its reasons.

    `release_id` is also the request id that the guest was told. `challenge` is the decoded challenge that
    this decision spends, None when the evidence was not authentic (then none is spent). `policy_revision`
    is the revision that judged, None when no policy was asked. `epochs` are those of the released keys.
    """

    release_id: str
    decided_at: datetime
    outcome: str
    code: str | None
    reasons: tuple[str, ...]
    checks: tuple[Check, ...]
    boot_info: BootInfo | None
    ask: Ask
    epochs: tuple[int, ...]
    policy_revision: str | None
    challenge: bytes | None
    client: str
    development: bool
    salt: bytes

    @cached_property
    def canonical(self) -> bytes:
        """The RFC 8785 bytes of the entry. They hold no secret."""
        keys: list[JsonValue] = [
            {"name": str(key.name), "scope": key.scope.value, "epoch": key.epoch} for key in self.ask.keys
        ]
        checks: list[JsonValue] = [
            {"name": check.name, "passed": check.passed, "detail": check.detail, "reason": check.reason}
            for check in self.checks
        ]
        entry: dict[str, JsonValue] = {
            "kind": "decision",
            "release_id": self.release_id,
            "decided_at": timestamp(self.decided_at),
            "outcome": self.outcome,
            "code": self.code,
            "reasons": list(self.reasons),
            "checks": checks,
            "boot_info": None if self.boot_info is None else self.boot_info.to_json(),
            "keys": keys,
            "epochs": list(self.epochs),
            "policy_revision": self.policy_revision,
            "challenge": None if self.challenge is None else sha256(self.challenge).hexdigest(),
            "client": self.client,
            "development": self.development,
        }
        return rfc8785.dumps(entry)


def entry_digest(salt: bytes, canonical: bytes) -> bytes:
    """Give SHA-256(salt || entry): 32 bytes; the salt has a fixed length of 16."""
    return sha256(salt + canonical).digest()


def timestamp(moment: datetime) -> str:
    """Give RFC 3339 in UTC with microseconds: one form, so that entries sort and hash alike."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
