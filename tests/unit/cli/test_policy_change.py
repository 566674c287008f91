"""``kms policy apply``, ``rollback``, ``revoke``: what is asked of the office, signed, and said."""

import json
from pathlib import Path
from typing import Any

import pytest

from kms.cli import run
from kms.encoding import b64url
from kms.errors import Forbidden, NotFound, PolicyConflict, PolicyGated, PolicyRefused
from kms.operators import Proof, Role
from kms.policy.history import Intent
from kms.policy.standing import with_revocation, with_standing_revocations
from kms.policy.statement import Statement
from kms.policy.trust import verify_policy_signature
from tests.fake_office import FakeOffice
from tests.unit.cli.policies import (
    CHIP_A,
    CHIP_B,
    IDENTITY,
    change_answer,
    diff_answer,
    files,
    outcome_answer,
    policy,
    proposal_answer,
    revision_answer,
    status_answer,
)

Captured = pytest.CaptureFixture[str]
OLD, NEW = policy(CHIP_A), policy(CHIP_A, CHIP_B)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """The folder of `NEW`."""
    (tmp_path / "policies").mkdir()
    for name, content in files(CHIP_A, CHIP_B).items():
        (tmp_path / "policies" / name).write_bytes(content)
    return "policies"


@pytest.fixture
def key(tmp_path: Path, capsys: Captured) -> str:
    assert run(["policy", "keygen", str(tmp_path / "alice.pem")]) == 0
    capsys.readouterr()
    return "alice.pem"


@pytest.fixture
def in_force(office: FakeOffice) -> FakeOffice:
    """An office where `OLD` is in force, and both revisions are known."""
    known = {each.digest: revision_answer(each) for each in (OLD, NEW)}
    office.answers["status"] = status_answer(OLD)
    office.answers["revision"] = lambda revision: known[revision]
    office.answers["apply"] = outcome_answer(OLD, NEW)
    return office


class TestApply:
    def test_what_is_in_force_when_it_begins_is_all_that_it_replaces(
        self, in_force: FakeOffice, folder: str, capsys: Captured
    ) -> None:
        assert run(["policy", "apply", folder, "--message", "one more chip"]) == 0
        assert in_force.asked("apply") == [
            {
                "new": files(CHIP_A, CHIP_B),
                "message": "one more chip",
                "expect": OLD.digest,
                "gate": None,
                "lift_revocations": False,
            }
        ]
        said = capsys.readouterr().out.splitlines()
        assert said[-1] == f"in force: {NEW.digest} (change 5)"
        assert all(line.startswith(("+ widens ", ". neither ")) for line in said[:-1])
        assert any(CHIP_B[:4] in line for line in said)

    def test_the_local_operator_may_do_all(self, in_force: FakeOffice, folder: str) -> None:
        run(["policy", "apply", folder])
        actor = in_force.calls[-1].actor
        assert (actor.role, actor.proof) == (Role.ADMIN, Proof.COMMAND_LINE)

    def test_the_first_policy_replaces_nothing(self, in_force: FakeOffice, folder: str) -> None:
        in_force.answers["status"] = status_answer(None)
        run(["policy", "apply", folder])
        assert in_force.asked("apply")[0]["expect"] == "none"

    def test_what_may_not_be_used_is_replaced_whatever_it_is(self, in_force: FakeOffice, folder: str) -> None:
        """Somebody edited the database by hand; the operators put things right."""
        in_force.answers["status"] = {**status_answer(None), "trusted": False}
        run(["policy", "apply", folder])
        assert in_force.asked("apply")[0]["expect"] is None

    def test_an_operator_may_say_what_must_be_in_force(self, in_force: FakeOffice, folder: str) -> None:
        run(["policy", "apply", folder, "--expect", NEW.digest])
        assert in_force.asked("apply")[0]["expect"] == NEW.digest
        assert in_force.asked("status") == []

    def test_the_second_of_two_is_told_what_changed(
        self, in_force: FakeOffice, folder: str, capsys: Captured
    ) -> None:
        in_force.answers["apply"] = PolicyConflict(
            "another policy came into force",
            details={
                "expected": NEW.digest,
                "active": change_answer(OLD, author="bob (token)"),
                "diff": diff_answer(NEW, OLD),
            },
        )
        assert run(["policy", "apply", folder]) == 1
        said = capsys.readouterr().err
        assert "another policy came into force" in said
        assert "by bob (token)" in said
        assert "- narrows " in said
        assert CHIP_B[:4] in said

    @pytest.mark.parametrize(
        ("options", "days"),
        [
            (["--gate"], 30),
            (["--gate", "7d"], 7),
            ([], None),
            (["--gate", "7d", "--allow-refusals"], None),
        ],
    )
    def test_the_gate(self, in_force: FakeOffice, folder: str, options: list[str], days: int | None) -> None:
        assert run(["policy", "apply", folder, *options]) == 0
        gate = in_force.asked("apply")[0]["gate"]
        assert (gate if gate is None else gate.days) == days

    def test_a_closed_gate_names_who_would_be_refused(
        self, in_force: FakeOffice, folder: str, capsys: Captured
    ) -> None:
        group = {
            "app_id": "5a" * 20,
            "app": "payments",
            "image": "os-1",
            "chip_id": CHIP_A,
            "reasons": ["tcb-reported-too-low"],
            "guests": 2,
            "records": 3,
            "last_seen": "2026-11-21T08:00:00.000000Z",
            "example": "01" * 16,
        }
        what_if = {
            "since": "2026-10-23T08:00:00.000000Z",
            "judged": 3,
            "unjudged": 0,
            "newly_refused": [group],
            "newly_allowed": [],
            "still_refused": 0,
            "still_allowed": 0,
            "complete": True,
        }
        in_force.answers["apply"] = PolicyGated("it would refuse guests", details={"what_if": what_if})
        assert run(["policy", "apply", folder, "--gate"]) == 1
        said = capsys.readouterr().err
        assert "app payments, image os-1" in said
        assert "tcb-reported-too-low" in said

    def test_errors_of_the_policy_are_told_a_line_each(
        self, in_force: FakeOffice, folder: str, capsys: Captured
    ) -> None:
        finding = {
            "file": "chips.yaml",
            "line": 4,
            "column": 5,
            "severity": "error",
            "message": "not 64 bytes",
        }
        refusal = PolicyRefused("the policy has errors", details={"findings": [finding]})
        in_force.answers["apply"] = refusal
        assert run(["policy", "apply", folder]) == 1
        assert "\nchips.yaml:4:5: error: not 64 bytes\n" in capsys.readouterr().err
        assert run(["policy", "apply", folder, "--json"]) == 1
        assert json.loads(capsys.readouterr().out) == {
            "error": {
                "code": "policy-invalid",
                "reason": "policy-invalid",
                "detail": "the policy has errors",
                "details": {"findings": [finding]},
            }
        }

    @pytest.mark.parametrize(
        ("refusal", "status"),
        [(Forbidden("no"), 1), (PolicyConflict("no"), 1), (PolicyRefused("no"), 1), (NotFound("no"), 2)],
    )
    def test_exit_status_of_refusals(
        self, in_force: FakeOffice, folder: str, refusal: Exception, status: int
    ) -> None:
        in_force.answers["apply"] = refusal
        assert run(["policy", "apply", folder]) == status

    def test_a_known_revision_is_applied_by_its_name(self, in_force: FakeOffice) -> None:
        assert run(["policy", "apply", NEW.digest]) == 0
        assert in_force.asked("apply")[0]["new"] == NEW.digest

    def test_unsigned_it_waits_and_says_what_to_run(
        self, in_force: FakeOffice, folder: str, capsys: Captured
    ) -> None:
        in_force.answers["apply"] = outcome_answer(
            OLD, NEW, proposal=proposal_answer(OLD, NEW, signed_by=("bob",))
        )
        assert run(["policy", "apply", folder]) == 1
        said = capsys.readouterr().out
        assert "1 of 2 signed (bob)" in said
        assert f"kms policy approve {NEW.digest} --key FILE" in said

    def test_signed_by_the_last_one_needed_it_comes_into_force(
        self, in_force: FakeOffice, folder: str, key: str
    ) -> None:
        waiting = outcome_answer(OLD, NEW, proposal=proposal_answer(OLD, NEW, signed_by=("bob",)))
        answers = iter([waiting, outcome_answer(OLD, NEW)])
        in_force.answers["apply"] = lambda **_: next(answers)
        in_force.answers["sign"] = proposal_answer(OLD, NEW, signed_by=("alice", "bob"))
        assert run(["policy", "apply", folder, "--key", key]) == 0
        (signed,) = in_force.asked("sign")
        statement = Statement(
            revision=NEW.digest,
            sequence=5,
            previous=OLD.digest,
            kms_identity=IDENTITY,
            intent=Intent.WIDEN,
        )
        assert verify_policy_signature(statement, signed["signature"])
        assert [each["expect"] for each in in_force.asked("apply")] == [OLD.digest] * 2

    def test_a_key_that_nothing_waited_for_is_said(
        self, in_force: FakeOffice, folder: str, key: str, capsys: Captured
    ) -> None:
        """A KMS without a trust file: the operator would think that the policy is signed."""
        assert run(["policy", "apply", folder, "--key", key]) == 0
        assert "the key was not used" in capsys.readouterr().out

    def test_refusals_are_only_allowed_where_there_is_a_gate(
        self, in_force: FakeOffice, folder: str, capsys: Captured
    ) -> None:
        assert run(["policy", "apply", folder, "--allow-refusals"]) == 2
        assert "--allow-refusals goes with --gate" in capsys.readouterr().err
        assert in_force.calls == []

    def test_a_gate_that_cannot_judge_all_says_so(
        self, in_force: FakeOffice, folder: str, capsys: Captured
    ) -> None:
        in_force.answers["apply"] = PolicyGated(
            "there are more records than can be judged: ask for a shorter time", reason="too-many-records"
        )
        assert run(["policy", "apply", folder, "--gate"]) == 1
        assert capsys.readouterr().err == (
            "kms policy: policy-gated: there are more records than can be judged: ask for a shorter time\n"
        )

    def test_signed_but_not_by_enough_it_still_waits(
        self, in_force: FakeOffice, folder: str, key: str, capsys: Captured
    ) -> None:
        in_force.answers["apply"] = outcome_answer(OLD, NEW, proposal=proposal_answer(OLD, NEW))
        in_force.answers["sign"] = proposal_answer(OLD, NEW, signed_by=("alice",))
        assert run(["policy", "apply", folder, "--key", key]) == 1
        assert "1 of 2 signed (alice)" in capsys.readouterr().out
        assert len(in_force.asked("apply")) == 1


class TestNothingElseIsSigned:
    """Whoever owns the server, or its database, must not get a signature that the operator did not mean."""

    def refused(self, office: FakeOffice, proposal: Any, folder: str, key: str, *more: str) -> None:
        office.answers["apply"] = outcome_answer(OLD, NEW, proposal=proposal)
        assert run(["policy", "apply", folder, "--key", key, *more]) == 1
        assert office.asked("sign") == []

    def test_not_another_revision(
        self, in_force: FakeOffice, folder: str, key: str, capsys: Captured
    ) -> None:
        other = policy(CHIP_A, CHIP_B, "0c" * 64)
        self.refused(in_force, proposal_answer(OLD, other), folder, key)
        assert "what was meant is" in capsys.readouterr().err

    def test_not_a_widening_that_is_called_narrowing(
        self, in_force: FakeOffice, folder: str, key: str
    ) -> None:
        """One signature is enough to narrow."""
        self.refused(in_force, proposal_answer(OLD, NEW, intent=Intent.NARROW), folder, key)

    def test_not_after_documents_that_are_not_the_previous_revision(
        self, in_force: FakeOffice, folder: str, key: str
    ) -> None:
        """With another past, the same policy would seem to narrow."""
        forged = revision_answer(policy(CHIP_A, CHIP_B, "0c" * 64))
        in_force.answers["revision"] = {**forged, "revision": OLD.digest}
        in_force.answers["apply"] = outcome_answer(
            OLD, NEW, proposal=proposal_answer(OLD, NEW, intent=Intent.NARROW)
        )
        assert run(["policy", "apply", folder, "--key", key]) == 2
        assert in_force.asked("sign") == []

    def test_not_a_proposal_whose_time_has_passed(self, in_force: FakeOffice, folder: str, key: str) -> None:
        self.refused(in_force, proposal_answer(OLD, NEW, stale=True), folder, key)

    def test_not_for_another_kms_than_the_one_that_is_named(
        self, in_force: FakeOffice, folder: str, key: str
    ) -> None:
        self.refused(in_force, proposal_answer(OLD, NEW), folder, key, "--identity", b64url(b"o" * 32))


class TestPartsOfNames:
    """Twelve digits name a revision that was in force, where nothing is signed by that."""

    PART = OLD.digest[:19]

    @pytest.fixture
    def known(self, in_force: FakeOffice, capsys: Captured) -> FakeOffice:
        first = change_answer(OLD, sequence=1)
        second = change_answer(NEW, sequence=2, previous=OLD.digest)
        in_force.answers["history"] = {"changes": [second, first], "next": None}
        in_force.answers["diff"] = diff_answer(OLD, NEW)
        in_force.answers["rollback"] = outcome_answer(NEW, OLD)
        return in_force

    @pytest.mark.parametrize("part", [PART, PART.removeprefix("sha256:"), OLD.digest.removeprefix("sha256:")])
    def test_wherever_a_revision_is_taken(self, known: FakeOffice, part: str) -> None:
        assert run(["policy", "show", part]) == 0
        assert run(["policy", "rollback", part]) == 0
        assert run(["policy", "apply", part]) == 0
        assert run(["policy", "diff", part, NEW.digest[:24]]) == 0
        assert run(["policy", "diff", NEW.digest, "--from", part]) == 0
        assert [each["revision"] for each in known.asked("revision")] == [OLD.digest]
        assert [each["revision"] for each in known.asked("rollback")] == [OLD.digest]
        assert [each["new"] for each in known.asked("apply")] == [OLD.digest]
        assert known.asked("diff") == [{"old": OLD.digest, "new": NEW.digest}] * 2

    def test_what_is_only_known_as_the_one_before(self, known: FakeOffice) -> None:
        """The change that put it in force is further back than is looked."""
        changes = [change_answer(NEW, sequence=900, previous=OLD.digest)] * 500
        known.answers["history"] = {"changes": changes, "next": 401}
        assert run(["policy", "show", self.PART]) == 0
        assert len(known.asked("history")) == 1

    def test_it_begins_no_revision(self, known: FakeOffice, capsys: Captured) -> None:
        assert run(["policy", "show", "0" * 12]) == 2
        assert f"begins with sha256:{'0' * 12}" in capsys.readouterr().err

    def test_it_begins_two_revisions(self, known: FakeOffice, capsys: Captured) -> None:
        other = f"{self.PART}{'0' * 52}"
        known.answers["history"] = {
            "changes": [change_answer(OLD), change_answer(OLD, previous=other)],
            "next": None,
        }
        assert run(["policy", "rollback", self.PART]) == 2
        said = capsys.readouterr().err
        assert "the beginning of 2 revisions" in said
        assert OLD.digest in said
        assert other in said
        assert known.asked("rollback") == []

    @pytest.mark.parametrize("part", [OLD.digest[:18], "sha256:", f"{OLD.digest}0", OLD.digest.upper()])
    @pytest.mark.parametrize("command", ["show", "rollback", "apply", "diff", "what-if"])
    def test_what_is_no_part(self, known: FakeOffice, command: str, part: str) -> None:
        assert run(["policy", command, part]) == 2
        assert known.calls == []

    def test_a_folder_that_is_called_so_is_a_folder(self, known: FakeOffice) -> None:
        Path("0123456789ab").mkdir()
        (Path("0123456789ab") / "chips.yaml").write_bytes(files(CHIP_A, CHIP_B)["chips.yaml"])
        assert run(["policy", "apply", "0123456789ab"]) == 0
        assert known.asked("apply")[0]["new"] == files(CHIP_A, CHIP_B)

    @pytest.mark.parametrize("command", ["apply", "rollback"])
    def test_what_is_signed_is_named_whole(
        self, known: FakeOffice, key: str, capsys: Captured, command: str
    ) -> None:
        """A server could answer with a revision that was made to begin so."""
        assert run(["policy", command, self.PART, "--key", key]) == 2
        assert "named whole" in capsys.readouterr().err
        assert known.calls == []


class TestRollback:
    def test_it_names_the_revision_and_says_why(self, in_force: FakeOffice) -> None:
        in_force.answers["rollback"] = outcome_answer(NEW, OLD)
        assert run(["policy", "rollback", OLD.digest, "--message", "it broke"]) == 0
        assert in_force.asked("rollback") == [
            {"revision": OLD.digest, "message": "it broke", "expect": OLD.digest}
        ]

    @pytest.mark.parametrize("keeps_revocation", [True, False])
    def test_it_is_signed_only_with_the_revocations_that_stand(
        self, in_force: FakeOffice, key: str, keeps_revocation: bool
    ) -> None:
        now, _ = with_revocation(NEW, "chip", CHIP_B, reason="stolen")
        united = with_standing_revocations(OLD, now, None)
        assert united.digest != OLD.digest
        known = {each.digest: revision_answer(each) for each in (OLD, now)}
        in_force.answers["revision"] = lambda revision: known[revision]
        proposal = proposal_answer(now, united if keeps_revocation else OLD, needed=1)
        done = outcome_answer(now, united)
        answers = iter([outcome_answer(now, united, proposal=proposal), done])
        in_force.answers["rollback"] = lambda **_: next(answers)
        in_force.answers["sign"] = {**proposal, "ready": True}
        status = run(["policy", "rollback", OLD.digest, "--key", key])
        assert (status, len(in_force.asked("sign"))) == ((0, 1) if keeps_revocation else (1, 0))


class TestRevoke:
    def test_one_command_narrows_at_once(self, in_force: FakeOffice, key: str) -> None:
        after, _ = with_revocation(OLD, "chip", CHIP_B, reason="stolen")
        proposal = proposal_answer(OLD, after, needed=1)
        answers = iter([outcome_answer(OLD, after, proposal=proposal), outcome_answer(OLD, after)])
        in_force.answers["revoke"] = lambda **_: next(answers)
        in_force.answers["sign"] = {**proposal, "ready": True}
        assert run(["policy", "revoke", "chip", CHIP_B, "--reason", "stolen", "--key", key]) == 0
        assert in_force.asked("revoke")[0] == {"kind": "chip", "value": CHIP_B, "reason": "stolen"}

    def test_another_revocation_than_the_one_that_was_meant_is_not_signed(
        self, in_force: FakeOffice, key: str
    ) -> None:
        after, _ = with_revocation(OLD, "chip", CHIP_A, reason="stolen")
        in_force.answers["revoke"] = outcome_answer(
            OLD, after, proposal=proposal_answer(OLD, after, needed=1)
        )
        assert run(["policy", "revoke", "chip", CHIP_B, "--reason", "stolen", "--key", key]) == 1
        assert in_force.asked("sign") == []

    def test_a_reason_is_needed(self, in_force: FakeOffice) -> None:
        assert run(["policy", "revoke", "chip", CHIP_B]) == 2
        assert in_force.calls == []

    def test_a_value_of_another_kind_is_said_without_a_place(
        self, in_force: FakeOffice, capsys: Captured
    ) -> None:
        """Nobody wrote that document, so there is no line to look at."""
        finding = {
            "file": "(stored revision)",
            "line": 1,
            "column": 1,
            "severity": "error",
            "message": "there is no image `nope`",
        }
        in_force.answers["revoke"] = PolicyRefused(
            "nope: there is no image `nope`", details={"findings": [finding]}
        )
        assert run(["policy", "revoke", "image", "nope", "--reason", "x"]) == 1
        assert capsys.readouterr().err == "kms policy: policy-invalid: nope: there is no image `nope`\n"

    def test_a_value_that_the_server_takes_and_this_machine_does_not_is_not_signed(
        self, in_force: FakeOffice, key: str, capsys: Captured
    ) -> None:
        in_force.answers["revoke"] = outcome_answer(OLD, NEW, proposal=proposal_answer(OLD, NEW, needed=1))
        assert run(["policy", "revoke", "chip", "nope", "--reason", "x", "--key", key]) == 1
        assert in_force.asked("sign") == []
        said = capsys.readouterr().err
        assert said.startswith("kms policy: not-signed: nope: ")
        assert "stored revision" not in said

    def test_only_what_can_be_revoked(self, in_force: FakeOffice) -> None:
        assert run(["policy", "revoke", "guest", CHIP_B, "--reason", "x"]) == 2
