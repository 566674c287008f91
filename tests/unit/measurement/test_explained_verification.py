"""``kms verify`` on evidence that hardware signed, with launch inputs that are not quite its own."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kms.cli import run
from kms.measurement.launch import parse_launch_file
from tests.world import image_document

pytestmark = pytest.mark.real_evidence

Verify = Callable[..., tuple[int, dict[str, str]]]

MACHINE: dict[str, tuple[dict[str, Any], str]] = {
    "vcpus": ({"vcpus": 4}, r"vCPU count: 2 was launched, not 4$"),
    "vcpu_type": ({"vcpu_type": "EPYC-Milan"}, r"vCPU type: \S*/EPYC-v4 was launched, not EPYC-Milan$"),
    "guest_features": ({"guest_features": 0x21}, r"guest features: 0x1 was launched, not 0x21$"),
}
IMAGE: dict[str, tuple[dict[str, Any], str]] = {
    "command line": (
        {"base_cmdline": "console=ttyS0"},
        r"command line: .* was launched, not 'console=ttyS0'$",
    ),
    "kernel": ({"kernel_hash": "ab" * 32}, r"kernel: dd9ea274\w* was launched, not (ab){32}$"),
    "initrd": ({"initrd_hash": "ab" * 32}, r"initrd: 5f844c4a\w* was launched, not (ab){32}$"),
    "firmware": ({"ovmf_hash": "ab" * 48}, r"firmware: ffb57e39\w* was launched, not (ab){48}$"),
}


@pytest.fixture
def document(shared: Path) -> dict[str, Any]:
    path = shared / "evidence" / "milan-v3-vcek-launch" / "launch.json"
    value: dict[str, Any] = json.loads(path.read_bytes())
    return value


@pytest.fixture
def verify(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Verify:
    monkeypatch.chdir(tmp_path)
    evidence = shared / "evidence"
    folder = evidence / "milan-v3-vcek-launch"

    def call(launch: dict[str, Any] | None, *more: str) -> tuple[int, dict[str, str]]:
        argv = ["verify", "--report", str(folder / "report.bin"), "--certificates", str(folder / "vcek.der")]
        argv += ["--certificates", str(evidence / "kds" / "vcek" / "v1" / "Milan" / "cert_chain")]
        if launch is not None:
            Path("launch.json").write_text(json.dumps(launch))
            argv += ["--launch", "launch.json"]
        argv += ["--at", "2026-11-21T12:00:00Z", "--json", *more]
        monkeypatch.setattr(sys, "argv", ["kms", *argv])
        status = run(argv)
        checks = json.loads(capsys.readouterr().out)["checks"]
        return status, {each["name"]: each["detail"] for each in checks if not each["passed"]}

    return call


@pytest.fixture
def policy(document: dict[str, Any], tmp_path: Path) -> Path:
    folder = tmp_path / "policy"
    folder.mkdir()
    image = image_document("dstack-os", parse_launch_file(document).description)
    (folder / "image.yaml").write_text(yaml.safe_dump(image))
    return folder


def test_right_inputs(verify: Verify, document: dict[str, Any]) -> None:
    assert verify(document) == (0, {})


@pytest.mark.parametrize(("changes", "words"), MACHINE.values(), ids=MACHINE)
def test_machine(verify: Verify, document: dict[str, Any], changes: dict[str, Any], words: str) -> None:
    status, failed = verify(document | changes)
    assert (status, set(failed)) == (1, {"measurement"})
    assert re.search(words, failed["measurement"])


@pytest.mark.parametrize(("changes", "words"), (MACHINE | IMAGE).values(), ids=MACHINE | IMAGE)
def test_image_that_policy_knows(
    verify: Verify, document: dict[str, Any], policy: Path, changes: dict[str, Any], words: str
) -> None:
    status, failed = verify(document | changes, "--policy", str(policy))
    assert status == 1
    assert re.search(words, failed["measurement"])
    assert "the nearest known image is dstack-os" in failed["measurement"]
    # The policy finds the launch whatever the launch inputs say.
    assert "measurement-known" not in failed


@pytest.mark.parametrize("changes", [changes for changes, _ in IMAGE.values()], ids=IMAGE)
def test_image_that_nobody_knows(verify: Verify, document: dict[str, Any], changes: dict[str, Any]) -> None:
    status, failed = verify(document | changes)
    assert status == 1
    assert "look at firmware, kernel, initrd or command line" in failed["measurement"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vcpus": {"min": 3, "max": 8}}, "vCPU count: 2 was launched, not 3 to 8"),
        ({"vcpu_types": ["EPYC-Milan"]}, "was launched, not EPYC-Milan"),
        ({"guest_features": ["0x21"]}, "guest features: 0x1 was launched, not 0x21"),
    ],
    ids=["vcpus", "vcpu_types", "guest_features"],
)
def test_policy_alone(verify: Verify, policy: Path, changes: dict[str, Any], words: str) -> None:
    path = policy / "image.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
    status, failed = verify(None, "--policy", str(policy))
    assert status == 1
    assert "the nearest known image is dstack-os" in failed["measurement-known"]
    assert words in failed["measurement-known"]


def test_signature_of_a_processor_that_has_no_model_name(verify: Verify, document: dict[str, Any]) -> None:
    """``-cpu host``: the signature is all that a launch file can say."""
    named = {name: value for name, value in document.items() if name != "vcpu_type"}
    assert verify(named | {"vcpu_signature": 0x800F12}) == (0, {})
    _, failed = verify(named | {"vcpu_signature": 0xB00F21})
    assert re.search(r"vCPU type: \S*EPYC-v4 was launched, not 0xb00f21$", failed["measurement"])
