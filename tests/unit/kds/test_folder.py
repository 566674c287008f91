from pathlib import Path

import pytest
from structlog.testing import capture_logs

from kms.kds.folder import read_certificates


@pytest.mark.parametrize(
    ("content", "said"), [(b"no certificate", "unreadable"), (bytes(256 * 1024 + 1), "too-large")]
)
def test_a_file_that_is_left_out_is_said(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "odd.pem").write_bytes(content)
    with capture_logs() as logs:
        assert read_certificates(tmp_path) == ()
    [line] = logs
    assert line["event"] == f"certificate-file-{said}"
    assert line["file"].endswith("odd.pem")


def test_too_many_files_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kms.kds.folder._MOST_FILES", 2)
    for number in range(5):
        (tmp_path / f"{number}.pem").write_bytes(b"no certificate")
    with capture_logs() as logs:
        read_certificates(tmp_path)
    assert ("certificate-files-left-out", 3) in [(line["event"], line.get("count")) for line in logs]


def test_no_folder_is_an_empty_one(tmp_path: Path) -> None:
    assert read_certificates(tmp_path / "nothing") == ()
