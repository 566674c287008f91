"""The client and the platform of these tests, tested without any server."""

import hashlib
import os
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, MLKEM768X25519PublicKey, Suite
from nacl.public import PublicKey, SealedBox

from tests.conformance.own_client import report_data
from tests.conformance.own_fleet import CSP_ID, Fleet
from tests.conformance.own_platform import P384_ORDER, SIGNED_LENGTH
from tests.conformance.own_policy import Document, revision, write_policy
from tests.conformance.own_sealing import HPKE, HYBRID, SEALED_BOX, SUITES, Recipient, new_recipient

BESIDE_THE_PROJECT = Path(__file__).parents[3] / "shared"
REAL_EVIDENCE = Path(os.environ.get("KMS_REAL_EVIDENCE", BESIDE_THE_PROJECT)) / "evidence"


def seal(recipient: Recipient, plaintext: bytes, request: bytes) -> bytes:
    info = b"attested-kms/v1/release\x00" + hashlib.sha512(request).digest()
    if recipient.suite == SEALED_BOX:
        return SealedBox(PublicKey(recipient.public_key)).encrypt(plaintext)
    public = X25519PublicKey.from_public_bytes(recipient.public_key[-32:])
    if recipient.suite == HPKE:
        return Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM).encrypt(plaintext, public, info=info)
    assert recipient.ml_kem is not None
    hybrid = MLKEM768X25519PublicKey(recipient.ml_kem.public_key(), public)
    return Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM).encrypt(plaintext, hybrid, info=info)


@pytest.mark.parametrize("suite", SUITES)
def test_openers_open(suite: str) -> None:
    recipient = new_recipient(suite)
    sealed = seal(recipient, b"a payload", b"a request")
    assert recipient.open(sealed, b"a request") == b"a payload"
    assert len(recipient.public_key) == (1216 if suite == HYBRID else 32)


@pytest.mark.parametrize("suite", [HPKE, HYBRID])
def test_openers_refuse_what_was_sealed_for_another_request(suite: str) -> None:
    recipient = new_recipient(suite)
    sealed = seal(recipient, b"a payload", b"a request")
    with pytest.raises(Exception):  # noqa: B017, PT011 - each library has its own
        recipient.open(sealed, b"another request")


@pytest.mark.parametrize("chip", ["first", "genoa", "turin"])
def test_the_certificates_are_sound(fleet: Fleet, chip: str) -> None:
    authority = fleet.chips[chip].authority
    ark, ask, vcek = (
        x509.load_der_x509_certificate(certificate)
        for certificate in (authority.ark, authority.ask, fleet.chips[chip].vcek())
    )
    ark.verify_directly_issued_by(ark)
    ask.verify_directly_issued_by(ark)
    vcek.verify_directly_issued_by(ask)
    vlek = x509.load_der_x509_certificate(fleet.chips[chip].vlek(CSP_ID))
    vlek.verify_directly_issued_by(x509.load_der_x509_certificate(authority.asvk))


@pytest.mark.parametrize("chip", ["first", "turin"])
def test_the_report_is_sound(fleet: Fleet, chip: str) -> None:
    report = fleet.guest(chip=chip).sign_report(report_data(b"a request"))
    assert len(report) == 1184
    assert report[0x50:0x90] == hashlib.sha512(b"attested-kms/v1/request\x00a request").digest()
    r, s = (int.from_bytes(report[at : at + 72], "little") for at in (0x2A0, 0x2E8))
    public = fleet.chips[chip].key.public_key()
    public.verify(encode_dss_signature(r, s), report[:SIGNED_LENGTH], ec.ECDSA(hashes.SHA384()))


@pytest.mark.real_evidence
@pytest.mark.parametrize(("chip", "folder"), [("first", "milan-v3-vcek-launch"), ("turin", "turin-v5-vcek")])
def test_the_report_has_the_layout_of_a_real_one(fleet: Fleet, chip: str, folder: str) -> None:
    """Where the hardware writes zeros, so do we, and where it writes constants, the same ones."""
    if not REAL_EVIDENCE.is_dir():
        pytest.skip("no hardware evidence beside the project")
    real = (REAL_EVIDENCE / folder / "report.bin").read_bytes()
    ours = fleet.guest(chip=chip).sign_report(bytes(64))
    reserved = ((0x4C, 0x50), (0x18B, 0x1A0), (0x1EB, 0x1EC), (0x1EF, 0x1F0), (0x208, 0x2A0), (0x330, 0x4A0))
    for start, end in reserved:
        assert real[start:end] == ours[start:end] == bytes(end - start)
    same = ((0x00, 0x04), (0x30, 0x38), (0x48, 0x50), (0x160, 0x180), (0x188, 0x18B))
    for start, end in same:
        assert real[start:end] == ours[start:end]
    for halves in ((0x2A0 + 48, 0x2E8), (0x2E8 + 48, 0x330)):
        assert not any(real[slice(*halves)])
        assert not any(ours[slice(*halves)])


def test_measurements_differ_where_the_guest_differs(fleet: Fleet) -> None:
    measurements = {
        guest.launch_measurement()
        for guest in (
            fleet.guest(),
            fleet.guest(vcpus=3),
            fleet.guest(vcpu_type="EPYC-Milan"),
            fleet.guest(features=0x21),
            fleet.guest(image="bare-os"),
            fleet.measured_guest(),
        )
    }
    assert len(measurements) == 6


def test_the_policy_is_read_back_as_written(policy: list[Document], tmp_path: Path) -> None:
    write_policy(tmp_path / "policy", policy)
    files = (tmp_path / "policy").rglob("*.yaml")
    read = [document for path in files for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))]
    assert revision(read) == revision(policy)
    assert revision(policy) == revision(list(reversed(policy)))
    assert revision(policy) != revision(policy[1:])


def test_two_signatures_over_one_report_are_two(fleet: Fleet) -> None:
    """ECDSA is malleable: the premise of the test with a used challenge, which must not pass for nothing."""
    report = fleet.guest().sign_report(bytes(64))
    r, s = (int.from_bytes(report[at : at + 72], "little") for at in (0x2A0, 0x2E8))
    key = fleet.chips["first"].key.public_key()
    for second in (s, P384_ORDER - s):
        encoded = encode_dss_signature(r, second)
        key.verify(encoded, report[:SIGNED_LENGTH], ec.ECDSA(hashes.SHA384()))
