from pathlib import Path

import pytest

from kms.kds.folder import read_certificates


@pytest.mark.parametrize(
    ("content", "said"), [(b"no certificate", "unreadable"), (bytes(256 * 1024 + 1), "too-large")]
)
def test_a_file_that_is_left_out_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, said: str
) -> None:
    (tmp_path / "odd.pem").write_bytes(content)
    assert read_certificates(tmp_path) == ()
    output = capsys.readouterr().out
    assert f"certificate-file-{said}" in output
    assert "odd.pem" in output


def test_too_many_files_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kms.kds.folder._MOST_FILES", 2)
    for number in range(5):
        (tmp_path / f"{number}.pem").write_bytes(b"no certificate")
    read_certificates(tmp_path)
    output = capsys.readouterr().out
    assert "certificate-files-left-out" in output
    assert "count=3" in output


def test_no_folder_is_an_empty_one(tmp_path: Path) -> None:
    assert read_certificates(tmp_path / "nothing") == ()
