"""docs/reference/guest-evidence.md names every reason that the guest's hardware side gives, and no other."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "guest-evidence.md"
SOURCES = ("evidence", "hardware", "sev_guest_device", "sev_guest_faults", "tsm")


def test_every_reason_is_documented_and_no_other() -> None:
    _, section = PAGE.read_text().split("## When there is none")
    rows = re.findall(r"^\| `([a-z-]+)` \|", section, re.MULTILINE)
    text = "".join((ROOT / "kms" / "guest" / f"{name}.py").read_text() for name in SOURCES)
    reasons = set(re.findall(r'"((?:tsm|device|report|evidence)-[a-z-]+)"', text))
    assert len(rows) == len(set(rows)) > 15
    assert set(rows) == reasons
