"""Broken policies as data: each says what lint must find, all of it and nothing else.

A file of `policies/broken` joins the valid policy, and says at its head what is expected. A folder there is a
policy of its own, with `expect.txt` beside its files.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from kms.policy.findings import PolicyInvalid, Severity
from kms.policy.lint import lint
from kms.policy.revision import Revision
from kms.policy_folder.reading import read_folder
from kms.snp.advisory_file import parse_advisories
from tests.unit.policy.samples import NOW, POLICIES, VALID

BROKEN = sorted((POLICIES / "broken").iterdir())
ADVISORIES = parse_advisories((POLICIES / "advisories.toml").read_text())
EXPECTED = re.compile(r"# expect (?:(\S+):)?(\d+):(\d+) (error|warning): (.+)")
# As fields of a finding; the message is its beginning.
Expectation = tuple[str, int, int, str, str]


def files_of(path: Path) -> Mapping[str, bytes]:
    return read_folder(path) if path.is_dir() else VALID | {path.name: path.read_bytes()}


def expectations(path: Path) -> list[Expectation]:
    written = path / "expect.txt" if path.is_dir() else path
    # One of the mistakes is a file that is not UTF-8.
    head = [line for line in written.read_text(errors="replace").splitlines() if line.startswith("# expect")]
    found = [match for match in map(EXPECTED.fullmatch, head) if match]
    assert len(found) == len(head), "an expectation that cannot be read"
    return [(each[1] or path.name, int(each[2]), int(each[3]), each[4], each[5]) for each in found]


def test_there_are_enough_broken_policies() -> None:
    assert len(BROKEN) >= 80


def test_the_valid_policy_has_no_findings() -> None:
    result = lint(VALID, development=False, now=NOW, advisories=ADVISORIES)
    assert result.findings == ()
    assert len(result.documents) == 6


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.stem)
def test_finds_all_of_it_and_nothing_else(path: Path) -> None:
    expected = expectations(path)
    assert expected, "a broken policy says what is wrong with it"
    result = lint(files_of(path), development=False, now=NOW, advisories=ADVISORIES)
    found = [
        (each.file, each.line, each.column, each.severity.value, each.message) for each in result.findings
    ]
    assert [each[:4] for each in found] == [each[:4] for each in expected]
    for (*_, message), (*_, wanted) in zip(found, expected, strict=True):
        assert message.startswith(wanted)


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.stem)
def test_errors_keep_a_policy_out_of_force_and_warnings_do_not(path: Path) -> None:
    if any(severity == Severity.ERROR for *_, severity, _ in expectations(path)):
        with pytest.raises(PolicyInvalid) as caught:
            Revision.from_files(files_of(path), development=False)
        assert caught.value.findings
    else:
        assert Revision.from_files(files_of(path), development=False).documents
