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

from kms.boot_info import BootInfo
from kms.checks import Check
from kms.encoding import b64url
from kms.evidence.app_document import AppIdentity
from kms.keys.certificates import IssuedCertificate
from kms.keys.names import KeyRequest
from kms.policy.decision import AppClaim, Ask
from kms.strict_json import JsonValue, canonical_json

SALT_LENGTH: Final = 16
RELEASED: Final = "released"
REFUSED: Final = "refused"
DECISION: Final = "decision"


# Not slotted: its bytes are made once, and `cached_property` needs a place for them.
@dataclass(frozen=True, kw_only=True)
class DecisionEntry:
    """A release, or a refusal with its reasons.

    `release_id` is also the request id that the guest was told. `challenge` is the decoded challenge that
    this decision spends, None when the evidence was not authentic (then none is spent). `policy_revision`
    is the revision that judged, None when no policy was asked. `epochs` are those of the released keys.
    `document` is what an app document stated whose bytes the report's HOST_DATA commits to; like the claim
    in `ask` it is needed to judge the guest again, and proves nothing where `boot_info` is None.
    `certificates` are those that were issued, in the order of their keys. `key_epochs` says of which epoch
    each key of `ask` was released, None for one that has none (dstack's); empty where none was.
    """

    release_id: str
    decided_at: datetime
    outcome: str
    code: str | None
    reasons: tuple[str, ...]
    checks: tuple[Check, ...]
    boot_info: BootInfo | None
    document: AppIdentity | None
    ask: Ask
    epochs: tuple[int, ...]
    policy_revision: str | None
    challenge: bytes | None
    client: str
    development: bool
    salt: bytes
    certificates: tuple[IssuedCertificate, ...] = ()
    key_epochs: tuple[int | None, ...] = ()

    @cached_property
    def canonical(self) -> bytes:
        """The RFC 8785 bytes of the entry. They hold no secret."""
        checks: list[JsonValue] = [
            {"name": check.name, "passed": check.passed, "detail": check.detail, "reason": check.reason}
            for check in self.checks
        ]
        entry: dict[str, JsonValue] = {
            "kind": DECISION,
            "release_id": self.release_id,
            "decided_at": timestamp(self.decided_at),
            "outcome": self.outcome,
            "code": self.code,
            "reasons": list(self.reasons),
            "checks": checks,
            "boot_info": None if self.boot_info is None else self.boot_info.to_json(),
            "document": _document_json(self.document),
            "claim": _claim_json(self.ask.app),
            "keys": [_key_json(key) for key in self.ask.keys],
            "epochs": list(self.epochs),
            "policy_revision": self.policy_revision,
            "challenge": None if self.challenge is None else sha256(self.challenge).hexdigest(),
            "client": self.client,
            "development": self.development,
        }
        # Absent where there are none, as in every entry of before there were any: its bytes stay as they are.
        if self.key_epochs:
            entry["key_epochs"] = list(self.key_epochs)
        if self.certificates:
            entry["certificates"] = [
                {"sha256": each.fingerprint.hex(), "serial": each.serial.hex()} for each in self.certificates
            ]
        return canonical_json(entry)


def entry_digest(salt: bytes, canonical: bytes) -> bytes:
    """Give SHA-256(salt || entry): 32 bytes; the salt has a fixed length of 16."""
    return sha256(salt + canonical).digest()


def timestamp(moment: datetime) -> str:
    """Give RFC 3339 in UTC with microseconds: one form, so that entries sort and hash alike."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def read_timestamp(text: str) -> datetime:
    """Read what `timestamp` gives. Raises ValueError for anything else, also for other forms of a time."""
    moment = datetime.fromisoformat(text)
    if timestamp(moment) != text:
        raise ValueError("not a time as it is recorded")
    return moment


def _key_json(key: KeyRequest) -> JsonValue:
    written: dict[str, JsonValue] = {"name": str(key.name), "scope": key.scope.value, "epoch": key.epoch}
    if key.certificate_for is not None:
        written["certificate_for"] = b64url(key.certificate_for)
    return written


def _document_json(document: AppIdentity | None) -> JsonValue:
    if document is None:
        return None
    return {
        "app_id": document.app_id.hex(),
        "compose_hash": document.compose_hash.hex(),
        "instance_id": _hex(document.instance_id),
        "binding": document.binding.value,
        "kms_identity": None if document.kms_identity is None else b64url(document.kms_identity),
    }


def _claim_json(claim: AppClaim | None) -> JsonValue:
    if claim is None:
        return None
    return {
        "app_id": _hex(claim.app_id),
        "compose_hash": _hex(claim.compose_hash),
        "instance_id": _hex(claim.instance_id),
    }


def _hex(value: bytes | None) -> str | None:
    return None if value is None else value.hex()
