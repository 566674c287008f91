"""The reference page says what the code does (field lesson 39)."""

import re
from dataclasses import replace
from pathlib import Path

from kms.policy.documents import STRICT, STRICT_GUEST
from kms.policy.lint import lint
from tests.unit.policy.samples import Case, documents
from tests.unit.policy.test_decision import ALLOWED, DENIED

PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "policy.md").read_text()


def test_every_reason_code_is_documented_and_no_other() -> None:
    table = PAGE[PAGE.index("## Checks and reason codes") :]
    documented = set(
        re.findall(r"`([a-z0-9-]+)`", "".join(re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE)))
    )
    changes = [*ALLOWED.values(), *(change for change, _ in DENIED.values())]
    made = {check.reason for change in changes for check in change(Case(documents())).decide().checks}
    assert documented == made


def test_the_built_in_strict_is_the_one_shown() -> None:
    shown = re.search(r"```yaml\n(kind: guest.*?)```", PAGE, re.DOTALL)
    assert shown
    text = shown[1].replace("name: strict", "name: shown")
    result = lint({"a.yaml": text.encode()}, development=False)
    assert not result.findings
    (document,) = result.documents
    assert replace(document, name=STRICT) == STRICT_GUEST


def test_an_empty_guest_document_is_strict() -> None:
    (document,) = lint({"a.yaml": b"kind: guest\nname: shown\n"}, development=False).documents
    assert replace(document, name=STRICT) == STRICT_GUEST
