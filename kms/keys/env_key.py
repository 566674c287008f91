"""An app's published env key: what the KMS identity signs, and what whoever seals to it checks.

The text ``{"app_id","epoch","algorithm":"x25519","public_key","issued_at"}`` is signed under the label
``attested-kms/v1/env-key``. It is dated, because the network between is nobody's: with an answer of last year
secrets would be sealed to an epoch that was retired for a reason.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from kms.encoding import b64url, from_whole_seconds, whole_seconds
from kms.errors import KmsError
from kms.identifiers import AppId
from kms.keys.identity import SignatureInvalid
from kms.keys.names import Algorithm
from kms.keys.signed import Signed, read_public_key
from kms.labels import ENV_KEY
from kms.strict_json import Fields, JsonError, compact_json, parse

LONGEST_AGE: Final = timedelta(minutes=5)
CLOCK_SKEW: Final = timedelta(minutes=1)  # by which the KMS's clock may be ahead


class EnvKeyRejected(KmsError):
    """Nothing may be sealed to this key.

    `reason`: ``signature-invalid``, ``env-key-malformed``, ``app-mismatch``, ``epoch-mismatch``,
    ``env-key-outdated`` or ``env-key-from-the-future``.
    """

    code = "env-key-rejected"


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvKey:
    """An app's env public key (32 bytes, X25519) in an epoch, and the identity that vouched for it."""

    app_id: AppId
    epoch: int
    public_key: bytes
    identity: bytes


def env_key_text(app_id: AppId, epoch: int, public_key: bytes, issued_at: datetime) -> bytes:
    """Give the JSON text that the KMS identity signs."""
    text = {
        "app_id": app_id.hex(),
        "epoch": epoch,
        "algorithm": Algorithm.X25519.value,
        "public_key": b64url(public_key),
        "issued_at": whole_seconds(issued_at),
    }
    return compact_json(text)


def read_env_key(signed: Signed, *, app_id: AppId, epoch: int | None, now: datetime) -> EnvKey:
    """Verify an answer to "the env key of this app, in this epoch (None: the one it uses)".

    Whether `signed.identity` is the KMS that was meant is the caller's question.

    Raises:
        EnvKeyRejected: with its reason.

    """
    try:
        signed.verify(ENV_KEY)
        fields = Fields(parse(signed.payload), "env-key")
        read = EnvKey(
            app_id=fields.hex("app_id", AppId),
            epoch=fields.integer("epoch", minimum=1),
            public_key=read_public_key(fields, "public_key"),
            identity=signed.identity,
        )
        if fields.text("algorithm", at_most=64) != Algorithm.X25519:
            fields.fail(f"`algorithm` must be {Algorithm.X25519}")
        issued_at = fields.convert("issued_at", fields.text("issued_at", at_most=32), from_whole_seconds)
        fields.end()
    except SignatureInvalid as error:
        raise EnvKeyRejected(error.detail, reason=error.reason) from None
    except JsonError as error:
        raise EnvKeyRejected(str(error), reason="env-key-malformed") from None
    if read.app_id != app_id:
        raise EnvKeyRejected(f"the key of another app, {read.app_id.hex()}", reason="app-mismatch")
    if epoch not in {None, read.epoch}:
        raise EnvKeyRejected(f"the key of another epoch, {read.epoch}", reason="epoch-mismatch")
    if issued_at < now - LONGEST_AGE:
        raise EnvKeyRejected(
            f"issued at {whole_seconds(issued_at)}: an old answer, or this machine's clock is wrong",
            reason="env-key-outdated",
        )
    if issued_at > now + CLOCK_SKEW:
        raise EnvKeyRejected(
            f"issued at {whole_seconds(issued_at)}: this machine's clock, or the server's, is wrong",
            reason="env-key-from-the-future",
        )
    return read
