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
from typing import Any, cast

import pytest

from kms.cli import demo_story
from kms.cli.demo_attacker import Attacker
from kms.cli.demo_attacks import Attack
from kms.cli.demo_scene import ImageFiles, SceneBroken, prepare_policy
from kms.cli.demo_show import Show
from kms.guest.transport import Answer
from kms.packaged import packaged_folder

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
    folder = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [sys.executable, "-m", "kms", "demo", "--json"],
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

    def test_the_committed_image_document_is_checked(self, tmp_path: Path) -> None:
        files = ImageFiles.build()
        (tmp_path / "good").mkdir()
        policies = prepare_policy(files, tmp_path / "good")
        assert (policies / "image.yaml").read_text().startswith("kind: image")
        (tmp_path / "bad").mkdir()
        with pytest.raises(SceneBroken):
            prepare_policy(replace(files, kernel=b"another"), tmp_path / "bad")

    def test_the_example_policies_are_without_findings(self) -> None:
        linted = subprocess.run(
            [sys.executable, "-m", "kms", "policy", "lint", str(packaged_folder("policies")), "--json"],
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert linted.returncode == 0
        assert json.loads(linted.stdout)["findings"] == []


def _server_process(err: str) -> int:
    found = re.search(r"process (\d+)", err)
    assert found is not None, err
    return int(found[1])


def _assert_gone(process: int) -> None:
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
