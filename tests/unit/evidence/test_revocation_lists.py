"""A host may hand its guest a revocation list in the certificate table: it is read, and not believed yet."""

from collections.abc import Mapping
from datetime import timedelta

import pytest

from kms.encoding import b64url
from kms.errors import MalformedEvidence
from kms.evidence.sev_snp import SnpEvidence, parse_evidence
from kms.simulator.certificate_table import certificate_table
from kms.simulator.chip import SimulatedChip, simulated_chip_id
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.certificate_table import ARK, ASK, REVOCATION_LIST, VCEK
from kms.snp.endorsement import load_der
from kms.snp.product import Product
from kms.strict_json import JsonValue
from tests.world import NOW


@pytest.fixture
def milan(simulated_hierarchies: Mapping[Product, AmdHierarchy]) -> SimulatedChip:
    hierarchy = simulated_hierarchies[Product.MILAN]
    chip_id = simulated_chip_id(Product.MILAN, b"chip 1")
    return SimulatedChip.typical(hierarchy, chip_id=chip_id, now=NOW - timedelta(days=1))


def parsed(chip: SimulatedChip, **members: JsonValue) -> SnpEvidence:
    report = b64url(chip.launch(b"m" * 48).report(b"d" * 64))
    return parse_evidence({"tee": "sev-snp", "report": report, **members})


def with_list(chip: SimulatedChip, data: bytes) -> SnpEvidence:
    leaf, ask, ark = chip.certificates()
    table = certificate_table([(VCEK, leaf), (ASK, ask), (REVOCATION_LIST, data), (ARK, ark)])
    return parsed(chip, certificate_table=b64url(table))


def crl(chip: SimulatedChip) -> bytes:
    return chip.hierarchy.revocation_list(
        [0x7777], number=4, this_update=NOW, next_update=NOW + timedelta(days=1)
    )


def test_the_list_of_a_table_is_read(milan: SimulatedChip) -> None:
    evidence = with_list(milan, crl(milan))
    (found,) = evidence.revocation_lists
    assert (found.number, found.line) == (4, None)
    assert found.serials == {0x7777}
    assert found.is_signed_by(load_der(milan.hierarchy.ark.certificate))
    assert len(evidence.certificates) == 3


def test_without_a_list(milan: SimulatedChip) -> None:
    assert parsed(milan).revocation_lists == ()
    assert parsed(milan, certificate_table=b64url(milan.certificate_table())).revocation_lists == ()


@pytest.mark.parametrize("data", [b"x", b"\x30\x00", bytes(64)])
def test_a_list_that_does_not_parse_is_malformed_as_a_certificate_is(
    milan: SimulatedChip, data: bytes
) -> None:
    with pytest.raises(MalformedEvidence) as refused:
        with_list(milan, data)
    assert refused.value.reason == "revocation-list-unreadable"
    with pytest.raises(MalformedEvidence):
        with_list(milan, milan.certificates()[0])


def test_a_list_is_no_certificate(milan: SimulatedChip) -> None:
    with pytest.raises(MalformedEvidence) as refused:
        parsed(milan, certificates=[b64url(crl(milan))])
    assert refused.value.reason == "certificate-unreadable"
