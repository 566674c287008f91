"""A recorded decision, read back: for explaining it, and for judging the guest again by another policy."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Self

from kms.boot_info import BootInfo
from kms.boot_info_reader import read_boot_info
from kms.checks import Check
from kms.errors import KmsError
from kms.evidence.app_document import AppIdentity
from kms.identifiers import AppId, ComposeHash, InstanceId
from kms.keys.certificates import Fingerprint, IssuedCertificate, SerialNumber
from kms.keys.identity import PUBLIC_KEY_LENGTH
from kms.keys.names import KeyRequest
from kms.keys.p256 import POINT_LENGTH
from kms.ledger.entries import DECISION, read_timestamp
from kms.measurement.images import Binding
from kms.policy.decision import AppClaim, Ask
from kms.strict_json import MAX_VALUES, Fields, JsonValue


class RecordDamaged(KmsError):
    """What is recorded is not an entry as a release writes it: somebody changed it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedDecision:
    """What a `kms.ledger.entries.DecisionEntry` wrote. `challenge` is the SHA-256 (hex) of what it spent."""

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
    challenge: str | None
    client: str
    development: bool
    certificates: tuple[IssuedCertificate, ...]
    key_epochs: tuple[int | None, ...]

    @classmethod
    def from_json(cls, value: JsonValue) -> Self:
        """Read an entry.

        Raises:
            RecordDamaged: a member is missing, unknown, or not as it is written.

        """
        fields = Fields(value, "entry", RecordDamaged)
        if fields.text("kind") != DECISION:
            fields.fail("`kind` is not that of a decision")
        keys = fields.array("keys", at_most=MAX_VALUES)
        checks = fields.array("checks", at_most=MAX_VALUES)
        epochs, key_epochs = read_epochs(fields, len(keys))
        decision = cls(
            release_id=fields.text("release_id"),
            decided_at=fields.convert("decided_at", fields.text("decided_at"), read_timestamp),
            outcome=fields.text("outcome"),
            code=fields.nullable("code", fields.text),
            reasons=fields.texts("reasons", at_most=MAX_VALUES),
            checks=tuple(_check(Fields(each, "entry.checks", RecordDamaged)) for each in checks),
            boot_info=fields.nullable(
                "boot_info", lambda name: read_boot_info(fields.take(name), RecordDamaged)
            ),
            document=fields.nullable("document", lambda name: _document(fields.object(name))),
            ask=Ask(
                keys=tuple(_key(Fields(each, "entry.keys", RecordDamaged)) for each in keys),
                app=fields.nullable("claim", lambda name: _claim(fields.object(name))),
            ),
            epochs=epochs,
            policy_revision=fields.nullable("policy_revision", fields.text),
            challenge=fields.nullable("challenge", fields.text),
            client=fields.text("client"),
            development=fields.boolean("development"),
            certificates=_certificates(fields) if fields.has("certificates") else (),
            key_epochs=key_epochs,
        )
        fields.end()
        return decision


def read_epochs(fields: Fields, keys: int) -> tuple[tuple[int, ...], tuple[int | None, ...]]:
    """Read of an entry with so many keys the epochs, and that of each key; () where that was not recorded.

    `fields` are the entry's, with `RecordDamaged` as their error.
    """
    epochs = tuple(_epoch(fields, each) for each in fields.array("epochs", at_most=MAX_VALUES))
    if not fields.has("key_epochs"):
        return epochs, ()
    of_keys = tuple(
        None if each is None else _epoch(fields, each)
        for each in fields.array("key_epochs", at_least=1, at_most=MAX_VALUES)
    )
    if len(of_keys) != keys or epochs != tuple(sorted({each for each in of_keys if each is not None})):
        fields.fail("`key_epochs` are not the epochs of its keys")
    return epochs, of_keys


def _epoch(fields: Fields, value: JsonValue) -> int:
    return value if type(value) is int and value > 0 else fields.fail("epochs must be integers from 1 on")


def _check(fields: Fields) -> Check:
    check = Check(
        name=fields.text("name"),
        passed=fields.boolean("passed"),
        detail=fields.text("detail"),
        reason=fields.text("reason"),
    )
    fields.end()
    return check


def _document(fields: Fields) -> AppIdentity:
    document = AppIdentity(
        app_id=fields.hex("app_id", AppId),
        compose_hash=fields.hex("compose_hash", ComposeHash),
        instance_id=fields.nullable("instance_id", lambda name: fields.hex(name, InstanceId)),
        binding=fields.convert("binding", fields.text("binding"), Binding),
        kms_identity=fields.nullable(
            "kms_identity", lambda name: fields.base64(name, at_most=PUBLIC_KEY_LENGTH)
        ),
    )
    fields.end()
    return document


def _claim(fields: Fields) -> AppClaim:
    claim = AppClaim(
        app_id=fields.nullable("app_id", lambda name: fields.hex(name, AppId)),
        compose_hash=fields.nullable("compose_hash", lambda name: fields.hex(name, ComposeHash)),
        instance_id=fields.nullable("instance_id", lambda name: fields.hex(name, InstanceId)),
    )
    fields.end()
    return claim


def _key(fields: Fields) -> KeyRequest:
    name, scope = fields.text("name"), fields.text("scope")
    epoch = fields.nullable("epoch", lambda member: fields.integer(member, minimum=1))
    own = fields.base64("certificate_for", at_most=POINT_LENGTH) if fields.has("certificate_for") else None
    if own is not None and len(own) != POINT_LENGTH:
        fields.fail(f"`certificate_for` must have {POINT_LENGTH} bytes")
    fields.end()
    return fields.convert(
        "name", name, lambda text: replace(KeyRequest.parse(text, scope, epoch), certificate_for=own)
    )


def _certificates(fields: Fields) -> tuple[IssuedCertificate, ...]:
    entries = fields.array("certificates", at_least=1, at_most=MAX_VALUES)
    return tuple(_certificate(Fields(each, "entry.certificates", RecordDamaged)) for each in entries)


def _certificate(fields: Fields) -> IssuedCertificate:
    certificate = IssuedCertificate(
        fingerprint=fields.hex("sha256", Fingerprint), serial=fields.hex("serial", SerialNumber)
    )
    fields.end()
    return certificate
