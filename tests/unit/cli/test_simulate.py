"""``kms simulate``: wrong use. That it works is shown by the walk-through (tests/e2e/test_walkthrough.py)."""

import json
from pathlib import Path

import pytest

from kms.cli import run

Captured = pytest.CaptureFixture[str]
GUEST = ["simulate", "guest", "rack", "--server", "https://127.0.0.1:1"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_host_takes_no_folder_that_is_there(capsys: Captured) -> None:
    Path("rack").mkdir()
    assert run(["simulate", "host", "rack"]) == 2
    assert "rack: File exists" in capsys.readouterr().err
    assert list(Path("rack").iterdir()) == []


def test_a_guest_needs_a_host(capsys: Captured) -> None:
    assert run(GUEST) == 2
    assert "not what `kms simulate host` made" in capsys.readouterr().err


def test_it_says_that_it_is_a_simulation_before_anything_else(capsys: Captured) -> None:
    assert run([*GUEST, "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("SIMULATED hardware, which protects nothing")
    assert "error" in json.loads(captured.out)


@pytest.mark.parametrize(
    "options",
    [["--chip", "0"], ["--chip", "65"], ["--chip", "x"], ["--key", "nosuch"], ["--key", "disk@rack"]],
)
def test_wrong_use(options: list[str]) -> None:
    assert run([*GUEST, *options]) == 2
