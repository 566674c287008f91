"""A guest's client written from the protocol page alone: ask, prove, open, check."""

import hashlib
import json
import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tests.conformance.own_encoding import b64, strings_in, unb64
from tests.conformance.own_fleet import Guest
from tests.conformance.own_sealing import SEALED_BOX, Recipient, new_recipient

REASON = re.compile(r"[a-z0-9-]+")
ALGORITHMS = {"disk": "symmetric-256", "env": "x25519", "signing": "ed25519", "tls": "p-256"}
DISK: Mapping[str, object] = {"name": "disk", "scope": "app"}

Json = dict[str, Any]


def report_data(request: bytes) -> bytes:
    """64 bytes: what the hardware signs for a request."""
    return hashlib.sha512(b"attested-kms/v1/request\x00" + request).digest()


def request_bytes(
    challenge: str, recipient: Recipient, keys: Sequence[Mapping[str, object]], app: object = None
) -> bytes:
    """Return a request text, whose exact bytes count."""
    request: Json = {
        "challenge": challenge,
        "recipient": {"suite": recipient.suite, "public_key": b64(recipient.public_key)},
        "keys": list(keys),
    }
    if app is not None:
        request["app"] = app
    return json.dumps(request, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class Attempt:
    """What was sent in one release, and what came back."""

    recipient: Recipient
    request: bytes
    evidence: Json
    response: httpx2.Response

    @property
    def body(self) -> Json:
        """The answer of a release that was granted."""
        assert self.response.status_code == 200, self.response.text
        decoded = self.response.json()
        assert isinstance(decoded, dict)
        return decoded


def outer(request: bytes, evidence: Mapping[str, object]) -> bytes:
    """Return the body of POST /v1/releases."""
    return json.dumps({"request": b64(request), "evidence": evidence}).encode()


class Client:
    """One guest's connection to one server."""

    def __init__(self, url: str, ca: Path) -> None:
        self.url, self.ca = url, ca
        self.http = httpx2.Client(
            base_url=url,
            verify=ssl.create_default_context(cafile=str(ca)),
            timeout=60,
            trust_env=False,
            limits=httpx2.Limits(max_connections=100, max_keepalive_connections=100),
        )
        self._identity: bytes | None = None

    def close(self) -> None:
        self.http.close()

    @property
    def identity(self) -> bytes:
        """The server's Ed25519 public key, 32 bytes."""
        if self._identity is None:
            self._identity = unb64(self.http.get("/v1/identity").raise_for_status().json()["identity"])
        return self._identity

    def challenge(self) -> str:
        response = self.http.post("/v1/challenges")
        assert response.status_code == 201, response.text
        return str(response.json()["challenge"])

    def post(self, body: bytes, **headers: str) -> httpx2.Response:
        return self.http.post(
            "/v1/releases", content=body, headers={"content-type": "application/json", **headers}
        )

    def ask(
        self,
        guest: Guest,
        keys: Sequence[Mapping[str, object]] = (DISK,),
        *,
        suite: str = SEALED_BOX,
        app: object = None,
        challenge: str | None = None,
    ) -> Attempt:
        """Go once through steps 1 to 4 of the protocol."""
        recipient = new_recipient(suite)
        request = request_bytes(challenge or self.challenge(), recipient, keys, app)
        evidence = guest.evidence(request)
        return Attempt(recipient, request, evidence, self.post(outer(request, evidence)))

    def keys(self, guest: Guest, *names: str, suite: str = SEALED_BOX, app: object = None) -> list[Json]:
        """Return released keys, every check made; a name is `disk` or `disk@instance`."""
        asked = []
        for name in names or ("disk",):
            key, _, scope = name.partition("@")
            asked.append({"name": key, "scope": scope or "app"})
        attempt = self.ask(guest, asked, suite=suite, app=app)
        opened = open_release(attempt, self.identity)["keys"]
        assert isinstance(opened, list)
        return opened

    def disk_key(self, guest: Guest, name: str = "disk") -> bytes:
        return unb64(self.keys(guest, name)[0]["value"])


def check_signed(envelope: Json, label: str, identity: bytes) -> Json:
    """Return the payload of a signed envelope after checking who signed it, and as what."""
    assert set(envelope) == {"payload", "signature", "identity"}
    assert unb64(envelope["identity"]) == identity, "the identity is not the pinned one"
    payload = unb64(envelope["payload"])
    signed = label.encode() + b"\x00" + payload
    Ed25519PublicKey.from_public_bytes(identity).verify(unb64(envelope["signature"]), signed)
    decoded = json.loads(payload)
    assert isinstance(decoded, dict)
    return decoded


def open_release(attempt: Attempt, identity: bytes) -> Json:
    """Open a granted release and make every check that a careful guest makes; return the payload."""
    body = attempt.body
    assert set(body) == {
        "release_id",
        "suite",
        "sealed",
        "boot_info",
        "policy_revision",
        "receipt",
        "development",
    }
    assert body["suite"] == attempt.recipient.suite
    envelope = json.loads(attempt.recipient.open(unb64(body["sealed"]), attempt.request))
    payload = check_signed(envelope, "attested-kms/v1/payload", identity)
    assert payload["release_id"] == body["release_id"]
    assert payload["request_sha512"] == hashlib.sha512(attempt.request).hexdigest()
    assert payload["app_id"] == body["boot_info"]["app_id"]
    asked = json.loads(attempt.request)["keys"]
    assert [(key["name"], key["scope"]) for key in payload["keys"]] == [
        (key["name"], key["scope"]) for key in asked
    ]
    for key in payload["keys"]:
        check_key(key)
    return payload


def check_key(key: Json) -> None:
    """Check one released key's algorithm, length and public half."""
    assert key["algorithm"] == ALGORITHMS.get(key["name"], "symmetric-256")
    assert isinstance(key["epoch"], int)
    value = unb64(key["value"])
    if key["name"] == "tls":
        assert key["certificate_chain"]
        return
    assert len(value) == 32
    if key["name"] == "env":
        assert X25519PrivateKey.from_private_bytes(value).public_key().public_bytes_raw() == unb64(
            key["public_key"]
        )
    if key["name"] == "signing":
        assert Ed25519PrivateKey.from_private_bytes(value).public_key().public_bytes_raw() == unb64(
            key["public_key"]
        )
        assert key["statement"]


MALFORMED, UNTRUSTED, DENIED = "malformed-evidence", "evidence-untrusted", "policy-denied"
UNKNOWN, EPOCH, COLLATERAL = "measurement-unknown", "epoch-unavailable", "collateral-unavailable"

# Section 1, "Statuses".
STATUS = {
    "malformed-request": 400,
    "malformed-evidence": 400,
    "challenge-invalid": 400,
    "evidence-untrusted": 403,
    "measurement-unknown": 403,
    "policy-denied": 403,
    "epoch-unavailable": 403,
    "challenge-used": 409,
    "challenge-expired": 410,
    "too-large": 413,
    "rate-limited": 429,
    "collateral-unavailable": 503,
}


def check_problem(response: httpx2.Response, *codes: str, status: int | None = None) -> Json:
    """Check the form of a problem document, that its code is one of these, and that the status fits."""
    text = f"{response.status_code} {response.text[:2000]}"
    assert response.headers["content-type"].partition(";")[0] == "application/problem+json", text
    problem = response.json()
    assert isinstance(problem, dict)
    for name in ("type", "title", "code", "request_id"):
        assert isinstance(problem[name], str), text
        assert problem[name], text
    assert problem["code"] in (codes or (problem["code"],)), f"expected {codes}: {text}"
    assert response.status_code == STATUS.get(problem["code"], response.status_code), text
    assert status in (None, response.status_code), f"expected {status}: {text}"
    assert response.status_code >= 400
    assert problem["status"] == response.status_code
    if response.status_code == 403:
        assert problem["reasons"], "a refusal says why"
    for reason in problem.get("reasons", []):
        assert REASON.fullmatch(reason), reason
    if response.status_code in (429, 503):
        assert int(response.headers["retry-after"]) >= 0
    assert "Traceback" not in response.text
    assert ".py" not in response.text
    return problem


def check_refused(attempt: Attempt, *codes: str) -> Json:
    """Check that an attempt was refused with one of these codes, and that the answer echoes nothing."""
    problem = check_problem(attempt.response, *codes)
    sent = [*strings_in(json.loads(attempt.request)), *strings_in(attempt.evidence)]
    document = attempt.evidence.get("app_document")
    if isinstance(document, str):
        sent += [digits.decode() for digits in re.findall(rb"[0-9a-f]{32,}", unb64(document))]
    for text in sent:
        assert len(text) < 24 or text not in attempt.response.text, "an error echoes its input"
    return problem
