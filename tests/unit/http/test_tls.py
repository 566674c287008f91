import stat
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from kms.errors import ConfigurationError
from kms.http.tls import LocalTls, server_context
from tests.world import NOW

NAMES = {"localhost", "127.0.0.1", "::1"}


@pytest.fixture
def tls(tmp_path: Path) -> LocalTls:
    made = LocalTls(tmp_path / "tls")
    made.ensure(NAMES, NOW)
    return made


def read(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_lesson_31_private_files_are_private(tls: LocalTls) -> None:
    folder = tls.key.parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes["ca-key.pem"] == modes["server-key.pem"] == 0o600
    assert set(modes) == {"ca.pem", "ca-key.pem", "server.pem", "server-key.pem"}


def test_the_certificate_is_the_cas_for_these_names(tls: LocalTls) -> None:
    ca, server = read(tls.ca), read(tls.certificate)
    server.verify_directly_issued_by(ca)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {str(name.value) for name in names} == NAMES
    usage = server.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert load_pem_private_key(tls.key.read_bytes(), None).public_key() == server.public_key()


def test_what_is_current_is_kept(tls: LocalTls) -> None:
    before = [path.read_bytes() for path in (tls.ca, tls.certificate, tls.key)]
    tls.ensure(sorted(NAMES, reverse=True), NOW + timedelta(days=304))
    assert [path.read_bytes() for path in (tls.ca, tls.certificate, tls.key)] == before


@pytest.mark.parametrize("days", [306, 365, 400])
def test_an_old_certificate_is_renewed_under_the_same_ca(tls: LocalTls, days: int) -> None:
    ca, certificate, key = (path.read_bytes() for path in (tls.ca, tls.certificate, tls.key))
    now = NOW + timedelta(days=days)
    tls.ensure(NAMES, now)
    assert tls.ca.read_bytes() == ca
    assert tls.certificate.read_bytes() != certificate
    assert tls.key.read_bytes() != key
    assert read(tls.certificate).not_valid_after_utc > now + timedelta(days=300)
    read(tls.certificate).verify_directly_issued_by(read(tls.ca))


@pytest.mark.parametrize("names", [NAMES | {"kms.internal"}, {"localhost"}])
def test_other_names_make_another_certificate(tls: LocalTls, names: set[str]) -> None:
    before = tls.certificate.read_bytes()
    tls.ensure(names, NOW)
    assert tls.certificate.read_bytes() != before


@pytest.mark.parametrize("lost", ["certificate", "key"])
def test_a_lost_file_is_made_again(tls: LocalTls, lost: str) -> None:
    getattr(tls, lost).unlink()
    tls.ensure(NAMES, NOW)
    server_context(tls.certificate, tls.key, "1.3")


@pytest.mark.parametrize("damaged", ["ca.pem", "server.pem", "ca-key.pem"])
def test_a_damaged_file_is_said(tls: LocalTls, damaged: str) -> None:
    (tls.ca.parent / damaged).write_bytes(b"damaged")
    with pytest.raises(ConfigurationError, match="TLS files"):
        tls.ensure({"another"}, NOW)


@pytest.mark.parametrize(("minimum", "name"), [("1.3", "TLSv1_3"), ("1.2", "TLSv1_2")])
def test_the_lowest_version_is_the_operators(tls: LocalTls, minimum: str, name: str) -> None:
    assert server_context(tls.certificate, tls.key, minimum).minimum_version.name == name


def test_a_key_of_another_certificate_is_refused(tls: LocalTls, tmp_path: Path) -> None:
    other = LocalTls(tmp_path / "other")
    other.ensure(NAMES, NOW)
    for certificate, key in ((tls.certificate, other.key), (tls.certificate, tmp_path / "nothing")):
        with pytest.raises(ConfigurationError, match="cannot be loaded"):
            server_context(certificate, key, "1.3")
