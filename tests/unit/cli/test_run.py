"""What holds for every command: one JSON document, an exit status that tells the truth, logs elsewhere."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from kms.cli import COMMANDS, run
from kms.simulator.firmware import build_firmware
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.product import Product
from tests.unit.cli.offline import write_guest

Captured = pytest.CaptureFixture[str]


def kms(*argv: str, stdout: int = subprocess.PIPE) -> "subprocess.CompletedProcess[str]":
    """Run the command as a process with buffered output, as at a shell."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("COV", "PYTHON"))
    }
    return subprocess.run(
        [sys.executable, "-m", "kms", *argv],
        env=environment,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["nosuch"],
        ["--nosuch"],
        ["policy"],
        ["policy", "nosuch"],
        ["serve"],
        ["demo", "--nosuch"],
        ["verify"],
        ["verify", "--report", "nosuch"],
        ["guest", "fetch"],
        ["image", "describe"],
        ["measure"],
        ["measure", "id-block", "create"],
    ],
    ids=" ".join,
)
def test_wrong_use_is_one_json_document(argv: list[str], capsys: Captured) -> None:
    assert run([*argv, "--json"]) == 2
    assert set(json.loads(capsys.readouterr().out)) == {"error"}


def test_json_is_asked_for_by_the_arguments_not_by_the_process(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["something-else"])
    assert run(["policy", "lint", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "wrong-use"
    monkeypatch.setattr(sys, "argv", ["something-else", "--json"])
    assert run(["policy", "lint"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("usage: kms policy lint")


def test_the_version_for_programs(capsys: Captured) -> None:
    assert run(["--version", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"version"}


def test_text_that_is_no_text_is_still_one_document(capsys: Captured) -> None:
    assert run(["verify", "--report", "x", "\udcff", "--json"]) == 2
    printed = capsys.readouterr().out
    assert printed.isascii()
    assert "error" in json.loads(printed)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: Captured) -> None:
    assert run([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: kms {name}")


@pytest.mark.parametrize("argv", [["--help"], ["guest", "fetch", "--help"]], ids=" ".join)
def test_a_reader_that_left_gets_no_traceback(argv: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = kms(*argv, stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("argv", [["--help"], ["nosuch", "--json"], ["--version", "--json"]], ids=" ".join)
def test_an_unbuffered_reader_that_left_gets_no_traceback(argv: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-u", "-m", "kms", *argv],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_without_a_command_there_is_help(capsys: Captured) -> None:
    assert run([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert all(f"  {name} " in captured.err for name in COMMANDS)


def test_a_full_disk_is_not_success() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    done = kms("--help", stdout=full)
    os.close(full)
    assert done.returncode == 2
    assert done.stderr == "kms: standard output: No space left on device\n"


@pytest.fixture
def unreadable_collateral(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "collateral"
    folder.mkdir()
    (folder / "broken.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    monkeypatch.setenv("KMS_COLLATERAL_DIR", str(folder))
    return folder


def test_logs_do_not_spoil_json(
    unreadable_collateral: Path, tmp_path: Path, simulated_hierarchies: Mapping[Product, AmdHierarchy]
) -> None:
    guest = write_guest(tmp_path, simulated_hierarchies[Product.MILAN])
    done = kms(*guest.verify())
    assert done.returncode == 1
    assert json.loads(done.stdout)["verified"] is False
    assert "collateral-file-not-taken" in done.stderr
    assert str(unreadable_collateral) in done.stderr


@pytest.mark.parametrize("name", sorted(name for name, command in COMMANDS.items() if command.quiet))
def test_a_quiet_command_imports_nothing_that_logs(name: str) -> None:
    program = (
        f"import sys, importlib; module = importlib.import_module({COMMANDS[name].module!r});"
        "module.parser(); print('structlog' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_described_image_makes_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("OVMF.fd").write_bytes(build_firmware(size=4096, seed=b"folder"))
    describe = ["image", "describe", "--ovmf", "OVMF.fd", "--name", "os-1", "--enforces", "none"]
    assert run([*describe, "--output", "new/policy/os-1.yaml"]) == 0
    assert run(["image", "measurements", "os-1", "--policy", "new/policy"]) == 0
    Path("file").touch()
    assert run([*describe, "--output", "file/os-1.yaml"]) == 2


def test_a_variable_that_is_no_setting_is_said_by_every_command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
    simulated_hierarchies: Mapping[Product, AmdHierarchy],
) -> None:
    guest = write_guest(tmp_path, simulated_hierarchies[Product.MILAN])
    monkeypatch.setenv("KMS_DEVELOPMENT_ROOT", str(tmp_path / "roots.pem"))
    assert run(guest.verify()) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["verified"] is False
    assert "did you mean `KMS_DEVELOPMENT_ROOTS`?" in captured.err


@pytest.mark.parametrize(
    "argv",
    [
        ["measure", "--mode", "snp", "--ovmf", "x", "--vcpus", "nan", "--vcpu-type", "EPYC-v4"],
        ["measure", "--mode", "snp", "--ovmf", "x", "--vcpus", "1", "--vcpu-sig", "1e3"],
        ["measure", "--mode", "snp", "--ovmf", "x", "--guest-features", "9" * 5000],
        ["measure", "--mode", "snp:svsm", "--ovmf", "x", "--svsm", "x", "--vars-size", "inf"],
        ["measure", "id-block", "create", "--measurement", "00", "--id-key", "x", "--guest-svn", "inf"],
        ["measure", "id-block", "create", "--measurement", "00", "--id-key", "x", "--policy", "0.5"],
        ["image", "describe", "--ovmf", "x", "--name", "a", "--enforces", "none", "--vcpus", "0-inf"],
    ],
    ids=lambda argv: " ".join(argv)[-40:],
)
def test_numbers_that_are_none(argv: list[str], capsys: Captured) -> None:
    assert run([*argv, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "wrong-use"
