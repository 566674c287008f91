"""``kms operator``, before an office that only remembers."""

import json
from datetime import timedelta
from typing import Any

import pytest

from kms.cli import run
from kms.errors import Forbidden, NotFound, OperatorExists
from kms.operators import Role
from tests.fake_office import FakeOffice

TOKEN = "kmso_0123456789abcdef_" + "a" * 43
ALICE: dict[str, Any] = {
    "name": "alice",
    "role": "operator",
    "kind": "token",
    "token_id": "0123456789abcdef",
    "subject": None,
    "created_at": "2026-11-21T12:00:00.000000Z",
    "created_by": "root",
    "expires_at": "2027-02-19T12:00:00.000000Z",
    "revoked_at": None,
    "last_used_at": None,
    "standing": "active",
}
ACTION: dict[str, Any] = {
    "kind": "action",
    "action_id": "1" * 32,
    "at": "2026-11-21T12:00:00.000000Z",
    "operator": "alice",
    "role": "admin",
    "proof": "token",
    "proof_id": "0123456789abcdef",
    "client": "192.0.2.7",
    "action": "operator-add",
    "target": "bob",
    "outcome": "done",
    "details": {},
}


def kms(*argv: str) -> int:
    return run(["operator", *argv])


def test_the_token_is_alone_on_standard_output(
    office: FakeOffice, capsys: pytest.CaptureFixture[str]
) -> None:
    office.answers["add"] = {"operator": ALICE, "token": TOKEN}
    assert kms("add", "alice", "--role", "operator") == 0
    said = capsys.readouterr()
    assert said.out == f"{TOKEN}\n"
    assert "shown only now" in said.err
    assert "alice: operator, active, token 0123456789abcdef, until 2027-02-19 12:00:00" in said.err
    assert TOKEN not in said.err
    assert office.asked("add") == [{"name": "alice", "role": Role.OPERATOR, "life": None, "subject": None}]


def test_a_certificates_operator_has_no_token(office: FakeOffice, capsys: pytest.CaptureFixture[str]) -> None:
    bob = {**ALICE, "name": "bob", "token_id": None, "subject": "CN=bob", "expires_at": None}
    office.answers["add"] = {"operator": bob, "token": None}
    assert kms("add", "bob", "--role", "viewer", "--certificate-subject", "CN=bob", "--life", "30d") == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "certificate CN=bob, without expiry" in said.err
    assert office.asked("add") == [
        {"name": "bob", "role": Role.VIEWER, "life": timedelta(days=30), "subject": "CN=bob"}
    ]


def test_for_programs_the_answer_is_one_document(
    office: FakeOffice, capsys: pytest.CaptureFixture[str]
) -> None:
    office.answers["add"] = {"operator": ALICE, "token": TOKEN}
    assert kms("add", "alice", "--role", "operator", "--json") == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == {"operator": ALICE, "token": TOKEN}
    assert said.err == ""


@pytest.mark.parametrize(
    "argv",
    [
        ["add", "alice"],
        ["add", "--role", "admin"],
        ["add", "alice", "--role", "root"],
        ["add", "alice", "--role", "admin", "--life", "forever"],
        ["add", "alice", "--role", "admin", "--life", "-1d"],
        ["revoke"],
        ["log", "--limit", "0"],
        [],
        ["promote", "alice"],
    ],
)
def test_wrong_use_is_said_and_nothing_is_asked(office: FakeOffice, argv: list[str]) -> None:
    assert kms(*argv) == 2
    assert office.calls == []


@pytest.mark.parametrize(
    ("refusal", "status"),
    [
        (Forbidden("alice is the last active admin", reason="last-admin"), 1),
        (OperatorExists("there is an active operator alice"), 1),
        (NotFound("there is no authentic operator of this name"), 2),
    ],
)
def test_a_refusal_says_why(
    office: FakeOffice,
    capsys: pytest.CaptureFixture[str],
    refusal: Forbidden | OperatorExists | NotFound,
    status: int,
) -> None:
    office.answers["revoke_operator"] = refusal
    assert kms("revoke", "alice") == status
    said = capsys.readouterr()
    assert refusal.detail in said.err
    assert said.out == ""
    assert kms("revoke", "alice", "--json") == status
    assert json.loads(capsys.readouterr().out)["error"]["code"] == refusal.code


def test_a_revocation_is_confirmed(office: FakeOffice, capsys: pytest.CaptureFixture[str]) -> None:
    office.answers["revoke_operator"] = {"operator": {**ALICE, "standing": "revoked"}}
    assert kms("revoke", "alice") == 0
    assert "alice: operator, revoked" in capsys.readouterr().out
    assert office.asked("revoke_operator") == [{"name": "alice"}]


def test_all_pages_are_listed(office: FakeOffice, capsys: pytest.CaptureFixture[str]) -> None:
    forged = {**dict.fromkeys(ALICE), "name": "mallory\x1b[2J", "standing": "not-authentic"}
    pages = {None: ([ALICE], "alice"), "alice": ([forged], None)}

    def page(after: str | None, limit: int) -> Any:
        operators, following = pages[after]
        return {"operators": operators, "next": following}

    office.answers["operators"] = page
    assert kms("list") == 0
    out = capsys.readouterr().out
    assert [line.split(":")[0] for line in out.splitlines()] == ["alice", "mallory\\x1b[2J"]
    assert "gives nobody access" in out
    assert kms("list", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"operators": [ALICE, forged]}


def test_an_empty_list_says_how_to_begin(office: FakeOffice, capsys: pytest.CaptureFixture[str]) -> None:
    office.answers["operators"] = {"operators": [], "next": None}
    assert kms("list") == 0
    assert "kms operator add" in capsys.readouterr().out


def test_the_log_is_as_long_as_wanted(office: FakeOffice, capsys: pytest.CaptureFixture[str]) -> None:
    unreadable = {"kind": "unreadable", "action_id": "2" * 32}

    def page(before: str | None, limit: int) -> Any:
        if before is None:
            return {"actions": [ACTION, {**ACTION, "outcome": "forbidden", "client": None}], "next": "x"}
        return {"actions": [unreadable, ACTION][:limit], "next": "y"}

    office.answers["actions"] = page
    assert kms("log", "--limit", "3") == 0
    assert capsys.readouterr().out.splitlines() == [
        "2026-11-21 12:00:00  alice (admin, token, 192.0.2.7): operator-add bob: done",
        "2026-11-21 12:00:00  alice (admin, token): operator-add bob: forbidden",
        f"an entry that cannot be read any more: {'2' * 32}",
    ]
    assert office.asked("actions") == [{"before": None, "limit": 3}, {"before": "x", "limit": 1}]
