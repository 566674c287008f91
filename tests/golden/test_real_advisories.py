"""What AMD's bulletins say of the hosts whose reports we have, by the data that is shipped.

Each id was compared with the levels of its report by hand. Where new data changes a line, do that again.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kms.boot_info import build_boot_info
from kms.packaged import load_advisories
from kms.snp.advisories import TcbStatus
from kms.snp.endorsement import load_der, load_pem
from kms.snp.report import Report
from kms.snp.revocation import Revocation, RevocationMode
from kms.snp.roots import TrustedRoots
from kms.snp.verify import VerifiedReport, verify

pytestmark = pytest.mark.real_evidence

NOW = datetime(2026, 11, 21, tzinfo=UTC)
VLEK_STILL_VALID = datetime(2025, 6, 1, tzinfo=UTC)
# Reports before version 5 show no mitigation, so 3020 (Milan) and 3016 are open for them all.
OPEN: dict[str, list[str]] = {
    # Firmware 1.52.4, snp 8, microcode 115: older than every figure.
    "milan-v2-vcek": ["3005", "3015", "3016", "3019", "3020", "3023", "3030", "7033"],
    # 1.55.29; snp 24, reported as 23; microcode 213.
    "milan-v3-vcek-launch": ["3016", "3019", "3020", "3023", "3030", "7033"],
    # 1.55.29; snp 24; microcode 220, reported as 217: what is not reported is not bound to the key.
    "milan-v3-vlek": ["3016", "3019", "3020", "3023", "3030", "7033"],
    # 1.55.40; snp 23; microcode 84.
    "genoa-v3-vcek": ["3016", "3020", "3023", "3027"],
    # snp 4; microcode 81: every figure that there is for Turin.
    "turin-v5-vcek": [],
}


@pytest.mark.parametrize("name", OPEN)
def test_what_is_open_on_a_real_host(shared: Path, name: str) -> None:
    product, _, leaf = name.removesuffix("-launch").split("-")
    evidence = shared / "evidence"
    outcome = verify(
        Report.parse((evidence / name / "report.bin").read_bytes()),
        [
            load_der((evidence / name / f"{leaf}.der").read_bytes()),
            *load_pem((evidence / "kds" / leaf / "v1" / product.capitalize() / "cert_chain").read_bytes()),
        ],
        TrustedRoots(),
        VLEK_STILL_VALID if leaf == "vlek" else NOW,
        Revocation(mode=RevocationMode.OFF, max_age=timedelta()),
    )
    assert isinstance(outcome, VerifiedReport), outcome.checks
    boot_info = build_boot_info(outcome, None, None, load_advisories())
    assert boot_info.advisories == tuple(f"AMD-SB-{number}" for number in OPEN[name])
    assert boot_info.tcb_status is (TcbStatus.OUT_OF_DATE if OPEN[name] else TcbStatus.UP_TO_DATE)
