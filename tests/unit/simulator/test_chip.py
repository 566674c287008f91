from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from kms.errors import MalformedEvidence
from kms.simulator.certificate_table import certificate_table
from kms.simulator.chip import SimulatedChip, simulated_chip_id
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp import tcb
from kms.snp.certificate_table import ARK, ASK, VCEK, VLEK, parse_table
from kms.snp.endorsement import load_der
from kms.snp.flags import Signer
from kms.snp.product import Product
from kms.snp.report import Report
from kms.snp.revocation import Revocation, RevocationMode
from kms.snp.roots import TrustedRoots
from kms.snp.verify import Unverified, VerifiedReport, verify

MEASUREMENT = bytes(range(48))
REPORT_DATA = bytes(range(64))
NO_LISTS = Revocation(mode=RevocationMode.OFF, max_age=timedelta(0))
CSP = "CN=cloud.example"


def judge(chip: SimulatedChip, raw: bytes, now: datetime) -> VerifiedReport | Unverified:
    roots = TrustedRoots.with_development([load_der(chip.hierarchy.ark.certificate)])
    return verify(Report.parse(raw), [load_der(each) for each in chip.certificates()], roots, now, NO_LISTS)


def failed(outcome: VerifiedReport | Unverified) -> list[str]:
    return [check.name for check in outcome.checks if not check.passed]


@pytest.mark.parametrize("version", [2, 3, 4, 5])
@pytest.mark.parametrize("csp_id", [None, CSP])
def test_reports_of_every_version_product_and_signer_verify(
    chip: SimulatedChip, now: datetime, version: int, csp_id: str | None
) -> None:
    chip = replace(chip, report_version=version, csp_id=csp_id)
    outcome = judge(chip, chip.launch(MEASUREMENT).report(REPORT_DATA), now)
    assert isinstance(outcome, VerifiedReport), failed(outcome)
    assert outcome.product is chip.hierarchy.product
    assert outcome.csp_id == csp_id
    assert outcome.report.report_data == REPORT_DATA
    assert outcome.report.measurement == MEASUREMENT


def test_a_report_says_what_guest_and_chip_are(chip: SimulatedChip) -> None:
    product = chip.hierarchy.product
    lower = replace(chip.current_tcb, snp=chip.current_tcb.snp - 1)
    lowest = replace(chip.current_tcb, snp=chip.current_tcb.snp - 2)
    chip = replace(
        chip,
        reported_tcb=lower,
        committed_tcb=lowest,
        committed_firmware=replace(chip.current_firmware, build=1),
        platform_info=0x21,
        mitigations=0x7,
        report_version=5,
    )
    guest = chip.launch(MEASUREMENT, host_data=b"h" * 32, policy=0xB0000, vmpl=2, report_id=b"r" * 32)
    guest = replace(
        guest,
        guest_svn=9,
        family_id=b"f" * 16,
        image_id=b"i" * 16,
        id_key_digest=b"k" * 48,
        author_key_digest=b"a" * 48,
        author_key_enabled=True,
        launch_tcb=lowest,
        launch_mitigations=0x3,
    )
    report = Report.parse(guest.report(REPORT_DATA))
    assert report.host_data == b"h" * 32
    assert report.policy.raw == 0xB0000
    assert report.policy.debug
    assert report.vmpl == 2
    assert report.report_id == b"r" * 32
    assert report.report_id_ma == b"\xff" * 32
    assert report.guest_svn == 9
    assert (report.family_id, report.image_id) == (b"f" * 16, b"i" * 16)
    assert (report.id_key_digest, report.author_key_digest) == (b"k" * 48, b"a" * 48)
    assert report.flags.author_key_enabled
    assert report.flags.signer is Signer.VCEK
    assert tcb.decode(report.tcbs.current, product) == chip.current_tcb
    assert tcb.decode(report.tcbs.reported, product) == lower
    assert tcb.decode(report.tcbs.committed, product) == lowest
    assert tcb.decode(report.tcbs.launch, product) == lowest
    assert report.current_firmware == chip.current_firmware
    assert report.committed_firmware.build == 1
    assert report.platform_info.raw == 0x21
    assert (report.launch_mitigations, report.current_mitigations) == (0x3, 0x7)
    assert report.chip_id == chip.chip_id
    assert report.product is product


def test_the_signature_is_little_endian_over_the_first_0x2a0_bytes(chip: SimulatedChip) -> None:
    raw = chip.launch(MEASUREMENT).report(REPORT_DATA)
    r, s = (int.from_bytes(raw[at : at + 72], "little") for at in (0x2A0, 0x2E8))
    key = x509.load_der_x509_certificate(chip.certificates()[0]).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    key.verify(encode_dss_signature(r, s), raw[:0x2A0], ec.ECDSA(SHA384()))


def test_the_same_fields_give_the_same_report(chip: SimulatedChip) -> None:
    guest = chip.launch(MEASUREMENT, report_id=bytes(32))
    assert guest.report(REPORT_DATA) == guest.report(REPORT_DATA)
    assert chip.launch(MEASUREMENT).report_id != chip.launch(MEASUREMENT).report_id


def test_arbitrary_bytes_can_be_signed(chip: SimulatedChip, now: datetime) -> None:
    fields = replace(chip.launch(MEASUREMENT).fields(REPORT_DATA), vmpl=0xFFFFFFFF)
    outcome = judge(chip, chip.sign_report(fields.encode()), now)
    assert isinstance(outcome, Unverified)
    assert "report-signature" not in failed(outcome)
    reserved_set = bytearray(fields.encode())
    reserved_set[0x29F] = 1
    with pytest.raises(MalformedEvidence):
        Report.parse(chip.sign_report(bytes(reserved_set)))
    with pytest.raises(ValueError, match="672"):
        chip.sign_report(bytes(671))


class TestEndorsementKeys:
    def test_another_tcb_is_another_key_and_the_old_certificate_does_not_do(
        self, chip: SimulatedChip, now: datetime
    ) -> None:
        updated = replace(chip, reported_tcb=replace(chip.reported_tcb, microcode=1))
        assert self.key(updated) != self.key(chip)
        assert isinstance(
            judge(updated, updated.launch(MEASUREMENT).report(REPORT_DATA), now), VerifiedReport
        )
        assert isinstance(judge(chip, updated.launch(MEASUREMENT).report(REPORT_DATA), now), Unverified)

    def test_it_follows_from_the_chips_secret(self, chip: SimulatedChip) -> None:
        same = replace(chip, platform_info=0)
        assert self.key(same) == self.key(chip)
        assert self.key(replace(chip, secret=b"another".ljust(32))) != self.key(chip)
        assert self.key(replace(chip, csp_id=CSP)) != self.key(chip)

    def test_it_is_made_once(self, chip: SimulatedChip) -> None:
        assert chip.certificates() == chip.certificates()

    def test_nothing_secret_shows_in_a_repr(self, chip: SimulatedChip) -> None:
        guest = chip.launch(MEASUREMENT)
        chip.certificates()
        for text in (repr(chip), repr(guest), repr(chip.endorsement)):
            assert repr(chip.secret) not in text
            assert "PrivateKey" not in text

    @staticmethod
    def key(chip: SimulatedChip) -> bytes:
        return load_der(chip.certificates()[0]).public_key_sha256


class TestVlek:
    def test_it_has_its_own_authority_and_lives_a_year(self, chip: SimulatedChip, now: datetime) -> None:
        chip = replace(chip, csp_id=CSP, mask_chip_id=True)
        leaf, authority, _ = chip.certificates()
        assert authority == chip.hierarchy.asvk.certificate
        assert load_der(leaf).csp_id() == CSP
        raw = chip.launch(MEASUREMENT).report(REPORT_DATA)
        assert Report.parse(raw).chip_id is None
        assert isinstance(judge(chip, raw, now), VerifiedReport)
        assert isinstance(judge(chip, raw, now + timedelta(days=365)), Unverified)

    def test_a_masked_vcek_chip_is_refused(self, chip: SimulatedChip, now: datetime) -> None:
        chip = replace(chip, mask_chip_id=True)
        assert isinstance(judge(chip, chip.launch(MEASUREMENT).report(REPORT_DATA), now), Unverified)


class TestCertificateTable:
    @pytest.mark.parametrize(("csp_id", "leaf"), [(None, VCEK), (CSP, VLEK)])
    def test_it_reads_back(self, chip: SimulatedChip, csp_id: str | None, leaf: object) -> None:
        chip = replace(chip, csp_id=csp_id)
        entries = parse_table(chip.certificate_table())
        assert [entry.guid for entry in entries] == [leaf, ASK, ARK]
        assert tuple(entry.data for entry in entries) == chip.certificates()

    def test_its_bytes_are_those_of_the_kernel(self) -> None:
        assert certificate_table([(ARK, b"\xaa\xbb")]) == (
            bytes.fromhex("c0b406a4a803495297433fb6014cd0ae") + b"\x30\x00\x00\x00\x02\x00\x00\x00"
            b"" + bytes(24) + b"\xaa\xbb"
        )

    def test_without_certificates_it_is_an_end_marker(self) -> None:
        assert certificate_table([]) == bytes(24)
        assert parse_table(bytes(24)) == ()


def test_chip_ids_depend_on_their_seed_and_fill_what_the_product_has(
    hierarchies: Mapping[Product, AmdHierarchy],
) -> None:
    for product in hierarchies:
        one = simulated_chip_id(product, b"1")
        assert one == simulated_chip_id(product, b"1")
        assert one != simulated_chip_id(product, b"2")
        assert any(one[8:]) is (product is not Product.TURIN)


def test_a_chip_of_another_root_is_refused_though_everything_else_agrees(
    chip: SimulatedChip, now: datetime
) -> None:
    impostor = AmdHierarchy.generate(chip.hierarchy.product, now=now, rsa_bits=2048)
    forged = replace(chip, hierarchy=impostor)
    roots = TrustedRoots.with_development([load_der(chip.hierarchy.ark.certificate)])
    report = Report.parse(forged.launch(MEASUREMENT).report(REPORT_DATA))
    outcome = verify(report, [load_der(each) for each in forged.certificates()], roots, now, NO_LISTS)
    assert isinstance(outcome, Unverified)
