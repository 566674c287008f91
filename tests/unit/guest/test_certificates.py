"""A guest that wants certificates: with the app's key, or for a key of its own."""

import json
import sys
from base64 import b64encode
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from typing_extensions import override

from kms.cli import run
from kms.guest.client import KeyClient
from kms.guest.errors import AnswerRejected
from kms.keys import p256
from kms.keys.apps_ca import AppsCa
from kms.keys.certificates import certify
from kms.keys.names import KeyRequest
from kms.keys.released import ReleasedKey
from kms.simulator.machine import SimulatedMachine
from tests.unit.guest.conftest import APP_ID, FakeKms, FakeTime, make_client

TLS = KeyRequest.parse("tls", "app")
SECRET = b"s" * 64
APPS_CA = AppsCa.from_prf(b"c" * 64)
APPS_KEY = p256.private_key(b"k" * 48)


@dataclass
class Certifying(FakeKms):
    """A KMS that certifies; `instead` is a key that it certifies in the place of what it was asked for."""

    instead: ec.EllipticCurvePrivateKey | None = None
    gives_value: bool | None = None
    asked: list[KeyRequest] = field(default_factory=list)

    @override
    def released(self, key: KeyRequest) -> ReleasedKey:
        self.asked.append(key)
        point = key.certificate_for or p256.point_of(APPS_KEY.public_key())
        if self.instead is not None:
            point = p256.point_of(self.instead.public_key())
        chain = certify(
            APPS_CA.app_ca(SECRET, APP_ID, key.epoch or 1),
            point,
            names=("payments.internal",),
            life=timedelta(days=7),
            boot_info=bytes(32),
            now=datetime.now(UTC),
            random=lambda length: b"r" * length,
        )
        with_value = key.certificate_for is None if self.gives_value is None else self.gives_value
        value = p256.to_pkcs8(self.instead or APPS_KEY) if with_value else None
        return ReleasedKey(
            name=key.name,
            scope=key.scope,
            epoch=key.epoch or 1,
            value=value,
            public_key=point,
            certificate_chain=chain,
        )


def request_for(key: ec.EllipticCurvePrivateKey) -> x509.CertificateSigningRequest:
    return x509.CertificateSigningRequestBuilder(x509.Name([])).sign(key, SHA256())


def der(key: ec.EllipticCurvePrivateKey) -> bytes:
    return request_for(key).public_bytes(Encoding.DER)


def of_version(number: int) -> bytes:
    """Give a request of another version: `cryptography` has an error of its own for it, no `ValueError`."""
    return der(APPS_KEY).replace(b"\x02\x01\x00", bytes([2, 1, number]), 1)


def in_pem(content: bytes) -> bytes:
    lines = b64encode(content)
    return b"-----BEGIN CERTIFICATE REQUEST-----\n%b\n-----END CERTIFICATE REQUEST-----\n" % lines


NO_REQUESTS = {
    "nothing": b"",
    "a letter": b"x",
    "cut PEM": b"-----BEGIN CERTIFICATE REQUEST-----\nx\n",
    "a letter in PEM": in_pem(b"x"),
    "another version": of_version(7),
    "another version in PEM": in_pem(of_version(7)),
    "another curve": der(ec.generate_private_key(ec.SECP384R1())),
    "another signature": der(APPS_KEY)[:-1] + bytes([der(APPS_KEY)[-1] ^ 1]),
    "more than the server takes": der(APPS_KEY) + bytes(4096),
    "too long to be read": bytes(17 << 10),
}


@pytest.fixture
def kms() -> Certifying:
    return Certifying()


@pytest.fixture
def client(kms: Certifying, machine: SimulatedMachine, time: FakeTime) -> KeyClient:
    return make_client(kms, machine, time)


def test_the_apps_key_comes_with_its_certificates(client: KeyClient, kms: Certifying) -> None:
    [key] = client.fetch([TLS]).keys
    assert key.secret == p256.to_pkcs8(APPS_KEY)
    assert kms.asked[0].certificate_for is None
    assert key.certificate_chain is not None


def test_for_a_key_of_its_own_there_are_certificates_alone(client: KeyClient, kms: Certifying) -> None:
    own = ec.generate_private_key(ec.SECP256R1())
    [key] = client.fetch([TLS], csr=der(own)).keys
    assert key.value is None
    assert key.public_key == p256.point_of(own.public_key()) == kms.asked[0].certificate_for
    with pytest.raises(ValueError, match="without one"):
        _ = key.secret


@pytest.mark.parametrize("gives_value", [True, False])
def test_certificates_for_another_key_are_not_taken(
    client: KeyClient, kms: Certifying, *, gives_value: bool
) -> None:
    kms.instead, kms.gives_value = ec.generate_private_key(ec.SECP256R1()), gives_value
    own = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(AnswerRejected) as rejected:
        client.fetch([TLS], csr=der(own))
    assert rejected.value.reason == "keys-mismatch"


def test_certificates_without_the_key_that_was_asked_for_are_not_taken(
    client: KeyClient, kms: Certifying
) -> None:
    kms.gives_value = False
    with pytest.raises(AnswerRejected) as rejected:
        client.fetch([TLS])
    assert rejected.value.reason == "keys-mismatch"


class TestCommand:
    @pytest.fixture(autouse=True)
    def from_the_fake(
        self, monkeypatch: pytest.MonkeyPatch, kms: Certifying, machine: SimulatedMachine, time: FakeTime
    ) -> None:
        def fake(*_: Any, **__: Any) -> KeyClient:
            return make_client(kms, machine, time)

        monkeypatch.setattr("kms.guest.machine.KeyClient", fake)
        monkeypatch.setattr("kms.guest.hardware.evidence_source", lambda *_, **__: machine)
        monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)

    def fetch(self, *options: str) -> int:
        return run(
            [
                "guest",
                "fetch",
                "--server",
                "https://kms",
                "--trust-any-kms-identity",
                *options,
                "--allow-disk",
            ]
        )

    def test_pem_of_key_and_certificates(self, tmp_path: Path) -> None:
        output = tmp_path / "tls.pem"
        assert self.fetch("--key", "tls", "--output", str(output)) == 0
        text = output.read_bytes()
        key = load_pem_private_key(text, None)
        leaf, app_ca, apps_ca = x509.load_pem_x509_certificates(text)
        assert leaf.public_key() == key.public_key()
        leaf.verify_directly_issued_by(app_ca)
        app_ca.verify_directly_issued_by(apps_ca)

    @pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
    def test_a_certificate_request(self, tmp_path: Path, encoding: Encoding) -> None:
        own = ec.generate_private_key(ec.SECP256R1())
        request, output = tmp_path / "own.csr", tmp_path / "tls.pem"
        request.write_bytes(request_for(own).public_bytes(encoding))
        assert self.fetch("--key", "tls", "--csr", str(request), "--output", str(output)) == 0
        assert b"PRIVATE KEY" not in output.read_bytes()
        assert x509.load_pem_x509_certificates(output.read_bytes())[0].public_key() == own.public_key()

    def test_it_goes_with_tls_only(self, tmp_path: Path, kms: Certifying) -> None:
        assert self.fetch("--key", "disk", "--csr", str(tmp_path / "x"), "--output", str(tmp_path / "y")) == 2
        assert kms.challenges == 0

    def test_text_before_the_pem(self, tmp_path: Path) -> None:
        """As `openssl req -text` writes it."""
        own = ec.generate_private_key(ec.SECP256R1())
        request, output = tmp_path / "own.csr", tmp_path / "tls.pem"
        request.write_bytes(
            b"Certificate Request:\n    Data:\n" + request_for(own).public_bytes(Encoding.PEM)
        )
        assert self.fetch("--key", "tls", "--csr", str(request), "--output", str(output)) == 0

    def test_one_for_the_keys_of_both_epochs(self, tmp_path: Path, kms: Certifying) -> None:
        own = ec.generate_private_key(ec.SECP256R1())
        request, output = tmp_path / "own.csr", tmp_path / "tls.json"
        request.write_bytes(der(own))
        keys = ["--key", "tls@app#1", "--key", "tls#2"]
        assert self.fetch(*keys, "--csr", str(request), "--output", str(output)) == 0
        point = p256.point_of(own.public_key())
        assert [(key.epoch, key.certificate_for) for key in kms.asked] == [(1, point), (2, point)]

    @pytest.mark.parametrize("content", NO_REQUESTS.values(), ids=NO_REQUESTS)
    def test_what_the_server_would_refuse_is_refused_here(
        self, tmp_path: Path, kms: Certifying, capfdbinary: pytest.CaptureFixture[bytes], content: bytes
    ) -> None:
        request = tmp_path / "own.csr"
        request.write_bytes(content)
        keys = ["--key", "tls", "--csr", str(request), "--output", str(tmp_path / "y")]
        assert self.fetch(*keys, "--json") == 2
        error = json.loads(capfdbinary.readouterr().out)["error"]
        assert (error["code"], str(request) in error["detail"]) == ("unreadable", True)
        assert kms.challenges == 0
