"""The risk that has a name: AMD's endorsement certificates have serial number 0.

RFC 5280 (4.1.2.2) wants it positive, and `cryptography` announces that it will refuse others one day. Then
no real guest could be verified any more, were there not a second reader: see docs/decisions/0005. The first
tests are where that day shows, before any update is taken; the others force it, and nothing changes.
"""

import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.utils import CryptographyDeprecationWarning

from kms.checks import failures
from kms.errors import MalformedEvidence
from kms.snp import endorsement
from kms.snp.certificate import Certificate
from kms.snp.certificate_reader import read_certificate
from kms.snp.endorsement import load_der, load_pem, read_with_library
from kms.snp.report import Report
from kms.snp.revocation import Revocation, RevocationMode
from kms.snp.roots import TrustedRoots
from kms.snp.verify import VerifiedReport, verify

LEAVES = (
    "milan-v2-vcek/vcek.der",
    "milan-v3-vcek-launch/vcek.der",
    "milan-v3-vlek/vlek.der",
    "genoa-v3-vcek/vcek.der",
    "turin-v5-vcek/vcek.der",
)
CHAINS = tuple(f"{kind}/v1/{name}" for kind in ("vcek", "vlek") for name in ("Milan", "Genoa", "Turin"))
NOW = datetime(2026, 11, 21, tzinfo=UTC)
VLEK_STILL_VALID = datetime(2025, 6, 1, tzinfo=UTC)

Load = Callable[[bytes], x509.Certificate]


def read_leaf(shared: Path, leaf: str) -> bytes:
    return (shared / "evidence" / leaf).read_bytes()


def read_chain(shared: Path, chain: str) -> tuple[Certificate, ...]:
    return load_pem((shared / "evidence" / "kds" / chain / "cert_chain").read_bytes())


@pytest.mark.real_evidence
@pytest.mark.parametrize("leaf", LEAVES)
def test_serial_0_is_still_loaded(shared: Path, leaf: str) -> None:
    certificate = load_der(read_leaf(shared, leaf))
    assert certificate.serial == 0
    assert certificate.subject_name in {"SEV-VCEK", "SEV-VLEK"}


@pytest.mark.real_evidence
def test_the_warning_about_serial_0_is_still_only_a_warning(shared: Path) -> None:
    """When this fails, the library changed its mind: read docs/decisions/0005 before anything else."""
    data = read_leaf(shared, LEAVES[0])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        x509.load_der_x509_certificate(data)
    assert [each.category for each in caught] == [CryptographyDeprecationWarning]
    assert "serial number" in str(caught[0].message)


@pytest.mark.real_evidence
@pytest.mark.parametrize("leaf", LEAVES)
def test_both_readers_read_every_leaf_alike(shared: Path, leaf: str) -> None:
    data = read_leaf(shared, leaf)
    assert read_certificate(data) == read_with_library(data)


@pytest.mark.real_evidence
@pytest.mark.parametrize("chain", CHAINS)
def test_both_readers_read_every_authority_alike(shared: Path, chain: str) -> None:
    certificates = read_chain(shared, chain)
    assert len(certificates) == 2
    for each in certificates:
        assert read_certificate(each.der) == read_with_library(each.der)


@pytest.fixture(params=["serial-0", "everything"])
def the_library_refuses(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the library refuse what it has announced, or whatever it is given."""
    genuine: Load = x509.load_der_x509_certificate

    def refuse(data: bytes, backend: object = None) -> x509.Certificate:
        if request.param == "everything":
            raise ValueError("refused")
        certificate = genuine(data)
        if certificate.serial_number <= 0:
            raise ValueError("the serial number must be positive")
        return certificate

    endorsement._parse_once.cache_clear()
    monkeypatch.setattr(x509, "load_der_x509_certificate", refuse)
    yield
    endorsement._parse_once.cache_clear()


@pytest.mark.real_evidence
@pytest.mark.usefixtures("the_library_refuses")
@pytest.mark.parametrize("leaf", LEAVES)
def test_real_evidence_verifies_on_the_day_that_the_library_refuses(shared: Path, leaf: str) -> None:
    data = read_leaf(shared, leaf)
    with pytest.raises(ValueError, match=r"refused|must be positive"):
        x509.load_der_x509_certificate(data)
    kind = "vlek" if "vlek" in leaf else "vcek"
    authorities = read_chain(shared, f"{kind}/v1/{leaf.partition('-')[0].capitalize()}")
    report = Report.parse(read_leaf(shared, f"{leaf.partition('/')[0]}/report.bin"))
    revocation = Revocation(mode=RevocationMode.WHEN_AVAILABLE, max_age=timedelta(days=7))
    now = VLEK_STILL_VALID if kind == "vlek" else NOW
    outcome = verify(report, [load_der(data), *authorities], TrustedRoots(), now, revocation)
    assert isinstance(outcome, VerifiedReport), failures(outcome.checks)


@pytest.mark.real_evidence
@pytest.mark.usefixtures("the_library_refuses")
def test_nothing_else_is_accepted_on_that_day(shared: Path) -> None:
    data = read_leaf(shared, LEAVES[1])
    for forged in (data[:-1], data + b"\x00", b"\x30\x00", data.replace(b"\x02\x01\x00", b"\x02\x01\xff", 1)):
        with pytest.raises(MalformedEvidence) as refused:
            load_der(forged)
        assert refused.value.reason == "certificate-unreadable"
