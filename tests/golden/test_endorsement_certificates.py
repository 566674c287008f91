"""The risk that has a name: AMD's endorsement certificates have serial number 0.

RFC 5280 (4.1.2.2) wants it positive, and `cryptography` announces that it will refuse others one day. Then
no real guest could be verified any more. This test is where that shows first, before any update is taken:
see docs/decisions/0005. What has to change on that day is `kms.snp.endorsement` alone.
"""

import warnings
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.utils import CryptographyDeprecationWarning

from kms.snp.endorsement import load_der

LEAVES = (
    "milan-v2-vcek/vcek.der",
    "milan-v3-vcek-launch/vcek.der",
    "milan-v3-vlek/vlek.der",
    "genoa-v3-vcek/vcek.der",
    "turin-v5-vcek/vcek.der",
)


@pytest.mark.real_evidence
@pytest.mark.parametrize("leaf", LEAVES)
def test_serial_0_is_still_loaded(shared: Path, leaf: str) -> None:
    certificate = load_der((shared / "evidence" / leaf).read_bytes())
    assert certificate.serial == 0
    assert certificate.subject_name in {"SEV-VCEK", "SEV-VLEK"}


@pytest.mark.real_evidence
def test_the_warning_about_serial_0_is_still_only_a_warning(shared: Path) -> None:
    """When this fails, the library changed its mind: read docs/decisions/0005 before anything else."""
    data = (shared / "evidence" / LEAVES[0]).read_bytes()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        x509.load_der_x509_certificate(data)
    assert [each.category for each in caught] == [CryptographyDeprecationWarning]
    assert "serial number" in str(caught[0].message)
