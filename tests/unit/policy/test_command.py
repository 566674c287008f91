"""``kms policy lint``, and the folder that it reads."""

import json
import os
from pathlib import Path

import pytest

from kms.cli import run
from kms.errors import ConfigurationError
from kms.policy_folder.reading import read_folder
from tests.unit.policy.samples import POLICIES, VALID

VALID_FOLDER = POLICIES / "valid"


def test_a_clean_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["policy", "lint", str(VALID_FOLDER)]) == 0
    out = capsys.readouterr().out
    assert "6 document(s) in 2 file(s): 0 error(s)" in out
    assert "revision sha256:" in out


def test_errors_and_their_places(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_text("kind: chips\nname: x\nchip: []\n")
    assert run(["policy", "lint", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "a.yaml:3:1: error: kind `chips` has no `chip`: did you mean `chips`?" in out


def test_one_json_document_whatever_happens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_text("kind: chips\nname: x\nchips: []\n")
    assert run(["policy", "lint", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["valid"] is True
    assert report["findings"] == [
        {
            "file": "a.yaml",
            "line": 3,
            "column": 8,
            "severity": "warning",
            "message": "`chips` is empty: it lists no chip",
        }
    ]
    (tmp_path / "b.yaml").write_text("[")
    assert run(["policy", "lint", "--json", str(tmp_path)]) == 1
    assert json.loads(capsys.readouterr().out)["revision"] is None
    assert run(["policy", "lint", "--json", str(tmp_path / "none")]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "configuration"


def test_development_mode_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("kind: guest\nname: lax\ndebug: allow\n")
    assert run(["policy", "lint", str(tmp_path)]) == 1
    assert run(["policy", "lint", str(tmp_path), "--development"]) == 0


def test_reads_any_depth_both_suffixes_sorted(tmp_path: Path) -> None:
    for name in ("b/c/z.yml", "b/a.yaml", "a.yaml", ".git/x.yaml", "notes.txt", "b/.hidden.yaml"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    assert list(read_folder(tmp_path).items()) == [
        ("a.yaml", b"a.yaml"),
        ("b/a.yaml", b"b/a.yaml"),
        ("b/c/z.yml", b"b/c/z.yml"),
    ]
    assert read_folder(VALID_FOLDER) == {name.removeprefix("valid/"): data for name, data in VALID.items()}


def test_links_stay_inside(tmp_path: Path) -> None:
    folder = tmp_path / "policies"
    folder.mkdir()
    (tmp_path / "outside.yaml").write_text("x")
    (folder / "a.yaml").write_text("a")
    (folder / "b.yaml").symlink_to("a.yaml")
    assert read_folder(folder) == {"a.yaml": b"a", "b.yaml": b"a"}
    (folder / "c.yaml").symlink_to("../outside.yaml")
    with pytest.raises(ConfigurationError, match="leads out"):
        read_folder(folder)
    (folder / "c.yaml").unlink()
    (folder / "d").symlink_to("..", target_is_directory=True)
    with pytest.raises(ConfigurationError, match="leads out"):
        read_folder(folder)
    (folder / "d").unlink()
    (folder / "e").symlink_to(".", target_is_directory=True)
    with pytest.raises(ConfigurationError):
        read_folder(folder)


def test_unreadable_and_odd_entries(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        read_folder(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="not a folder"):
        read_folder(tmp_path / "file")
    (tmp_path / "gone.yaml").symlink_to("nowhere.yaml")
    with pytest.raises(ConfigurationError):
        read_folder(tmp_path)
    (tmp_path / "gone.yaml").unlink()
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(ConfigurationError, match="not a regular file"):
        read_folder(tmp_path)
