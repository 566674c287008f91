"""``kms policy explain`` and ``what-if``."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from kms.cli import run
from kms.encoding import b64url
from tests.fake_office import FakeOffice
from tests.unit.cli.policies import CHIP_A, files

Captured = pytest.CaptureFixture[str]
RELEASE = "019f3c8e5a7b7d10a2c4e6f8091b2d3e"


def check(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "passed": True,
        "detail": f"{name} is fine",
        "reason": None,
        "wanted": None,
        "says": None,
        **changes,
    }


DENIED: Any = {
    "release_id": RELEASE,
    "decided_at": "2026-11-22T08:00:00.123456Z",
    "decision": "deny",
    "code": "policy-denied",
    "policy_revision": "sha256:" + "38" * 32,
    "checks": [
        check("app"),
        check(
            "chip",
            passed=False,
            detail="chip 0b0b… asked",
            reason="chip-not-listed",
            wanted="one of rack",
            says={
                "document": "app payments",
                "member": "chips",
                "file": "app.yaml",
                "line": 7,
                "column": 9,
            },
        ),
        check("compose", says={"document": "app payments", "member": "compose", "file": None, "line": None,
                               "column": None}),
    ],
    "nearest": None,
    "boot_info": None,
}  # fmt: skip
ALLOWED: Any = {**DENIED, "decision": "allow", "code": None, "checks": [check("app")]}


class TestExplain:
    def test_what_failed_comes_first_with_what_was_wanted_and_where(
        self, office: FakeOffice, capsys: Captured
    ) -> None:
        office.answers["explain"] = DENIED
        assert run(["policy", "explain", RELEASE]) == 1
        assert capsys.readouterr().out.splitlines() == [
            "DENIED: policy-denied",
            f"  decided 2026-11-22 08:00:00 by {DENIED['policy_revision']}",
            "FAIL  chip-not-listed: chip 0b0b… asked",
            "      wanted  one of rack",
            "      says    app.yaml:7:9 app payments.chips",
            "pass  app: app is fine",
            "pass  compose: compose is fine (app payments.compose)",
        ]

    def test_allowed(self, office: FakeOffice, capsys: Captured) -> None:
        office.answers["explain"] = ALLOWED
        assert run(["policy", "explain", RELEASE]) == 0
        assert capsys.readouterr().out.startswith("allowed\n")

    def test_lesson_20_the_nearest_image_is_named(self, office: FakeOffice, capsys: Captured) -> None:
        office.answers["explain"] = {**DENIED, "nearest": "os-1, but for its kernel"}
        run(["policy", "explain", RELEASE])
        assert "nearest  os-1, but for its kernel\n" in capsys.readouterr().out

    def test_json_is_the_answer(self, office: FakeOffice, capsys: Captured) -> None:
        office.answers["explain"] = DENIED
        assert run(["policy", "explain", RELEASE, "--json"]) == 1
        assert json.loads(capsys.readouterr().out) == DENIED

    @pytest.mark.parametrize("whole", [False, True], ids=["evidence", "request body"])
    def test_evidence_in_a_file(self, office: FakeOffice, whole: bool) -> None:
        office.answers["verify"] = {**ALLOWED, "release_id": None, "decided_at": None}
        evidence = {"tee": "sev-snp", "report": "AA"}
        body = {"request": b64url(b"{}"), "evidence": evidence} if whole else evidence
        Path("evidence.json").write_text(json.dumps(body))
        assert run(["policy", "explain", "evidence.json", "--at", "2026-11-22T08:00:00Z"]) == 0
        assert office.asked("verify") == [
            {
                "evidence": evidence,
                "request": b"{}" if whole else None,
                "at": datetime(2026, 11, 22, 8, tzinfo=UTC),
            }
        ]

    def test_a_file_that_is_named_like_an_id_is_a_file(self, office: FakeOffice) -> None:
        office.answers["verify"] = ALLOWED
        Path(RELEASE).write_text('{"tee": "sev-snp"}')
        assert run(["policy", "explain", RELEASE]) == 0
        assert office.asked("explain") == []

    @pytest.mark.parametrize("content", ["", "[]", '{"evidence": {}, "request": "*"}', '{"a": 1, "a": 2}'])
    def test_a_file_that_is_no_evidence(self, office: FakeOffice, content: str) -> None:
        Path("evidence.json").write_text(content)
        assert run(["policy", "explain", "evidence.json"]) == 2
        assert office.calls == []

    def test_a_recorded_decision_has_its_own_time(self, office: FakeOffice) -> None:
        assert run(["policy", "explain", RELEASE, "--at", "2026-11-22T08:00:00Z"]) == 2
        assert office.calls == []

    @pytest.mark.parametrize("what", ["0123", RELEASE[:-1], RELEASE.upper(), "x" * 5000])
    def test_neither_an_id_nor_a_file(self, office: FakeOffice, capsys: Captured, what: str) -> None:
        assert run(["policy", "explain", what]) == 2
        assert f"{what}: neither a request id (32 hex digits) nor a file\n" in capsys.readouterr().err
        assert office.calls == []


def group(**changes: Any) -> dict[str, Any]:
    return {
        "app_id": "5a" * 20,
        "app": "payments",
        "image": "os-1",
        "chip_id": CHIP_A,
        "reasons": ["tcb-reported-too-low"],
        "guests": 2,
        "records": 3,
        "last_seen": "2026-11-21T08:00:00.000000Z",
        "example": RELEASE,
        **changes,
    }


def rehearsal(**changes: Any) -> dict[str, Any]:
    return {
        "revision": "sha256:" + "38" * 32,
        "since": "2026-10-23T08:00:00.000000Z",
        "judged": 5,
        "unjudged": 0,
        "newly_refused": [],
        "newly_allowed": [],
        "still_refused": 1,
        "still_allowed": 1,
        "complete": True,
        **changes,
    }


class TestWhatIf:
    @pytest.fixture
    def folder(self, office: FakeOffice) -> str:
        Path("policies").mkdir()
        for name, content in files(CHIP_A).items():
            (Path("policies") / name).write_bytes(content)
        return "policies"

    def test_somebody_would_newly_be_refused(self, office: FakeOffice, folder: str, capsys: Captured) -> None:
        office.answers["what_if"] = rehearsal(newly_refused=[group()])
        assert run(["policy", "what-if", folder, "--since", "12h"]) == 1
        assert office.asked("what_if") == [{"new": files(CHIP_A), "since": timedelta(hours=12)}]
        said = capsys.readouterr().out
        assert said.startswith("newly REFUSED:\n  app payments, image os-1, chip 0a0a")
        assert f"2 guest(s), 3 record(s), last 2026-11-21 08:00:00, for example {RELEASE}" in said

    def test_nobody_would(self, office: FakeOffice, folder: str, capsys: Captured) -> None:
        office.answers["what_if"] = rehearsal(newly_allowed=[group(app=None, image=None, chip_id=None)])
        assert run(["policy", "what-if", folder]) == 0
        assert office.asked("what_if")[0]["since"] == timedelta(days=30)
        said = capsys.readouterr().out
        assert f"newly allowed:\n  app {'5a' * 20}, image an unknown image, no chip: " in said
        assert said.endswith("nobody is newly refused\n")

    def test_what_was_not_judged_is_said(self, office: FakeOffice, folder: str, capsys: Captured) -> None:
        office.answers["what_if"] = rehearsal(unjudged=7, complete=False)
        run(["policy", "what-if", folder])
        said = capsys.readouterr().out
        assert "7 cannot be judged again" in said
        assert "NOT ALL" in said

    @pytest.mark.parametrize("since", ["30", "d", "-1d", "0d", "1y", "1.5h", "99999d", "٣d", ""])
    def test_no_time(self, office: FakeOffice, folder: str, since: str) -> None:
        assert run(["policy", "what-if", folder, "--since", since]) == 2
        assert office.calls == []
