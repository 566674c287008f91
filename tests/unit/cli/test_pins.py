"""The identity that a command line names, as text or in a file."""

import os
from pathlib import Path

import pytest

from kms.cli.output import Unreadable
from kms.cli.pins import read_identity
from kms.encoding import b64url
from kms.errors import ConfigurationError

IDENTITY = bytes(range(32))


def test_as_text_and_in_a_file_or_behind_a_link(tmp_path: Path) -> None:
    file, link = tmp_path / "identity", tmp_path / "link"
    file.write_text(b64url(IDENTITY) + "\n")
    link.symlink_to(file)
    for text in (b64url(IDENTITY), f"@{file}", f"@{link}"):
        assert read_identity(text) == IDENTITY


def test_a_pipe_in_the_files_place_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Unreadable, match="not a regular file"):
        read_identity(f"@{tmp_path / 'pipe'}")


@pytest.mark.parametrize("name", ["missing", "", "."])
def test_what_is_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(Unreadable):
        read_identity(f"@{tmp_path / name}")


def test_a_file_that_is_too_long(tmp_path: Path) -> None:
    (tmp_path / "long").write_text("A" * 257)
    with pytest.raises(Unreadable, match="longer than 256 bytes"):
        read_identity(f"@{tmp_path / 'long'}")


def test_a_file_with_something_else(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError):
        read_identity(f"@{tmp_path / 'other'}")
