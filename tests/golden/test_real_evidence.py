"""Reports that AMD hardware signed, against AMD's chains as its key distribution service serves them."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kms.checks import failures
from kms.errors import MalformedEvidence
from kms.evidence.app_document import bind_document
from kms.measurement.images import Binding
from kms.measurement.launch import launch_measurement, parse_launch_file
from kms.snp.certificate import Certificate
from kms.snp.endorsement import load_der, load_pem
from kms.snp.flags import Signer
from kms.snp.product import Product
from kms.snp.report import SIGNED_LENGTH, Report
from kms.snp.revocation import Revocation, RevocationMode
from kms.snp.roots import TrustedRoots
from kms.snp.verify import Unverified, VerifiedReport, verify
from kms.strict_json import parse
from tests.flips import SIGNATURE_LENGTH, bit_flips, byte_changes

pytestmark = pytest.mark.real_evidence

NOW = datetime(2026, 11, 21, tzinfo=UTC)
VLEK_STILL_VALID = datetime(2025, 6, 1, tzinfo=UTC)
VCEKS = ("milan-v2-vcek", "milan-v3-vcek-launch", "genoa-v3-vcek", "turin-v5-vcek")
VLEK = "milan-v3-vlek"
LAUNCHED = "milan-v3-vcek-launch"

nightly = pytest.mark.nightly
# One of each TCB layout and of each signer by day, the rest by night.
BY_DAY = ("turin-v5-vcek", VLEK)
ALL = [*BY_DAY, *(pytest.param(each, marks=nightly) for each in VCEKS if each not in BY_DAY)]
ALL_BUT_ONE = [
    BY_DAY[0],
    *(pytest.param(each, marks=nightly) for each in (*VCEKS, VLEK) if each != BY_DAY[0]),
]
MEASUREMENT_LENGTH = 48
# No list of AMD's is public: what is not known cannot be required.
WHEN_AVAILABLE = Revocation(mode=RevocationMode.WHEN_AVAILABLE, max_age=timedelta(days=7))


@dataclass(frozen=True)
class Evidence:
    report: bytes
    leaf: bytes
    authorities: tuple[Certificate, ...]


def read(shared: Path, name: str) -> Evidence:
    folder = shared / "evidence" / name
    product = name.split("-", 1)[0].capitalize()
    service = "vlek" if name == VLEK else "vcek"
    chain = shared / "evidence" / "kds" / service / "v1" / product / "cert_chain"
    return Evidence(
        report=(folder / "report.bin").read_bytes(),
        leaf=(folder / f"{service}.der").read_bytes(),
        authorities=load_pem(chain.read_bytes()),
    )


def judge(
    evidence: Evidence, now: datetime, *, report: bytes | None = None, leaf: bytes | None = None
) -> VerifiedReport | Unverified:
    return verify(
        Report.parse(evidence.report if report is None else report),
        [load_der(evidence.leaf if leaf is None else leaf), *evidence.authorities],
        TrustedRoots(),
        now,
        WHEN_AVAILABLE,
    )


@pytest.mark.parametrize(
    ("name", "version"),
    [("milan-v2-vcek", 2), ("milan-v3-vcek-launch", 3), ("genoa-v3-vcek", 3), ("turin-v5-vcek", 5)],
)
def test_reports_of_chips_verify_today(shared: Path, name: str, version: int) -> None:
    outcome = judge(read(shared, name), NOW)
    assert isinstance(outcome, VerifiedReport), failures(outcome.checks)
    assert outcome.signer is Signer.VCEK
    assert outcome.csp_id is None
    assert outcome.report.version == version
    assert outcome.product is Product(name.split("-", 1)[0])
    assert outcome.report.chip_id is not None


def test_the_report_of_a_provider_verifies_while_its_certificate_was_valid(shared: Path) -> None:
    outcome = judge(read(shared, VLEK), VLEK_STILL_VALID)
    assert isinstance(outcome, VerifiedReport), failures(outcome.checks)
    assert outcome.signer is Signer.VLEK
    assert outcome.csp_id
    assert outcome.report.vmpl == 1


def test_lesson_10_an_expired_vlek_is_refused_for_its_dates_alone(shared: Path) -> None:
    outcome = judge(read(shared, VLEK), NOW)
    assert isinstance(outcome, Unverified)
    assert failures(outcome.checks) == ("certificate-validity",)


@pytest.mark.parametrize("name", [*VCEKS, VLEK])
def test_without_the_chain_nothing_verifies(shared: Path, name: str) -> None:
    evidence = read(shared, name)
    leaf, report = load_der(evidence.leaf), Report.parse(evidence.report)
    outcome = verify(report, [leaf], TrustedRoots(), NOW, WHEN_AVAILABLE)
    assert isinstance(outcome, Unverified)
    assert "root-unknown" in failures(outcome.checks)


def another(shared: Path, name: str) -> Evidence:
    """Evidence of another product, with its genuine chain."""
    return read(shared, "turin-v5-vcek" if name == "genoa-v3-vcek" else "genoa-v3-vcek")


@pytest.mark.parametrize("name", [*VCEKS, VLEK])
def test_another_products_certificate_does_not_do(shared: Path, name: str) -> None:
    """It is untrusted, not malformed, where the report itself names its product."""
    evidence, other = read(shared, name), another(shared, name)
    candidates = [load_der(other.leaf), *other.authorities, *evidence.authorities]
    report = Report.parse(evidence.report)
    outcome = verify(report, candidates, TrustedRoots(), VLEK_STILL_VALID, WHEN_AVAILABLE)
    assert isinstance(outcome, Unverified)


@pytest.mark.parametrize("name", VCEKS)
def test_another_products_certificate_beside_the_right_one_plays_no_part(shared: Path, name: str) -> None:
    evidence, other = read(shared, name), another(shared, name)
    candidates = [load_der(each) for each in (other.leaf, evidence.leaf)]
    candidates += [*other.authorities, *evidence.authorities]
    report = Report.parse(evidence.report)
    outcome = verify(report, candidates, TrustedRoots(), NOW, WHEN_AVAILABLE)
    assert isinstance(outcome, VerifiedReport)


def refused(evidence: Evidence, now: datetime, **changed: bytes) -> bool:
    try:
        return isinstance(judge(evidence, now, **changed), Unverified)
    except MalformedEvidence:
        return True


def survivors(evidence: Evidence, now: datetime, reports: Iterable[tuple[int, bytes]]) -> list[int]:
    """Give the places where a report can be changed and still verifies."""
    assert not refused(evidence, now)
    return [place for place, report in reports if not refused(evidence, now, report=report)]


def moment(name: str) -> datetime:
    return VLEK_STILL_VALID if name == VLEK else NOW


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL_BUT_ONE)
def test_lesson_01_no_bit_of_a_signed_report_can_be_changed(shared: Path, name: str) -> None:
    evidence = read(shared, name)
    assert survivors(evidence, moment(name), bit_flips(evidence.report, 0, SIGNED_LENGTH)) == []


@pytest.mark.parametrize("name", ALL)
def test_lesson_05_no_bit_of_a_signature_can_be_changed(shared: Path, name: str) -> None:
    evidence = read(shared, name)
    flips = bit_flips(evidence.report, SIGNED_LENGTH, SIGNED_LENGTH + SIGNATURE_LENGTH)
    assert survivors(evidence, moment(name), flips) == []


@pytest.mark.parametrize("name", [*VCEKS, VLEK])
def test_no_byte_behind_a_signature_can_be_changed(shared: Path, name: str) -> None:
    evidence = read(shared, name)
    tail = byte_changes(evidence.report, SIGNED_LENGTH + SIGNATURE_LENGTH, masks=(0x01, 0x80))
    assert survivors(evidence, moment(name), tail) == []


def surviving_leaves(evidence: Evidence, now: datetime, masks: Iterable[int]) -> list[int]:
    assert not refused(evidence, now)
    changes = byte_changes(evidence.leaf, 0, masks=tuple(masks))
    return [place for place, leaf in changes if not refused(evidence, now, leaf=leaf)]


@pytest.mark.parametrize("name", ALL)
def test_no_byte_of_an_endorsement_certificate_can_be_changed(shared: Path, name: str) -> None:
    assert surviving_leaves(read(shared, name), moment(name), (0x01,)) == []


@nightly
@pytest.mark.parametrize("name", [LAUNCHED, VLEK])
def test_no_byte_of_an_endorsement_certificate_can_be_anything_else(shared: Path, name: str) -> None:
    assert surviving_leaves(read(shared, name), moment(name), range(1, 256)) == []


def test_the_measurement_of_a_real_launch_is_recomputed(shared: Path) -> None:
    folder = shared / "evidence" / LAUNCHED
    launch = parse_launch_file(parse((folder / "launch.json").read_bytes()))
    machine = launch.machine()
    assert machine is not None
    report = Report.parse((folder / "report.bin").read_bytes())
    measured = launch_measurement(launch.description, machine)
    assert measured == report.measurement
    assert len(measured) == MEASUREMENT_LENGTH


def test_host_data_of_a_real_launch_binds_its_document(shared: Path) -> None:
    folder = shared / "evidence" / LAUNCHED
    report = Report.parse((folder / "report.bin").read_bytes())
    document = (folder / "mr_config.json").read_bytes()
    identity = bind_document(document, report.host_data)
    assert identity is not None
    assert identity.binding is Binding.DSTACK_MR_CONFIG
    assert identity.app_id.hex() == json.loads(document)["app_id"]
    assert bind_document(document + b"\n", report.host_data) is None
    assert bind_document(document[:-1], report.host_data) is None
    assert report.report_data.rstrip(b"\x00") == b"attest-test-fixture-2026"


def test_lesson_08_the_reported_tcb_of_a_real_host_may_be_below_its_current_one(shared: Path) -> None:
    outcome = judge(read(shared, LAUNCHED), NOW)
    assert isinstance(outcome, VerifiedReport)
    assert outcome.tcb.current != outcome.tcb.reported
    assert outcome.tcb.current.covers(outcome.tcb.reported)
    assert outcome.leaf.level("microcode") == outcome.tcb.reported.microcode
