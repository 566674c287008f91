import os
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


FILES = ["ca.pem", "ca-key.pem", "server.pem", "server-key.pem"]


@pytest.mark.parametrize(
    "content", [b"", b"damaged", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
@pytest.mark.parametrize("damaged", FILES)
def test_a_damaged_file_is_said_and_the_remedy_is_true(tls: LocalTls, damaged: str, content: bytes) -> None:
    folder = tls.ca.parent
    ca = tls.ca.read_bytes()
    (folder / damaged).write_bytes(content)
    names = {"another"} if damaged == "ca-key.pem" else NAMES
    with pytest.raises(ConfigurationError, match=f"TLS files.*{damaged} is damaged") as refused:
        tls.ensure(names, NOW)
    if damaged.startswith("ca"):
        assert "remove both" in refused.value.remedy
        tls.ca.unlink()
        (folder / "ca-key.pem").unlink()
    else:
        assert "under the same CA" in refused.value.remedy
        (folder / damaged).unlink()
    tls.ensure(names, NOW)
    read(tls.certificate).verify_directly_issued_by(read(tls.ca))
    server_context(tls.certificate, tls.key, "1.3")
    assert (tls.ca.read_bytes() == ca) == (not damaged.startswith("ca"))


@pytest.mark.parametrize("swapped", ["server.pem", "server-key.pem", "ca.pem"])
def test_files_that_do_not_fit_are_made_again_or_refused(tls: LocalTls, tmp_path: Path, swapped: str) -> None:
    """As after a crash between the key and the certificate, or a CA from elsewhere."""
    other = LocalTls(tmp_path / "other")
    other.ensure(NAMES, NOW)
    (tls.ca.parent / swapped).write_bytes((other.ca.parent / swapped).read_bytes())
    if swapped == "ca.pem":
        with pytest.raises(ConfigurationError, match=r"ca-key\.pem is not the key of ca\.pem"):
            tls.ensure(NAMES, NOW)
        return
    tls.ensure(NAMES, NOW)
    read(tls.certificate).verify_directly_issued_by(read(tls.ca))
    server_context(tls.certificate, tls.key, "1.3")


def test_a_new_ca_issues_a_new_certificate(tls: LocalTls) -> None:
    tls.ca.unlink()
    tls.ensure(NAMES, NOW)
    read(tls.certificate).verify_directly_issued_by(read(tls.ca))


def test_certificates_are_readable_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        tls = LocalTls(tmp_path / "tls")
        tls.ensure(NAMES, NOW)
    finally:
        os.umask(before)
    assert stat.S_IMODE(tls.ca.stat().st_mode) == 0o644
    assert stat.S_IMODE(tls.key.stat().st_mode) == 0o600


def test_a_name_however_it_is_written_is_the_same(tls: LocalTls) -> None:
    before = tls.certificate.read_bytes()
    tls.ensure(NAMES | {"0:0:0:0:0:0:0:1"}, NOW)
    assert tls.certificate.read_bytes() == before


@pytest.mark.parametrize(("minimum", "name"), [("1.3", "TLSv1_3"), ("1.2", "TLSv1_2")])
def test_the_lowest_version_is_the_operators(tls: LocalTls, minimum: str, name: str) -> None:
    assert server_context(tls.certificate, tls.key, minimum).minimum_version.name == name


def test_a_key_of_another_certificate_is_refused(tls: LocalTls, tmp_path: Path) -> None:
    other = LocalTls(tmp_path / "other")
    other.ensure(NAMES, NOW)
    for certificate, key in ((tls.certificate, other.key), (tls.certificate, tmp_path / "nothing")):
        with pytest.raises(ConfigurationError, match="cannot be loaded"):
            server_context(certificate, key, "1.3")
