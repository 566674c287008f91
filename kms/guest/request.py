"""The exact bytes of a release request: what the guest's hardware signs, and what it sends.

They are written once and kept. There is no canonical form, so nothing may serialise them again.
"""

from collections.abc import Sequence

from kms.encoding import b64url
from kms.keys.names import KeyKind, KeyRequest
from kms.keys.opening import RecipientKey
from kms.policy.question import AppClaim
from kms.request import ReleaseRequest, parse_request
from kms.strict_json import JsonValue, compact_json


def build_request(
    challenge: bytes,
    recipient: RecipientKey,
    keys: Sequence[KeyRequest],
    app: AppClaim | None = None,
    *,
    csr: bytes | None = None,
) -> ReleaseRequest:
    """Write the request for a decoded challenge (at most 256 bytes), a fresh key pair and 1 to 32 keys.

    `app` is for images whose command line names the app, and otherwise a claim that must agree with it. `csr`
    is a certificate request (PKCS#10, DER) of the guest's own P-256 key, for the ``tls`` keys among them.

    Raises:
        MalformedRequest: no keys, too many, or one twice: what the server would refuse.

    """
    document: dict[str, JsonValue] = {
        "challenge": b64url(challenge),
        "recipient": {"suite": recipient.suite.value, "public_key": b64url(recipient.public_key)},
        "keys": [_key(key, csr) for key in keys],
    }
    if app is not None:
        document["app"] = _claim(app)
    # Read by the server's own reader: what it would refuse costs no report.
    return parse_request(compact_json(document))


def _key(key: KeyRequest, csr: bytes | None) -> dict[str, JsonValue]:
    entry: dict[str, JsonValue] = {"name": str(key.name), "scope": key.scope.value}
    if key.epoch is not None:
        entry["epoch"] = key.epoch
    if csr is not None and key.name.kind is KeyKind.TLS:
        entry["csr"] = b64url(csr)
    return entry


def _claim(app: AppClaim) -> dict[str, JsonValue]:
    members = (("id", app.app_id), ("compose_hash", app.compose_hash), ("instance_id", app.instance_id))
    return {name: value.hex() for name, value in members if value is not None}
