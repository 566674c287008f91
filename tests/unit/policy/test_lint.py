"""Broken policies as data: each file says at its head what lint must find, all of it and nothing else."""

import re
from pathlib import Path

import pytest

from kms.packaged import load_advisories
from kms.policy.findings import PolicyInvalid, Severity
from kms.policy.lint import lint
from kms.policy.revision import Revision
from tests.unit.policy.samples import ADVISORIES, NOW, POLICIES, VALID

BROKEN = sorted((POLICIES / "broken").glob("*.yaml"))
EXPECTED = re.compile(r"# expect (?:(\S+):)?(\d+):(\d+) (error|warning): (.+)")


def expectations(path: Path) -> list[tuple[str, int, int, str, str]]:
    head = [line for line in path.read_text().splitlines() if line.startswith("# expect")]
    found = [EXPECTED.fullmatch(line) for line in head]
    return [
        (match[1] or path.name, int(match[2]), int(match[3]), match[4], match[5]) for match in found if match
    ]


def test_there_are_enough_broken_policies() -> None:
    assert len(BROKEN) >= 30


def test_the_valid_policy_has_no_findings() -> None:
    result = lint(VALID, development=False, now=NOW, advisories=load_advisories())
    assert result.findings == ()
    assert len(result.documents) == 6


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.stem)
def test_finds_all_of_it(path: Path) -> None:
    expected = expectations(path)
    assert expected, "a broken policy says what is wrong with it"
    files = VALID | {path.name: path.read_bytes()}
    result = lint(files, development=False, now=NOW, advisories=ADVISORIES)
    found = [
        (each.file, each.line, each.column, each.severity.value, each.message) for each in result.findings
    ]
    assert [each[:4] for each in found] == [each[:4] for each in expected]
    for (*_, message), (*_, wanted) in zip(found, expected, strict=True):
        assert message.startswith(wanted)


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.stem)
def test_errors_keep_a_policy_out_of_force_and_warnings_do_not(path: Path) -> None:
    files = VALID | {path.name: path.read_bytes()}
    if any(severity == Severity.ERROR for *_, severity, _ in expectations(path)):
        with pytest.raises(PolicyInvalid) as caught:
            Revision.from_files(files, development=False)
        assert caught.value.findings
    else:
        assert Revision.from_files(files, development=False).documents


def test_debug_is_accepted_in_development_mode() -> None:
    files = {"guest.yaml": b"kind: guest\nname: lax\ndebug: allow\n"}
    assert lint(files, development=True).findings == ()
    assert lint(files, development=False).findings


def test_every_kind_refuses_members_that_nobody_knows() -> None:
    """Field lesson 25: a rule that is ignored does nothing, silently."""
    for kind in ("app", "image", "tcb", "guest", "chips", "revoked"):
        found = lint({"a.yaml": f"kind: {kind}\nsecure: true\n".encode()}, development=False).findings
        assert any(f"kind `{kind}` has no `secure`" in each.message for each in found)


@pytest.mark.parametrize("kind", ["app", "image", "tcb", "guest", "chips"])
def test_every_kind_but_revoked_takes_an_expiry(kind: str) -> None:
    text = f"kind: {kind}\nname: x\nowner: me\ndescription: why\nexpires_at: 2030-01-01T00:00:00Z\n"
    found = lint({"a.yaml": text.encode()}, development=False).findings
    assert not [each for each in found if each.line in {3, 4, 5}]
    assert not [each for each in found if "expires_at" in each.message or "owner" in each.message]


@pytest.mark.parametrize("member", ["images", "binding", "keys", "forbid_advisories"])
def test_any_is_legal_in_few_places(member: str) -> None:
    """Field lesson 22: `any` is written out where it is legal, and nowhere else."""
    text = VALID["valid/apps.yaml"].decode()
    changed = re.sub(rf"^{member}: .*$", f"{member}: any", text, flags=re.MULTILINE)
    assert changed != text
    found = lint(VALID | {"valid/apps.yaml": changed.encode()}, development=False).findings
    first = next(each.message for each in found if each.severity is Severity.ERROR)
    assert first.startswith("`any` is not legal")


@pytest.mark.parametrize("member", ["id", "name", "compose", "images", "chips", "tcb", "binding", "keys"])
def test_required_members_of_an_app(member: str) -> None:
    text = re.sub(rf"^{member}: .*\n", "", VALID["valid/apps.yaml"].decode(), flags=re.MULTILINE)
    found = lint(VALID | {"valid/apps.yaml": text.encode()}, development=False).findings
    assert any(each.message.startswith(f"`{member}` is missing") for each in found)
