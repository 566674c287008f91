"""Rules of lint that hold for every kind and member. One mistake after the other: tests/golden/policies."""

import re

import pytest

from kms.policy.findings import Severity
from kms.policy.lint import lint
from tests.unit.policy.samples import VALID


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
