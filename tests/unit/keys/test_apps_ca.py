import hashlib
import hmac
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from kms.identifiers import AppId
from kms.keys.apps_ca import AppsCa

ROOT = hashlib.sha512(b"root").digest()
SECRET = hashlib.sha512(b"an app's secret").digest()
APP = AppId(b"\x11" * 20)
LONG_APP = AppId(b"\xff" * 32)
APPS_CA = AppsCa.from_prf(ROOT)
N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551

APP_IDS = (st.binary(min_size=20, max_size=20) | st.binary(min_size=32, max_size=32)).filter(any).map(AppId)
CASES = st.tuples(st.binary(min_size=64, max_size=64), APP_IDS, st.integers(min_value=1, max_value=2**53 - 1))


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def spki_hash(certificate: x509.Certificate) -> bytes:
    key = certificate.public_key()
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


def public_numbers(certificate: x509.Certificate) -> object:
    return certificate.public_key().public_numbers()  # type: ignore[union-attr]


def names(certificate: x509.Certificate) -> list[tuple[x509.ObjectIdentifier, str | bytes]]:
    return [(attribute.oid, attribute.value) for attribute in certificate.subject]


def test_the_certificates_are_the_same_on_every_server_and_after_every_start() -> None:
    """A change of these would leave peers that trust the old certificate with two of one name."""
    app_ca = APPS_CA.app_ca(SECRET, APP, 3).certificate
    again = AppsCa.from_prf(ROOT)
    assert der(again.certificate) == der(APPS_CA.certificate)
    assert der(again.app_ca(SECRET, APP, 3).certificate) == der(app_ca)
    assert [each.fingerprint(SHA256()).hex() for each in (APPS_CA.certificate, app_ca)] == [
        "61e4db236fc1c3075e388d453c0bd37745198525999524283a5d104f52e0ab65",
        "e5408b1a9f29b1be8d234569ac2e79213028ba9c93ae58ef61465f33846d586b",
    ]


def test_the_key_of_the_apps_ca_is_made_of_the_first_48_bytes() -> None:
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, derive_private_key

    scalar = int.from_bytes(ROOT[:48], "big") % (N - 1) + 1
    expected = derive_private_key(scalar, SECP256R1()).public_key().public_numbers()
    assert public_numbers(APPS_CA.certificate) == expected
    assert der(AppsCa.from_prf(ROOT[:48] + bytes(16)).certificate) == der(APPS_CA.certificate)


def test_the_key_of_an_app_ca_is_one_hkdf_expansion() -> None:
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, derive_private_key

    frame = (20).to_bytes(4, "big") + APP + (8).to_bytes(4, "big") + (3).to_bytes(8, "big")
    info = b"attested-kms/v1/app-ca" + b"\0" + frame
    material = hmac.digest(SECRET, info + b"\x01", "sha512")[:48]
    scalar = int.from_bytes(material, "big") % (N - 1) + 1
    expected = derive_private_key(scalar, SECP256R1()).public_key().public_numbers()
    assert public_numbers(APPS_CA.app_ca(SECRET, APP, 3).certificate) == expected


@pytest.mark.parametrize(
    ("certificate", "path_length"),
    [(APPS_CA.certificate, 1), (APPS_CA.app_ca(SECRET, LONG_APP, 2**53 - 1).certificate, 0)],
    ids=["apps", "app"],
)
def test_a_ca_is_of_its_profile(certificate: x509.Certificate, path_length: int) -> None:
    extensions = certificate.extensions
    constraints = extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value) == (True, x509.BasicConstraints(True, path_length))
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert (usage.value.key_cert_sign, usage.value.crl_sign, usage.value.digital_signature) == (
        True,
        True,
        False,
    )
    assert certificate.version is x509.Version.v3
    assert certificate.not_valid_before_utc == datetime(2020, 1, 1, tzinfo=UTC)
    assert certificate.not_valid_after_utc == datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert certificate.serial_number == int.from_bytes(spki_hash(certificate)[:16], "big")
    assert isinstance(certificate.signature_hash_algorithm, SHA256)
    own = extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    assert not own.critical
    # RFC 5280 appendix A.1: ub-common-name, ub-organizational-unit-name, ub-serial-number
    assert all(len(attribute.value) <= 64 for attribute in certificate.subject)


def test_names_tell_the_kms_the_app_and_the_epoch() -> None:
    mark = spki_hash(APPS_CA.certificate)[:8].hex()
    assert names(APPS_CA.certificate) == [
        (NameOID.ORGANIZATIONAL_UNIT_NAME, mark),
        (NameOID.COMMON_NAME, "Attested KMS apps CA"),
    ]
    for app_id, epoch in ((APP, 3), (LONG_APP, 2**53 - 1)):
        app_ca = APPS_CA.app_ca(SECRET, app_id, epoch).certificate
        assert names(app_ca) == [
            (NameOID.ORGANIZATIONAL_UNIT_NAME, mark),
            (NameOID.COMMON_NAME, f"Attested KMS app CA epoch {epoch}"),
            (NameOID.SERIAL_NUMBER, app_id.hex()),
        ]


def test_the_chain_of_names_identifiers_and_signatures_holds() -> None:
    app_ca = APPS_CA.app_ca(SECRET, APP, 3)
    assert app_ca.issuer is APPS_CA.certificate
    APPS_CA.certificate.verify_directly_issued_by(APPS_CA.certificate)
    app_ca.certificate.verify_directly_issued_by(APPS_CA.certificate)
    above = APPS_CA.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    authority = app_ca.certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert authority.key_identifier == above.digest


@settings(deadline=None, max_examples=30)
@given(CASES, CASES)
def test_two_apps_or_epochs_never_share_a_ca(
    one: tuple[bytes, AppId, int], other: tuple[bytes, AppId, int]
) -> None:
    first, second = APPS_CA.app_ca(*one).certificate, APPS_CA.app_ca(*other).certificate
    assert (public_numbers(first) == public_numbers(second)) is (one == other)


@pytest.mark.parametrize(
    "change",
    [
        (hashlib.sha512(b"x").digest(), APP, 3),
        (SECRET, AppId(b"\x12" + b"\x11" * 19), 3),
        (SECRET, AppId(b"\x11" * 32), 3),
        (SECRET, APP, 4),
    ],
)
def test_changing_any_one_field_changes_the_key(change: tuple[bytes, AppId, int]) -> None:
    before = APPS_CA.app_ca(SECRET, APP, 3).certificate
    assert public_numbers(APPS_CA.app_ca(*change).certificate) != public_numbers(before)


def test_another_root_has_another_ca_of_another_name() -> None:
    other = AppsCa.from_prf(hashlib.sha512(b"another root").digest())
    assert other.certificate.subject != APPS_CA.certificate.subject
    assert public_numbers(other.certificate) != public_numbers(APPS_CA.certificate)


@pytest.mark.parametrize("length", [0, 32, 48, 63, 65])
def test_secrets_of_another_length_are_refused(length: int) -> None:
    with pytest.raises(ValueError, match="64 bytes"):
        AppsCa.from_prf(b"\1" * length)
    with pytest.raises(ValueError, match="64 bytes"):
        APPS_CA.app_ca(b"\1" * length, APP, 1)


@pytest.mark.parametrize("epoch", [0, -1, 2**53])
def test_what_is_no_epoch_has_no_ca(epoch: int) -> None:
    with pytest.raises(ValueError, match="epoch"):
        APPS_CA.app_ca(SECRET, APP, epoch)


def test_no_repr_shows_more_than_a_name() -> None:
    mark = spki_hash(APPS_CA.certificate)[:8].hex()
    assert repr(APPS_CA) == f"AppsCa(CN=Attested KMS apps CA,OU={mark})"
    assert repr(APPS_CA.app_ca(SECRET, APP, 3)).startswith("AppCa(")
