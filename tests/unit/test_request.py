"""Certificate requests in a release request; everything else of it is tested at the HTTP boundary."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from kms.encoding import b64url, from_base64
from kms.errors import MalformedRequest
from kms.keys import certificate_request, p256
from kms.keys.names import KeyRequest
from kms.keys.opening import RecipientKey
from kms.keys.sealing import Suite
from kms.request import MAX_CERTIFICATE_REQUESTS, parse_request

RECIPIENT = RecipientKey.generate(Suite.X25519_SEALEDBOX)
OWN = [p256.private_key(bytes([number]) * 48) for number in range(6)]


def csr(key: EllipticCurvePrivateKey) -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return b64url(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER))


def request(*keys: object) -> bytes:
    recipient = {"suite": RECIPIENT.suite.value, "public_key": b64url(RECIPIENT.public_key)}
    return json.dumps({"challenge": "AA", "recipient": recipient, "keys": keys}).encode()


def tls(**members: object) -> dict[str, object]:
    return {"name": "tls", "scope": "app", **members}


def asked(*keys: object) -> tuple[KeyRequest, ...]:
    return parse_request(request(*keys)).ask.keys


def test_a_certificate_request_stands_for_its_key() -> None:
    with_key, with_csr = asked(tls(), tls(csr=csr(OWN[0]), epoch=2))
    assert (with_key.certificate_for, with_key.epoch) == (None, None)
    assert (with_csr.certificate_for, with_csr.epoch) == (p256.point_of(OWN[0].public_key()), 2)


def test_one_key_twice_is_a_duplicate_however_it_is_asked_for() -> None:
    """Two requests by one key differ in their signatures, and ask for the same."""
    one, other = csr(OWN[0]), csr(OWN[0])
    assert one != other
    with pytest.raises(MalformedRequest, match="twice"):
        asked(tls(csr=one), tls(csr=other))
    assert len(asked(tls(csr=one), tls(csr=csr(OWN[1])), tls(csr=other, epoch=1), tls())) == 4


def test_no_more_signatures_are_checked_than_four(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger's request is read before anything is proven."""
    assert MAX_CERTIFICATE_REQUESTS == 4
    four = [tls(csr=csr(key)) for key in OWN[:4]]
    assert len(asked(*four)) == 4
    checked: list[bytes] = []
    monkeypatch.setattr(certificate_request, "read", checked.append)
    with pytest.raises(MalformedRequest, match="more than 4"):
        asked(*four, tls(csr=csr(OWN[4])))
    with pytest.raises(MalformedRequest, match="more than 4"):
        asked(*({"csr": None} for _ in range(5)))
    assert checked == []


WRONG: dict[str, Callable[[], object]] = {
    "another name": lambda: {"name": "disk", "scope": "app", "csr": csr(OWN[0])},
    "another kind with a public key": lambda: {"name": "env", "scope": "app", "csr": csr(OWN[0])},
    "another scope": lambda: tls(scope="instance", csr=csr(OWN[0])),
    "no text": lambda: tls(csr=1),
    "null": lambda: tls(csr=None),
    "a list": lambda: tls(csr=[csr(OWN[0])]),
    "empty": lambda: tls(csr=""),
    "no base64": lambda: tls(csr="%"),
    "no certificate request": lambda: tls(csr=b64url(b"hello")),
    "PEM": lambda: tls(csr="-----BEGIN CERTIFICATE REQUEST-----"),
    "too long": lambda: tls(csr=b64url(bytes(4097))),
    "cut off": lambda: tls(csr=csr(OWN[0])[:-4]),
    "another member": lambda: tls(csr=csr(OWN[0]), names=["root.example"]),
}


@pytest.mark.parametrize("entry", WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_malformed_and_not_repeated(entry: Callable[[], Any]) -> None:
    with pytest.raises(MalformedRequest) as caught:
        asked(entry())
    assert caught.value.reason == "malformed-request"
    assert "root.example" not in caught.value.detail
    assert len(caught.value.detail) < 120
    assert "MII" not in caught.value.detail


def test_a_request_that_its_key_did_not_sign_is_malformed() -> None:
    der = bytearray(from_base64(csr(OWN[0])))
    der[-1] ^= 1
    with pytest.raises(MalformedRequest, match="not signed by its key"):
        asked(tls(csr=b64url(bytes(der))))
