from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime

import pytest
from cryptography import x509

from kms.simulator.chip import SimulatedChip
from kms.simulator.hierarchy import AmdHierarchy
from kms.simulator.kds import SimulatedKds
from kms.simulator.kds_faults import Faults, RetryAfter, Throttle, retry_after_header
from kms.simulator.kds_shelf import Shelf
from kms.snp.endorsement import load_der
from kms.snp.flags import Signer
from kms.snp.kds_paths import ChainOf, Line, RevocationListOf, VcekOf
from kms.snp.product import Product
from kms.snp.tcb import TcbVersion


@pytest.fixture
def shelf(hierarchies: Mapping[Product, AmdHierarchy], now: datetime) -> Shelf:
    return Shelf([hierarchies[Product.MILAN], hierarchies[Product.TURIN]], lambda: now)


def wanted(chip: SimulatedChip, tcb: TcbVersion | None = None) -> VcekOf:
    return VcekOf(chip.hierarchy.product, chip.chip_id, tcb or chip.reported_tcb)


@pytest.fixture(params=[Product.MILAN, Product.TURIN], ids=str)
def hierarchy(request: pytest.FixtureRequest, hierarchies: Mapping[Product, AmdHierarchy]) -> AmdHierarchy:
    return hierarchies[request.param]


def test_a_chips_certificate_is_the_one_that_the_chip_has(shelf: Shelf, chip: SimulatedChip) -> None:
    shelf.add(chip)
    found = shelf.find(wanted(chip))
    assert found is not None
    assert found.body == chip.endorsement.certificate


def test_older_tcbs_have_keys_of_the_same_chip(shelf: Shelf, chip: SimulatedChip) -> None:
    shelf.add(chip)
    old = replace(chip.reported_tcb, snp=chip.reported_tcb.snp - 1)
    found, again = shelf.find(wanted(chip, old)), shelf.find(wanted(chip, old))
    assert found is not None
    assert found == again
    rolled_back = replace(chip, reported_tcb=old)
    assert load_der(found.body).public_key == load_der(rolled_back.endorsement.certificate).public_key
    assert load_der(found.body).level("snp") == old.snp


def test_what_no_chip_can_report_is_unknown(shelf: Shelf, chip: SimulatedChip) -> None:
    shelf.add(chip)
    stranger = bytearray(chip.chip_id)
    stranger[0] ^= 1
    assert shelf.find(wanted(chip, replace(chip.current_tcb, microcode=255))) is None
    assert shelf.find(replace(wanted(chip), chip_id=type(chip.chip_id)(bytes(stranger)))) is None
    assert shelf.find(replace(wanted(chip), product=Product.GENOA)) is None
    assert shelf.find(ChainOf(Line(Signer.VCEK, Product.GENOA))) is None
    assert shelf.find(RevocationListOf(Line(Signer.VCEK, Product.GENOA))) is None
    assert shelf.find(None) is None


def test_a_firmware_update_takes_the_place_of_what_was_known(shelf: Shelf, chip: SimulatedChip) -> None:
    shelf.add(chip)
    new = replace(chip.current_tcb, snp=chip.current_tcb.snp + 1)
    assert shelf.find(wanted(chip, new)) is None
    shelf.add(replace(chip, current_tcb=new))
    assert shelf.find(wanted(chip, new)) is not None


def test_a_chip_with_a_vlek_has_a_vcek_too(shelf: Shelf, chip: SimulatedChip) -> None:
    shelf.add(replace(chip, csp_id="CN=cloud.invalid"))
    found = shelf.find(wanted(chip))
    assert found is not None
    assert load_der(found.body).hwid() == chip.chip_id[: 8 if chip.hierarchy.product is Product.TURIN else 64]


@pytest.mark.parametrize("signer", list(Signer))
def test_chains_are_authority_then_ark(shelf: Shelf, hierarchy: AmdHierarchy, signer: Signer) -> None:
    found = shelf.find(ChainOf(Line(signer, hierarchy.product)))
    assert found is not None
    authority = hierarchy.ask if signer is Signer.VCEK else hierarchy.asvk
    assert found.body == authority.pem + hierarchy.ark.pem


def test_lists_can_be_published_and_taken_back(shelf: Shelf, hierarchy: AmdHierarchy, now: datetime) -> None:
    line, other = Line(Signer.VCEK, hierarchy.product), Line(Signer.VLEK, hierarchy.product)
    first = shelf.find(RevocationListOf(line))
    assert first is not None
    parsed = x509.load_der_x509_crl(first.body)
    assert (len(parsed), parsed.last_update_utc) == (0, now.replace(microsecond=0) - timedelta(hours=1))
    assert shelf.find(RevocationListOf(line)) == first
    shelf.publish(line, b"anything")
    published = shelf.find(RevocationListOf(line))
    assert published is not None
    assert published.body == b"anything"
    unchanged = shelf.find(RevocationListOf(other))
    assert unchanged is not None
    assert unchanged.body != b"anything"
    shelf.publish(line, None)
    back = shelf.find(RevocationListOf(line))
    assert back is not None
    assert len(x509.load_der_x509_crl(back.body)) == 0


def test_another_chips_certificate_is_genuine_and_wrong(
    shelf: Shelf, chip: SimulatedChip, hierarchy: AmdHierarchy
) -> None:
    document = shelf.of_another_chip(wanted(chip))
    assert document is not None
    certificate = load_der(document.body)
    assert certificate.is_signed_by(load_der(hierarchy.ask.certificate))
    assert certificate.level("snp") == chip.reported_tcb.snp
    assert certificate.hwid() != load_der(chip.endorsement.certificate).hwid()


class TestFaults:
    @pytest.mark.parametrize("wrong", [{"failing": 1.1}, {"failing": -0.1}, {"latency": -1}, {"drip": 0}])
    def test_nonsense_is_refused(self, wrong: dict[str, float]) -> None:
        with pytest.raises(ValueError, match=r"share|bytes"):
            Faults(**wrong)  # type: ignore[arg-type]

    def test_a_turn_is_taken_once_in_an_interval(self) -> None:
        throttle = Throttle()
        assert throttle.take(60) == 0
        assert 59 < throttle.take(60) <= 60
        assert 9 < throttle.take(10) <= 10
        assert throttle.take(0) == 0

    def test_a_throttled_client_is_never_told_to_come_too_early(self, now: datetime) -> None:
        east = now.astimezone(timezone(timedelta(hours=3)))
        assert retry_after_header(RetryAfter.NONE, 1.2, now) == {}
        assert retry_after_header(RetryAfter.SECONDS, 1.2, now) == {"Retry-After": "2"}
        (date,) = retry_after_header(RetryAfter.DATE, 1.2, now).values()
        assert date.endswith(" GMT")
        assert now + timedelta(seconds=1.2) <= parsedate_to_datetime(date) < now + timedelta(seconds=2.3)
        assert retry_after_header(RetryAfter.DATE, 1.2, east) == {"Retry-After": date}


def test_it_has_no_address_until_it_runs() -> None:
    with pytest.raises(RuntimeError, match="does not run"):
        _ = SimulatedKds([]).url
