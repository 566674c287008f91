import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kms.encoding import b64url, from_base64
from kms.identifiers import AppId
from kms.keys import p256
from kms.keys.apps_ca import AppsCa
from kms.keys.certificates import certify
from kms.keys.derivation import derive
from kms.keys.envelope import EnvelopeRejected, Payload, build_envelope, open_envelope
from kms.keys.identity import Identity
from kms.keys.names import KeyRequest
from kms.keys.released import ReleasedKey
from kms.keys.signed import Signed
from kms.labels import PAYLOAD, RECEIPT, SIGNING_STATEMENT

DIGEST = hashlib.sha512(b"request").digest()
APP = AppId(b"\x11" * 20)
IDENTITY = Identity.from_prf(hashlib.sha512(b"identity").digest())
IMPOSTOR = Identity.from_prf(hashlib.sha512(b"impostor").digest())
SECRET = hashlib.sha512(b"app").digest()
APPS_CA = AppsCa.from_prf(hashlib.sha512(b"apps' CA").digest())
OWN = p256.point_of(p256.private_key(b"\7" * 48).public_key())


def derived(request: KeyRequest) -> ReleasedKey:
    return derive(SECRET, request, 3, app_id=APP, instance_id=None, chip_id=None, identity=IDENTITY)


def chain_for(public_key: bytes | None, *, epoch: int = 3, app_id: AppId = APP) -> tuple[str, ...]:
    assert public_key is not None
    return certify(
        APPS_CA.app_ca(SECRET, app_id, epoch),
        public_key,
        names=["payments.internal"],
        life=timedelta(days=7),
        boot_info=bytes(32),
        now=datetime(2026, 11, 22, tzinfo=UTC),
        random=lambda length: b"\1" * length,
    )


def certified(request: KeyRequest) -> ReleasedKey:
    key = derived(request)
    return replace(key, certificate_chain=chain_for(key.public_key))


TLS = KeyRequest.parse("tls", "app")
KEYS = [
    *(derived(KeyRequest.parse(name, "app")) for name in ("disk", "env", "signing", "custom:db/main")),
    certified(TLS),
    certified(replace(TLS, certificate_for=OWN)),
]
ENVELOPE = build_envelope(IDENTITY, release_id="r-1", request_sha512=DIGEST, app_id=APP, keys=KEYS)

Edit = Callable[[dict[str, Any]], object]


def opened(envelope: bytes, pin: bytes | None = IDENTITY.public_key, digest: bytes = DIGEST) -> Payload:
    return open_envelope(envelope, pinned_identity=pin, request_sha512=digest)


def reason(envelope: bytes, pin: bytes | None = IDENTITY.public_key, digest: bytes = DIGEST) -> str:
    with pytest.raises(EnvelopeRejected) as caught:
        opened(envelope, pin, digest)
    for key in KEYS:
        assert key.value is None or b64url(key.value) not in caught.value.detail
    return caught.value.reason


def payload() -> dict[str, Any]:
    text: dict[str, Any] = json.loads(from_base64(json.loads(ENVELOPE)["payload"]))
    return text


def signed(document: object, identity: Identity = IDENTITY, label: str = PAYLOAD) -> bytes:
    return json.dumps(Signed.by(identity, label, json.dumps(document).encode()).to_json()).encode()


def test_the_guest_reads_what_the_kms_released() -> None:
    read = opened(ENVELOPE)
    assert read == Payload("r-1", APP, tuple(KEYS), IDENTITY.public_key)
    assert opened(ENVELOPE, pin=None) == read


def test_the_members_are_the_protocols() -> None:
    document = payload()
    assert list(document) == ["release_id", "request_sha512", "app_id", "keys"]
    assert document["request_sha512"] == DIGEST.hex()
    assert [list(key) for key in document["keys"]] == [
        ["name", "scope", "epoch", "algorithm", "value"],
        ["name", "scope", "epoch", "algorithm", "value", "public_key"],
        ["name", "scope", "epoch", "algorithm", "value", "public_key", "statement"],
        ["name", "scope", "epoch", "algorithm", "value"],
        ["name", "scope", "epoch", "algorithm", "value", "certificate_chain"],
        ["name", "scope", "epoch", "algorithm", "certificate_chain"],
    ]
    assert list(document["keys"][2]["statement"]) == ["payload", "signature", "identity"]


def test_an_impostor_with_a_consistent_envelope_is_refused() -> None:
    """Field lesson 29: anyone can seal to the guest; only the pinned identity can sign."""
    forged = build_envelope(IMPOSTOR, release_id="r-1", request_sha512=DIGEST, app_id=APP, keys=KEYS[:1])
    assert opened(forged, pin=None).identity == IMPOSTOR.public_key
    assert reason(forged) == "identity-mismatch"


def test_an_impostor_that_claims_the_identity_is_refused() -> None:
    document = json.loads(signed(payload(), IMPOSTOR))
    document["identity"] = b64url(IDENTITY.public_key)
    assert reason(json.dumps(document).encode()) == "signature-invalid"


def test_a_signature_for_another_use_is_refused() -> None:
    assert reason(signed(payload(), label=RECEIPT)) == "signature-invalid"


def test_the_answer_to_another_request_is_refused() -> None:
    assert reason(ENVELOPE, digest=hashlib.sha512(b"another").digest()) == "request-mismatch"


def test_a_changed_payload_is_refused() -> None:
    document = json.loads(ENVELOPE)
    changed = payload()
    changed["keys"][0]["value"] = b64url(bytes(32))
    document["payload"] = b64url(json.dumps(changed).encode())
    assert reason(json.dumps(document).encode()) == "signature-invalid"


@pytest.mark.parametrize(
    "envelope",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        ENVELOPE[:-1],
        ENVELOPE + b" x",
        ENVELOPE[:-1] + b',"more":1}',
        ENVELOPE[:-1] + b',"identity":"AA"}',
        b"\xff" + ENVELOPE,
    ],
)
def test_other_texts_are_malformed(envelope: bytes) -> None:
    assert reason(envelope) == "envelope-malformed"


def test_a_signed_text_that_is_no_payload_is_malformed() -> None:
    documents: list[object] = [[], {}, "x", 1]
    for document in documents:
        assert reason(signed(document)) == "envelope-malformed"


EDITS: dict[str, Edit] = {
    "unknown member": lambda p: p.update(more=1),
    "no release id": lambda p: p.pop("release_id"),
    "release id of another type": lambda p: p.update(release_id=1),
    "digest in capitals": lambda p: p.update(request_sha512=DIGEST.hex().upper()),
    "app id of another length": lambda p: p.update(app_id="11" * 21),
    "no keys": lambda p: p.update(keys=[]),
    "too many keys": lambda p: p.update(keys=p["keys"][:1] * 33),
    "a key that is no object": lambda p: p.update(keys=["disk"]),
    "unknown member of a key": lambda p: p["keys"][0].update(more=1),
    "a public key where none belongs": lambda p: p["keys"][0].update(public_key=b64url(bytes(32))),
    "unknown name": lambda p: p["keys"][0].update(name="door"),
    "a name of another algorithm": lambda p: p["keys"][0].update(name="tls"),
    "a scope that the name has not": lambda p: p["keys"][1].update(scope="chip"),
    "another algorithm": lambda p: p["keys"][0].update(algorithm="x25519"),
    "epoch zero": lambda p: p["keys"][0].update(epoch=0),
    "epoch as text": lambda p: p["keys"][0].update(epoch="3"),
    "short value": lambda p: p["keys"][0].update(value=b64url(bytes(31))),
    "long value": lambda p: p["keys"][0].update(value=b64url(bytes(33))),
    "no public key": lambda p: p["keys"][1].pop("public_key"),
    "another public key": lambda p: p["keys"][1].update(public_key=b64url(bytes(32))),
    "no statement": lambda p: p["keys"][2].pop("statement"),
    "no epoch": lambda p: p["keys"][0].update(epoch=None),
    "no value": lambda p: p["keys"][0].pop("value"),
    "certificates where none belong": lambda p: p["keys"][0].update(certificate_chain=[]),
    "no certificates": lambda p: p["keys"][4].pop("certificate_chain"),
    "too many certificates": lambda p: p["keys"][4]["certificate_chain"].append("x"),
    "certificates that are no texts": lambda p: p["keys"][4].update(certificate_chain=[1, 2, 3]),
    "a public key beside certificates": lambda p: p["keys"][4].update(public_key=b64url(OWN)),
    "a value that is no key": lambda p: p["keys"][4].update(value=b64url(bytes(138))),
    "a value that is too long": lambda p: p["keys"][4].update(value=b64url(bytes(513))),
    "a key of the guest's own without certificates": lambda p: p["keys"][5].update(certificate_chain=[]),
    "a key of the guest's own and no certificate": lambda p: p["keys"][5].update(certificate_chain=["x"] * 3),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_payloads_are_read_strictly_even_when_signed(edit: Edit) -> None:
    document = payload()
    assert opened(signed(document)).keys == tuple(KEYS)
    edit(document)
    assert reason(signed(document)) == "envelope-malformed"


def statement_by(identity: Identity, label: str = SIGNING_STATEMENT, **change: object) -> dict[str, str]:
    text = json.loads(from_base64(payload()["keys"][2]["statement"]["payload"]))
    changed = json.dumps(text | change, separators=(",", ":")).encode()
    return Signed.by(identity, label, changed).to_json()


def test_the_statement_must_be_this_kms_about_this_key() -> None:
    wrong = [
        statement_by(IMPOSTOR),
        statement_by(IMPOSTOR) | {"identity": b64url(IDENTITY.public_key)},
        statement_by(IDENTITY, PAYLOAD),
        statement_by(IDENTITY, app_id="22" * 20),
        statement_by(IDENTITY, epoch=4),
        statement_by(IDENTITY, public_key=b64url(bytes(32))),
    ]
    for statement in wrong:
        document = payload()
        document["keys"][2]["statement"] = statement
        assert reason(signed(document)) == "statement-invalid"
    document["keys"][2]["statement"] = statement_by(IDENTITY)
    assert opened(signed(document)).keys == tuple(KEYS)


def test_certificates_must_be_for_this_key_app_and_epoch() -> None:
    of_the_app, of_the_guest = KEYS[4], KEYS[5]
    assert (of_the_guest.value, of_the_guest.public_key) == (None, OWN)
    chain = chain_for(of_the_app.public_key)
    wrong = [
        chain[:2],
        (chain[0], chain[2], chain[1]),
        chain_for(OWN),
        chain_for(of_the_app.public_key, epoch=4),
        chain_for(of_the_app.public_key, app_id=AppId(b"\x22" * 20)),
    ]
    for certificates in wrong:
        document = payload()
        document["keys"][4]["certificate_chain"] = certificates
        assert reason(signed(document)) == "certificate-invalid"
    document = payload()
    document["keys"][5]["certificate_chain"] = chain_for(OWN, epoch=4)
    assert reason(signed(document)) == "certificate-invalid"
    document["keys"][5]["certificate_chain"] = chain_for(OWN)
    assert opened(signed(document)).keys == tuple(KEYS)


def test_a_digest_in_hex_is_not_a_digest() -> None:
    with pytest.raises(ValueError, match="64 bytes"):
        build_envelope(IDENTITY, release_id="r", request_sha512=DIGEST.hex().encode(), app_id=APP, keys=KEYS)


def test_no_repr_shows_a_value() -> None:
    shown = repr(opened(ENVELOPE))
    for key in KEYS:
        if key.value is None:
            continue
        assert repr(key.value)[2:12] not in shown
        assert key.value.hex() not in shown
