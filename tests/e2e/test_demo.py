"""`kms demo` as a newcomer runs it: a process, a server, a guest, attackers, and nothing left behind."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, cast

import httpx2
import pytest

from kms.cli import demo_outage, demo_server, demo_story
from kms.cli.demo_attacker import Attacker
from kms.cli.demo_attacks import Attack
from kms.cli.demo_outage_scene import Outcome, prepare_open_policy
from kms.cli.demo_outage_steps import Step, Steps
from kms.cli.demo_scene import ImageFiles, SceneBroken, prepare_policy
from kms.cli.demo_show import Show
from kms.guest.errors import Problem
from kms.guest.transport import Answer
from kms.packaged import packaged_folder
from kms.simulator.hierarchy import AmdHierarchy
from kms.simulator.kds import SimulatedKds
from kms.snp.product import Product

# One worker runs them all, so that there is one demo (--dist loadgroup).
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("demo")]

_WITHIN = 180  # seconds, on a machine that does other things as well
_EXPECTED = {
    "replayed challenge": (409, "challenge-used"),
    "another guest's report": (403, "evidence-untrusted"),
    "request altered after signing": (403, "evidence-untrusted"),
    "forged report": (403, "evidence-untrusted"),
    "unknown root": (403, "evidence-untrusted"),
    "report requested by the host": (403, "evidence-untrusted"),
    "app document swapped": (403, "evidence-untrusted"),
    "tampered kernel": (403, "measurement-unknown"),
    "changed command line": (403, "measurement-unknown"),
    "other guest features": (403, "measurement-unknown"),
    "debug policy": (403, "policy-denied"),
    "old TCB": (403, "policy-denied"),
    "chip not listed": (403, "policy-denied"),
    "another workload": (403, "policy-denied"),
    "image that does not enforce its document": (403, "policy-denied"),
    "VMPL 3": (403, "policy-denied"),
    "key not allowed": (403, "policy-denied"),
    "epoch that does not exist": (403, "epoch-unavailable"),
    "invented challenge": (400, "challenge-invalid"),
    "cut report": (400, "malformed-evidence"),
    "expired challenge": (410, "challenge-expired"),
}
# 32 bytes or more, in hex or base64.
_LONG = re.compile(r"[0-9a-f]{64}|[A-Za-z0-9+/_-]{43}")


@dataclass(frozen=True)
class Run:
    status: int
    out: str
    err: str
    folder: Path

    @property
    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.out)
        return document


def environment(folder: Path) -> Mapping[str, str]:
    # A setting of a real installation must not reach the demo.
    return os.environ | {"TMPDIR": str(folder), "KMS_ROOT_KEY": "file:/nonexistent", "KMS_CRL": "require"}


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_demo(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="session")
def outage(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_demo(tmp_path_factory.mktemp("outage"), "--kds-down")


def run_demo(folder: Path, *options: str) -> Run:
    done = subprocess.run(
        [sys.executable, "-m", "kms", "demo", *options, "--json"],
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=_WITHIN,
        check=False,
    )
    return Run(done.returncode, done.stdout, done.stderr, folder)


def test_succeeds(demo: Run) -> None:
    assert demo.status == 0, demo.err
    assert demo.document.keys() == {"released", "keys", "refusals"}
    assert demo.document["released"] is True


def test_the_keys_have_names_and_different_fingerprints(demo: Run) -> None:
    keys = demo.document["keys"]
    assert ("disk", "app", 1, "symmetric-256") in {
        (key["name"], key["scope"], key["epoch"], key["algorithm"]) for key in keys
    }
    assert all(key.keys() == {"name", "scope", "epoch", "algorithm", "fingerprint"} for key in keys)
    assert len({key["fingerprint"] for key in keys}) == len(keys) >= 4


def test_every_attack_is_refused_as_it_must_be(demo: Run) -> None:
    refusals = demo.document["refusals"]
    assert all(refusal.keys() == {"attack", "status", "code"} for refusal in refusals)
    assert {each["attack"]: (each["status"], each["code"]) for each in refusals} == _EXPECTED


def test_no_key_is_shown(demo: Run) -> None:
    assert not _LONG.search(demo.out)


def test_development_mode_is_said_loudly(demo: Run) -> None:
    assert "DEVELOPMENT MODE" in demo.err


def test_nothing_stays(demo: Run) -> None:
    assert list(demo.folder.iterdir()) == []
    _assert_gone(_server_process(demo.err))


def test_an_interrupt_stops_the_server_and_leaves_nothing(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "kms", "demo", "--json"],
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        seen = ""
        while "process " not in seen:
            line = process.stderr.readline()
            assert line, seen
            seen += line
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=_WITHIN)
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
    _assert_gone(_server_process(seen))


class TestKdsDown:
    """AMD's service goes away: who was seen before boots, who was not is told when to come again."""

    def test_succeeds(self, outage: Run) -> None:
        assert outage.status == 0, outage.err
        assert outage.document.keys() == {"released", "steps"}
        assert outage.document["released"] is True
        assert all(step.keys() == {"step", "status", "code", "kds_requests"} for step in self.steps(outage))

    def test_every_step_ends_as_it_must(self, outage: Run) -> None:
        assert [(step["step"], step["status"], step["code"]) for step in self.steps(outage)] == [
            ("first boot of a chip", 200, None),
            ("same chip, KDS down", 200, None),
            ("new chip, KDS down", 503, "collateral-unavailable"),
            ("new chip, KDS throttles", 200, None),
            ("invented chip", 403, "evidence-untrusted"),
            ("unknown measurement", 403, "measurement-unknown"),
        ]

    def test_the_kds_is_asked_only_for_what_is_missing_and_could_be_accepted(self, outage: Run) -> None:
        asked = [step["kds_requests"] for step in self.steps(outage)]
        assert [number > 0 for number in asked] == [True, False, True, True, True, False]

    def test_what_is_simulated_is_said_loudly(self, outage: Run) -> None:
        assert "DEVELOPMENT MODE" in outage.err
        assert "KDS (SIMULATED)" in outage.err

    def test_no_key_is_shown_and_nothing_stays(self, outage: Run) -> None:
        assert not _LONG.search(outage.out)
        assert list(outage.folder.iterdir()) == []
        _assert_gone(_server_process(outage.err))

    def test_it_says_what_an_operator_would_look_at(self, outage: Run) -> None:
        assert "kms collateral status" in outage.err

    @staticmethod
    def steps(outage: Run) -> list[dict[str, Any]]:
        steps: list[dict[str, Any]] = outage.document["steps"]
        return steps


class TestTheDemoItself:
    """A demo that could not fail would show nothing."""

    @pytest.mark.parametrize(
        ("status", "body", "right"),
        [
            (403, {"code": "policy-denied", "reasons": ["debug-enabled", "vmpl-not-allowed"]}, True),
            (200, {"sealed": "AAAA"}, False),
            (403, {"code": "policy-denied", "reasons": ["vmpl-not-allowed"]}, False),
            (403, {"code": "evidence-untrusted", "reasons": ["debug-enabled"]}, False),
            (400, {"code": "policy-denied", "reasons": ["debug-enabled"]}, False),
            (500, {"code": "internal"}, False),
        ],
    )
    def test_an_attack_that_is_not_refused_as_it_must_be_is_loud(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        status: int,
        body: dict[str, object],
        right: bool,
    ) -> None:
        answer = Answer(status=status, body=json.dumps(body).encode(), retry_after=None)
        attack = Attack("debug", "tries", 403, "policy-denied", "debug-enabled", lambda _: answer)
        monkeypatch.setattr(demo_story, "ATTACKS", (attack,))
        (outcome,) = demo_story.run_attacks(Show(programs=False), cast("Attacker", None))
        assert outcome.as_it_must is right
        assert ("✗" in capsys.readouterr().out) is not right

    @pytest.mark.enable_socket
    @pytest.mark.parametrize(
        ("problem", "asks", "right"),
        [
            (Problem(status=403, code="policy-denied"), 0, True),
            (Problem(status=403, code="policy-denied"), 1, False),
            (Problem(status=403, code="evidence-untrusted"), 0, False),
            (Problem(status=503, code="policy-denied"), 0, False),
            (None, 0, False),
        ],
    )
    def test_a_step_that_does_not_end_as_it_must_is_loud(
        self,
        simulated_hierarchies: Mapping[Product, AmdHierarchy],
        capsys: pytest.CaptureFixture[str],
        problem: Problem | None,
        asks: int,
        right: bool,
    ) -> None:
        with SimulatedKds(simulated_hierarchies.values()) as kds:

            def ask() -> Outcome:
                for _ in range(asks):
                    httpx2.get(f"{kds.url}/vcek/v1/Milan/crl", trust_env=False)
                return Outcome(problem=problem)

            steps = Steps(Show(programs=False), kds)
            steps.step(
                "a forger",
                "no keys",
                ask,
                status=403,
                code="policy-denied",
                conditions=lambda _outcome, asked: {"no request to the KDS": not asked},
            )
        (step,) = steps.all
        assert (not step.wrong) is right
        assert len(step.asked) == asks
        assert ("✗" in capsys.readouterr().out) is not right

    @pytest.mark.parametrize("wrong", [(), ("keys",)])
    def test_a_wrong_step_ends_the_demo_with_another_status(
        self,
        simulated_hierarchies: Mapping[Product, AmdHierarchy],
        capsys: pytest.CaptureFixture[str],
        tmp_path: Path,
        wrong: tuple[str, ...],
    ) -> None:
        show = Show(programs=True)
        steps = Steps(show, SimulatedKds(simulated_hierarchies.values()))
        steps.all.append(Step(name="a", outcome=Outcome(), asked=(), wrong=wrong))
        status = demo_outage.end(show, steps, tmp_path, as_json=True, kept=False)
        assert status == bool(wrong)
        assert json.loads(capsys.readouterr().out) == {
            "released": not wrong,
            "steps": [{"step": "a", "status": None, "code": None, "kds_requests": 0}],
        }

    def test_no_demo_asks_amds_service(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[Mapping[str, str]] = []

        def process(settings: Mapping[str, str], _output: object) -> NoReturn:
            seen.append(settings)
            raise SceneBroken("enough")

        monkeypatch.setattr(demo_server, "_process", process)
        for url in (None, "http://127.0.0.1:1"):
            server = demo_server.run_server(
                tmp_path, policies=tmp_path, development_roots=tmp_path, challenge_seconds=1, kds_url=url
            )
            with pytest.raises(SceneBroken), server:
                pass
        assert [settings["KMS_KDS_URLS"] for settings in seen] == ["none", "http://127.0.0.1:1"]

    def test_the_committed_image_document_is_checked(self, tmp_path: Path) -> None:
        files = ImageFiles.build()
        (tmp_path / "good").mkdir()
        policies = prepare_policy(files, tmp_path / "good")
        assert (policies / "image.yaml").read_text().startswith("kind: image")
        (tmp_path / "bad").mkdir()
        with pytest.raises(SceneBroken):
            prepare_policy(replace(files, kernel=b"another"), tmp_path / "bad")

    def test_the_policy_of_the_outage_is_the_demos_for_any_chip(self, tmp_path: Path) -> None:
        policies = prepare_open_policy(ImageFiles.build(), tmp_path)
        committed = (packaged_folder("policies") / "demo" / "app.yaml").read_text()
        opened = (policies / "app.yaml").read_text()
        changed = [
            pair for pair in zip(committed.splitlines(), opened.splitlines(), strict=True) if len({*pair}) > 1
        ]
        assert changed == [("chips: [demo-rack]", "chips: any")]

    def test_the_example_policies_have_no_finding_but_of_newer_bulletins(self) -> None:
        linted = subprocess.run(
            [sys.executable, "-m", "kms", "policy", "lint", str(packaged_folder("policies")), "--json"],
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert linted.returncode == 0
        report = json.loads(linted.stdout)
        assert report["valid"]
        # The simulated chip's levels are those of a day, and bulletins are added.
        assert all("that are open to AMD-SB-" in each["message"] for each in report["findings"])


def _server_process(err: str) -> int:
    found = re.search(r"process (\d+)", err)
    assert found is not None, err
    return int(found[1])


def _assert_gone(process: int) -> None:
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
