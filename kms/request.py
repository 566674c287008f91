"""The release request: a JSON text whose exact bytes the guest's hardware signs through REPORT_DATA.

There is no canonical form: the bytes that were signed are the bytes that are parsed, so nothing that the
guest asks for can be changed on the way (protocol section 1).
"""

from dataclasses import dataclass, replace
from hashlib import sha512
from typing import Final

from kms.errors import MalformedRequest, TooLarge
from kms.identifiers import AppId, ComposeHash, InstanceId
from kms.keys import certificate_request
from kms.keys.names import KeyRequest
from kms.keys.sealing import Recipient
from kms.labels import REQUEST, labelled
from kms.policy.question import AppClaim, Ask
from kms.strict_json import Fields, JsonError, JsonValue, parse

MAX_REQUEST: Final = 64 * 1024
MAX_KEYS: Final = 32
MAX_CERTIFICATE_REQUESTS: Final = 4  # each costs a signature check, before anything is proven
_MAX_CHALLENGE: Final = 256
_MAX_PUBLIC_KEY: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseRequest:
    """What a guest asks for. `raw` is the exact bytes; `challenge` is decoded, not yet authenticated."""

    raw: bytes
    challenge: bytes
    recipient: Recipient
    ask: Ask

    @property
    def digest(self) -> bytes:
        """SHA-512 of the exact bytes: 64 bytes, in the HPKE info and in the payload."""
        return sha512(self.raw).digest()

    @property
    def report_data(self) -> bytes:
        """The REPORT_DATA (64 bytes) that a report for this request must carry."""
        return report_data(self.raw)


def report_data(raw: bytes) -> bytes:
    """Give SHA-512(label || 0x00 || request bytes): what the guest asks its hardware to sign."""
    return sha512(labelled(REQUEST, raw)).digest()


def parse_request(raw: bytes) -> ReleaseRequest:
    """Parse the exact request bytes.

    Raises:
        TooLarge: more than 64 KiB.
        MalformedRequest: anything that is not as section 1 of the protocol says, a low-order recipient
            point, an exact duplicate among the keys and a certificate request that its key did not sign
            included.

    """
    if len(raw) > MAX_REQUEST:
        raise TooLarge(f"the request is longer than {MAX_REQUEST} bytes", reason="request-too-large")
    try:
        value = parse(raw)
    except JsonError as error:
        raise MalformedRequest(f"request: {error}") from error
    fields = Fields(value, "request", MalformedRequest)
    challenge = fields.base64("challenge", at_most=_MAX_CHALLENGE)
    recipient = _recipient(fields.object("recipient"))
    keys = _keys(fields)
    claim = _claim(fields.object("app")) if fields.has("app") else None
    fields.end()
    return ReleaseRequest(raw=raw, challenge=challenge, recipient=recipient, ask=Ask(keys=keys, app=claim))


def _recipient(fields: Fields) -> Recipient:
    suite = fields.text("suite", at_most=128)
    public_key = fields.base64("public_key", at_most=_MAX_PUBLIC_KEY)
    fields.end()
    return Recipient.parse(suite, public_key)


def _keys(fields: Fields) -> tuple[KeyRequest, ...]:
    entries = fields.array("keys", at_least=1, at_most=MAX_KEYS)
    if sum(isinstance(entry, dict) and "csr" in entry for entry in entries) > MAX_CERTIFICATE_REQUESTS:
        raise MalformedRequest(f"request: more than {MAX_CERTIFICATE_REQUESTS} certificate requests")
    keys = [_key(entry) for entry in entries]
    if len(set(keys)) != len(keys):
        raise MalformedRequest("request: the same key is asked for twice")
    return tuple(keys)


def _key(entry: JsonValue) -> KeyRequest:
    fields = Fields(entry, "request.keys", MalformedRequest)
    name = fields.text("name", at_most=256)
    scope = fields.text("scope", at_most=16)
    epoch = fields.integer("epoch", minimum=1) if fields.has("epoch") else None
    csr = fields.base64("csr", at_most=certificate_request.MAX_LENGTH) if fields.has("csr") else None
    fields.end()
    try:
        key = KeyRequest.parse(name, scope, epoch)
        return key if csr is None else replace(key, certificate_for=certificate_request.read(csr))
    except ValueError as error:
        raise MalformedRequest(f"request.keys: {error}") from error


def _claim(fields: Fields) -> AppClaim:
    claim = AppClaim(
        app_id=fields.hex("id", AppId) if fields.has("id") else None,
        compose_hash=fields.hex("compose_hash", ComposeHash) if fields.has("compose_hash") else None,
        instance_id=fields.hex("instance_id", InstanceId) if fields.has("instance_id") else None,
    )
    fields.end()
    return claim
