"""``kms policy lint``, ``diff``, ``status``, ``history``, ``show``."""

import json
from pathlib import Path
from typing import Any

import pytest

from kms.cli import run
from kms.policy.revision import Revision
from kms.policy_folder.reading import read_folder
from tests.fake_office import FakeOffice
from tests.unit.cli.policies import (
    CHIP_A,
    CHIP_B,
    change_answer,
    diff_answer,
    files,
    policy,
    revision_answer,
    status_answer,
)

Captured = pytest.CaptureFixture[str]
OLD, NEW = policy(CHIP_A), policy(CHIP_A, CHIP_B)


def write(folder: str, contents: dict[str, bytes]) -> str:
    Path(folder).mkdir()
    for name, content in contents.items():
        (Path(folder) / name).write_bytes(content)
    return folder


class TestLint:
    def test_it_asks_nobody(self, office: FakeOffice, capsys: Captured) -> None:
        assert run(["policy", "lint", write("policies", files(CHIP_A))]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == f"revision {OLD.digest}"
        assert office.calls == []

    def test_findings_are_at_the_file_in_the_folder(self, office: FakeOffice, capsys: Captured) -> None:
        folder = write("policies", {"chips.yaml": b"kind: chips\nname: rack\nchips: [12]\n"})
        assert run(["policy", "lint", folder]) == 1
        assert capsys.readouterr().out.startswith("chips.yaml:3:9: error: ")
        assert run(["policy", "lint", folder, "--json"]) == 1
        report = json.loads(capsys.readouterr().out)
        assert (report["valid"], report["revision"], report["errors"]) == (False, None, 1)
        assert report["findings"][0]["file"] == "chips.yaml"


class TestDiff:
    def test_a_folder_with_what_is_in_force(self, office: FakeOffice, capsys: Captured) -> None:
        office.answers["diff"] = diff_answer(OLD, NEW)
        assert run(["policy", "diff", write("policies", files(CHIP_A, CHIP_B))]) == 0
        assert office.asked("diff") == [{"old": None, "new": files(CHIP_A, CHIP_B)}]
        assert "+ widens " in capsys.readouterr().out

    def test_a_folder_with_an_older_revision(self, office: FakeOffice) -> None:
        office.answers["diff"] = diff_answer(OLD, NEW)
        folder = write("policies", files(CHIP_A, CHIP_B))
        assert run(["policy", "diff", folder, "--from", OLD.digest]) == 0
        assert office.asked("diff")[0]["old"] == OLD.digest

    def test_two_revisions(self, office: FakeOffice) -> None:
        office.answers["diff"] = diff_answer(OLD, NEW)
        assert run(["policy", "diff", OLD.digest, NEW.digest]) == 0
        assert office.asked("diff") == [{"old": OLD.digest, "new": NEW.digest}]

    def test_no_difference(self, office: FakeOffice, capsys: Captured) -> None:
        office.answers["diff"] = diff_answer(OLD, OLD)
        assert run(["policy", "diff", OLD.digest]) == 0
        assert capsys.readouterr().out == "no difference\n"

    @pytest.mark.parametrize(
        "argv",
        [["policies", NEW.digest], [OLD.digest, NEW.digest, "--from", OLD.digest], ["--from", "sha256:12"]],
    )
    def test_wrong_use(self, office: FakeOffice, argv: list[str]) -> None:
        assert run(["policy", "diff", *argv]) == 2
        assert office.calls == []


class TestHistory:
    def test_who_when_why_and_who_signed(self, office: FakeOffice, capsys: Captured) -> None:
        signature = {"key": "alice", "format": "ed25519", "public_key": "", "valid": True}
        forged = {**signature, "key": "bob", "valid": False}
        unknown = {**signature, "key": None}
        change = change_answer(NEW, signatures=[signature, forged, unknown])
        office.answers["history"] = {"changes": [change], "next": None}
        assert run(["policy", "history"]) == 0
        said = capsys.readouterr().out
        assert f"   4  {NEW.digest}\n" in said
        assert "2026-11-22 08:00:00  apply, widens, by alice (token)" in said
        assert "signed by alice\n" in said
        assert "bob" not in said

    def test_it_turns_pages_until_it_has_enough(self, office: FakeOffice, capsys: Captured) -> None:
        def page(before: int | None, limit: int) -> Any:
            top = 1200 if before is None else before - 1
            changes = [change_answer(NEW, sequence=top - number) for number in range(limit)]
            return {"changes": changes, "next": top - limit + 1}

        office.answers["history"] = page
        assert run(["policy", "history", "--limit", "600", "--json"]) == 0
        changes = json.loads(capsys.readouterr().out)["changes"]
        assert [each["sequence"] for each in changes] == list(range(1200, 600, -1))
        assert [each["limit"] for each in office.asked("history")] == [500, 100]

    def test_before_the_first(self, office: FakeOffice, capsys: Captured) -> None:
        office.answers["history"] = {"changes": [], "next": None}
        assert run(["policy", "history"]) == 0
        assert capsys.readouterr().out == "no policy was ever in force\n"


class TestStatus:
    def test_what_is_in_force_who_signs_and_what_waits(self, office: FakeOffice, capsys: Captured) -> None:
        office.answers["status"] = {
            **status_answer(NEW),
            "documents": {"app": 2, "chips": 1},
            "trust": {"widen": 2, "narrow": 1, "keys": ["alice", "bob"]},
            "proposals": 3,
        }
        assert run(["policy", "status"]) == 0
        assert capsys.readouterr().out.splitlines() == [
            "in force:",
            f"   4  {NEW.digest}",
            "      2026-11-22 08:00:00  apply, widens, by alice (token)",
            "      first",
            "documents: 2 app, 1 chips",
            "signatures: 2 to widen, 1 to narrow, of alice, bob",
            "waiting: 3 proposal(s), see kms policy proposals",
        ]

    def test_without_a_trust_file(self, office: FakeOffice, capsys: Captured) -> None:
        office.answers["status"] = status_answer(NEW)
        assert run(["policy", "status"]) == 0
        said = capsys.readouterr().out
        assert said.endswith("signatures: none are asked for (no trust file)\nwaiting: nothing\n")

    def test_before_the_first(self, office: FakeOffice, capsys: Captured) -> None:
        office.answers["status"] = status_answer(None)
        assert run(["policy", "status"]) == 0
        assert capsys.readouterr().out.startswith("no policy is in force: nobody gets a key\n")

    def test_what_may_not_be_used_is_said_first(self, office: FakeOffice, capsys: Captured) -> None:
        why = "change 7 is older than one that this KMS has seen"
        office.answers["status"] = {**status_answer(None), "trusted": False, "untrusted": why}
        assert run(["policy", "status"]) == 1
        first, second, *_ = capsys.readouterr().out.splitlines()
        assert first.startswith("NOT TRUSTED: ")
        assert second.strip() == why

    def test_json_is_the_answer(self, office: FakeOffice, capsys: Captured) -> None:
        office.answers["status"] = status_answer(NEW)
        assert run(["policy", "status", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == status_answer(NEW)


class TestShow:
    def test_what_is_in_force_if_nothing_is_named(self, office: FakeOffice) -> None:
        office.answers["status"] = status_answer(OLD)
        office.answers["revision"] = revision_answer(OLD, files(CHIP_A))
        assert run(["policy", "show"]) == 0
        assert office.asked("revision") == [{"revision": OLD.digest}]

    def test_nothing_is_in_force(self, office: FakeOffice, capsys: Captured) -> None:
        office.answers["status"] = status_answer(None)
        assert run(["policy", "show"]) == 2
        assert "no policy is in force" in capsys.readouterr().err

    def test_files_are_written_as_they_were(self, office: FakeOffice, capsys: Captured) -> None:
        written = files(CHIP_A, **{"deep/er.yaml": b"# nothing\n"})
        office.answers["revision"] = revision_answer(OLD, written)
        assert run(["policy", "show", OLD.digest, "--files", "restored"]) == 0
        assert read_folder(Path("restored")) == written

    def test_they_are_shown(self, office: FakeOffice, capsys: Captured) -> None:
        office.answers["revision"] = revision_answer(OLD, files(CHIP_A))
        assert run(["policy", "show", OLD.digest]) == 0
        assert capsys.readouterr().out == "# chips.yaml\n" + files(CHIP_A)["chips.yaml"].decode()

    def test_files_that_are_another_policy_are_not_shown(self, office: FakeOffice, capsys: Captured) -> None:
        """Nothing vouches for them, and operators would review what is not in force."""
        office.answers["revision"] = revision_answer(OLD, files(CHIP_A, CHIP_B))
        assert run(["policy", "show", OLD.digest, "--files", "restored"]) == 0
        shown = read_folder(Path("restored"))
        assert list(shown) == ["policy.yaml"]
        assert Revision.from_files(shown, development=False).digest == OLD.digest

    def test_documents_that_are_another_policy_are_an_error(self, office: FakeOffice) -> None:
        office.answers["revision"] = revision_answer(NEW)
        assert run(["policy", "show", OLD.digest, "--files", "restored"]) == 2
        assert not Path("restored").exists()

    @pytest.mark.parametrize(
        "name",
        [
            "/etc/cron.d/kms.yaml",
            "../outside.yaml",
            "a/../../outside.yaml",
            "./a.yaml",
            "a//b.yaml",
            ".hidden.yaml",
            "a/.ssh/b.yaml",
            "authorized_keys",
            "a\\b.yaml",
            "a\x00.yaml",
            "a\n.yaml",
            "",
            ".yaml",
        ],
    )
    def test_lesson_37_a_server_chooses_no_place_to_write(self, office: FakeOffice, name: str) -> None:
        office.answers["revision"] = revision_answer(OLD, files(CHIP_A, **{name: b"# nothing\n"}))
        before = set(Path("..").iterdir())
        assert run(["policy", "show", OLD.digest, "--files", "restored"]) == 2
        assert not Path("restored").exists()
        assert set(Path("..").iterdir()) == before

    def test_what_is_there_is_not_overwritten(self, office: FakeOffice, capsys: Captured) -> None:
        write("restored", {"mine.yaml": b"mine"})
        office.answers["revision"] = revision_answer(OLD, files(CHIP_A))
        assert run(["policy", "show", OLD.digest, "--files", "restored"]) == 2
        assert "not empty" in capsys.readouterr().err
        assert read_folder(Path("restored")) == {"mine.yaml": b"mine"}


def test_what_a_file_says_moves_no_cursor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a\x1b[2J.yaml").write_text('kind: chips\nname: a\nchips: []\n"x\\e[2J\u202e": 1\n')
    assert run(["policy", "lint", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err
    assert "\u202e" not in printed.out + printed.err
