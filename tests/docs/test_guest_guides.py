"""docs/guides/programs.md and containers.md name every error and every reason that people meet there."""

import re
from pathlib import Path

import kms.guest
from kms.errors import KmsError

ROOT = Path(__file__).parents[2]
PROGRAMS = (ROOT / "docs" / "guides" / "programs.md").read_text()
CONTAINERS = (ROOT / "docs" / "guides" / "containers.md").read_text()


def test_programs_are_told_of_every_error_that_they_can_catch() -> None:
    offered = {name: getattr(kms.guest, name) for name in kms.guest.__all__}
    errors = {name for name, each in offered.items() if isinstance(each, type) and issubclass(each, KmsError)}
    rows = re.findall(r"^\| `(\w+)` \|", PROGRAMS, re.MULTILINE)
    assert len(rows) == len(set(rows))
    assert set(rows) == errors - {"KmsError"}


def test_the_reasons_of_the_agent_are_on_the_page() -> None:
    table = CONTAINERS[CONTAINERS.index("| Reason |") :]
    rows = re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE)
    assert set(rows) == reasons_in("agent")
    assert len(rows) == 5


def test_the_reasons_of_the_workload_are_on_the_page() -> None:
    # The other one is of an app document, which the reference has.
    assert reasons_in("workload") == {"compose-hash-differs", "app-document-unreadable"}
    assert "`compose-hash-differs`" in PROGRAMS


def reasons_in(module: str) -> set[str]:
    text = (ROOT / "kms" / "guest" / f"{module}.py").read_text()
    return set(re.findall(r'reason="([a-z-]+)"', text))
