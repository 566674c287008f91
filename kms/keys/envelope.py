"""The signed envelope that `sealed` opens to, from both sides.

``{"payload","signature","identity"}`` around ``{"release_id","request_sha512","app_id","keys":[…]}``. Without
the signature anyone could seal to a guest: its public key is no secret, and a guest that takes a disk key
from an impostor writes its data under a key that the impostor knows (field lesson 29).
"""

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from kms.errors import KmsError
from kms.identifiers import AppId
from kms.keys.certificates import check_chain
from kms.keys.derivation import signing_statement
from kms.keys.identity import Identity, SignatureInvalid
from kms.keys.names import Algorithm
from kms.keys.released import ReleasedKey
from kms.keys.sealing import REQUEST_DIGEST_LENGTH
from kms.keys.signed import Signed
from kms.labels import PAYLOAD, SIGNING_STATEMENT
from kms.strict_json import Fields, JsonError, JsonValue, compact_json, parse

MAX_KEYS: Final = 32  # protocol, section 1


class EnvelopeRejected(KmsError):
    """The guest must not use what it opened. `reason` says why.

    ``envelope-malformed``, ``identity-mismatch`` (not the pinned KMS), ``signature-invalid``,
    ``request-mismatch`` (the answer to another request), ``statement-invalid`` (a signing key that the
    same identity did not vouch for) or ``certificate-invalid`` (certificates that are not for this key, app
    and epoch).
    """

    code = "envelope-rejected"


@dataclass(frozen=True, slots=True)
class Payload:
    """What the KMS released, verified. `identity` is the 32-byte key that signed it.

    `receipt` came beside it, and is not verified (`kms.ledger.proofs.Receipt`); None where none came.
    """

    release_id: str
    app_id: AppId
    keys: tuple[ReleasedKey, ...]
    identity: bytes
    receipt: JsonValue = None


def build_envelope(
    identity: Identity,
    *,
    release_id: str,
    request_sha512: bytes,
    app_id: AppId,
    keys: Sequence[ReleasedKey],
) -> bytes:
    """Give the JSON text of the envelope, to be sealed. It holds the secrets.

    `request_sha512` is the 64-byte digest of the exact request bytes. The keys keep their order.

    Raises:
        ValueError: a digest of another length.

    """
    if len(request_sha512) != REQUEST_DIGEST_LENGTH:
        raise ValueError(f"a request digest has {REQUEST_DIGEST_LENGTH} bytes")
    payload = {
        "release_id": release_id,
        "request_sha512": request_sha512.hex(),
        "app_id": app_id.hex(),
        "keys": [key.to_json() for key in keys],
    }
    return compact_json(Signed.by(identity, PAYLOAD, compact_json(payload)).to_json())


def open_envelope(envelope: bytes, *, pinned_identity: bytes | None, request_sha512: bytes) -> Payload:
    """Verify an opened envelope, guest's side, and read its keys.

    `pinned_identity` is the KMS's 32-byte public key as the guest's measured image or command line has
    it. None proves only that one KMS signed all of it, not which.

    Raises:
        EnvelopeRejected: with its reason; nothing of the envelope may be used.

    """
    try:
        signed = Signed.read(Fields(parse(envelope), "envelope"))
    except JsonError as error:
        raise EnvelopeRejected(str(error), reason="envelope-malformed") from None
    if pinned_identity is not None and not hmac.compare_digest(signed.identity, pinned_identity):
        raise EnvelopeRejected("signed by another KMS than the pinned one", reason="identity-mismatch")
    try:
        signed.verify(PAYLOAD)
    except SignatureInvalid as error:
        raise EnvelopeRejected(error.detail, reason=error.reason) from None
    try:
        payload, answered = _read_payload(signed)
    except JsonError as error:
        raise EnvelopeRejected(str(error), reason="envelope-malformed") from None
    if not hmac.compare_digest(answered, request_sha512):
        raise EnvelopeRejected("the answer to another request", reason="request-mismatch")
    for key in payload.keys:
        _verify_statement(key, payload)
        _verify_certificates(key, payload)
    return payload


def _read_payload(signed: Signed) -> tuple[Payload, bytes]:
    fields = Fields(parse(signed.payload), "payload")
    release_id = fields.text("release_id", at_most=128)
    answered = fields.hex("request_sha512", bytes)
    app_id = fields.hex("app_id", AppId)
    entries = fields.array("keys", at_least=1, at_most=MAX_KEYS)
    fields.end()
    keys = tuple(ReleasedKey.read(Fields(entry, "key")) for entry in entries)
    return Payload(release_id, app_id, keys, signed.identity), answered


def _verify_statement(key: ReleasedKey, payload: Payload) -> None:
    """Compare the statement with the only one that the KMS makes for this key, then verify it."""
    if key.algorithm is not Algorithm.ED25519:
        return
    statement, public_key, epoch = key.statement, key.public_key, key.epoch
    if statement is None or public_key is None or epoch is None:
        raise EnvelopeRejected("a signing key without its statement", reason="statement-invalid")
    expected = signing_statement(payload.app_id, epoch, public_key)
    if (statement.payload, statement.identity) != (expected, payload.identity):
        raise EnvelopeRejected(
            "the statement is about another key or by another KMS", reason="statement-invalid"
        )
    try:
        statement.verify(SIGNING_STATEMENT)
    except SignatureInvalid as error:
        raise EnvelopeRejected(error.detail, reason="statement-invalid") from None


def _verify_certificates(key: ReleasedKey, payload: Payload) -> None:
    chain, public_key, epoch = key.certificate_chain, key.public_key, key.epoch
    if chain is None or public_key is None or epoch is None:
        return
    try:
        check_chain(chain, public_key=public_key, app_id=payload.app_id, epoch=epoch)
    except ValueError as error:
        raise EnvelopeRejected(str(error), reason="certificate-invalid") from None
