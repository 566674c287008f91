"""Lesson 1, exhaustively: whatever is changed in a valid report or its certificate, nothing verifies."""

from collections.abc import Iterable

import pytest

from kms.errors import MalformedEvidence
from kms.simulator.chip import SimulatedChip
from kms.snp.endorsement import load_der
from kms.snp.report import SIGNED_LENGTH, Report
from kms.snp.revocation import Revocation, RevocationMode
from kms.snp.roots import TrustedRoots
from kms.snp.verify import VerifiedReport, verify
from tests.flips import SIGNATURE_LENGTH, bit_flips, byte_changes
from tests.unit.snp.test_revocation import WEEK
from tests.world import NOW


class Verifier:
    """Judges changed evidence of one chip, whose chain is known."""

    def __init__(self, chip: SimulatedChip) -> None:
        self.report = chip.launch(b"m" * 48).report(b"d" * 64)
        self.leaf, *authorities = chip.certificates()
        self.authorities = [load_der(each) for each in authorities]
        self.roots = TrustedRoots.with_development([self.authorities[-1]])
        self.revocation = Revocation(mode=RevocationMode.WHEN_AVAILABLE, max_age=WEEK)

    def accepts(self, *, report: bytes | None = None, leaf: bytes | None = None) -> bool:
        try:
            parsed = Report.parse(report or self.report)
            certificates = [load_der(leaf or self.leaf), *self.authorities]
            outcome = verify(parsed, certificates, self.roots, NOW, self.revocation)
        except MalformedEvidence:
            return False
        return isinstance(outcome, VerifiedReport)

    def accepted_reports(self, changes: Iterable[tuple[int, bytes]]) -> list[int]:
        assert self.accepts()
        return [place for place, report in changes if self.accepts(report=report)]

    def accepted_leaves(self, changes: Iterable[tuple[int, bytes]]) -> list[int]:
        assert self.accepts()
        return [place for place, leaf in changes if self.accepts(leaf=leaf)]


@pytest.fixture
def verifier(milan: SimulatedChip) -> Verifier:
    return Verifier(milan)


@pytest.mark.slow
def test_lesson_01_no_bit_of_a_signed_report_can_be_changed(verifier: Verifier) -> None:
    flips = list(bit_flips(verifier.report, 0, SIGNED_LENGTH))
    assert len(flips) == 5376
    assert verifier.accepted_reports(flips) == []


def test_lesson_05_no_bit_of_a_signature_can_be_changed(verifier: Verifier) -> None:
    flips = bit_flips(verifier.report, SIGNED_LENGTH, SIGNED_LENGTH + SIGNATURE_LENGTH)
    assert verifier.accepted_reports(flips) == []


def test_no_bit_behind_a_signature_can_be_changed(verifier: Verifier) -> None:
    flips = bit_flips(verifier.report, SIGNED_LENGTH + SIGNATURE_LENGTH, len(verifier.report))
    assert verifier.accepted_reports(flips) == []


@pytest.mark.filterwarnings("ignore::UserWarning")  # the library's, about lengths of names
def test_no_byte_of_an_endorsement_certificate_can_be_changed(verifier: Verifier) -> None:
    assert verifier.accepted_leaves(byte_changes(verifier.leaf, 0, masks=(0x01,))) == []


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_byte_of_an_endorsement_certificate_can_be_anything_else(verifier: Verifier) -> None:
    changes = byte_changes(verifier.leaf, 0, masks=range(1, 256))
    assert verifier.accepted_leaves(changes) == []
