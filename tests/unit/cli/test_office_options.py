"""Where operators' commands work: the settings' database, or a server that is shown a token."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from kms.administration.office import Office
from kms.cli import run
from kms.cli.office import _user
from kms.errors import ConfigurationError
from kms.private_files import read_secret
from tests.fake_office import FakeOffice
from tests.unit.cli.policies import policy, status_answer

Captured = pytest.CaptureFixture[str]
HISTORY = ["policy", "history"]
URL = "https://kms.example:8443"


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch, office: FakeOffice) -> list[dict[str, Any]]:
    """What a remote office was opened with; it answers like the local one."""
    opened: list[dict[str, Any]] = []

    @asynccontextmanager
    async def open_remote(url: str, *, token: str, ca: Path | None) -> AsyncIterator[Office]:
        opened.append({"url": url, "token": token, "ca": ca})
        yield office.office

    monkeypatch.setattr("kms.remote_office.open_remote", open_remote)
    office.answers["history"] = {"changes": [], "next": None}
    return opened


def token_file(content: str = "token-of-alice\n", mode: int = 0o600) -> str:
    file = Path("alice.token")
    file.write_text(content)
    file.chmod(mode)
    return str(file)


def test_a_server_is_shown_the_token_of_the_file(remote: list[dict[str, Any]]) -> None:
    assert run([*HISTORY, "--server", URL, "--token-file", token_file(), "--ca", "ca.pem"]) == 0
    assert remote == [{"url": URL, "token": "token-of-alice", "ca": Path("ca.pem")}]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_lesson_31_a_token_that_others_can_read_is_not_used(
    remote: list[dict[str, Any]], capsys: Captured, mode: int
) -> None:
    assert run([*HISTORY, "--server", URL, "--token-file", token_file(mode=mode)]) == 2
    said = capsys.readouterr().err
    assert "chmod 600 alice.token" in said
    assert "token-of-alice" not in said
    assert remote == []


@pytest.mark.parametrize("content", ["", "\n", "two words", "one\r\nX-Header: other", "nö"])
def test_what_cannot_stand_in_a_header_is_no_token(
    office: FakeOffice, capsys: Captured, content: str
) -> None:
    assert run([*HISTORY, "--server", URL, "--token-file", token_file(content)]) == 2
    said = capsys.readouterr().err
    assert "the token is not one word" in said
    assert "X-Header" not in said


def test_a_token_is_not_sent_in_the_clear(office: FakeOffice, capsys: Captured) -> None:
    assert run([*HISTORY, "--server", "http://kms.example:8443", "--token-file", token_file()]) == 2
    assert "https" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ["--server", URL],
        ["--server", URL, "--token-file", "nosuch"],
        ["--server", URL, "--config", "kms.toml", "--token-file", "alice.token"],
        ["--token-file", "alice.token"],
        ["--ca", "ca.pem"],
    ],
)
def test_options_that_do_not_go_together(remote: list[dict[str, Any]], options: list[str]) -> None:
    token_file()
    assert run([*HISTORY, *options]) == 2
    assert remote == []


def test_a_user_without_a_name_is_named_by_number(
    office: FakeOffice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container, where the password file has no entry for the user."""

    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr("getpass.getuser", nobody)
    monkeypatch.setattr("os.getuid", lambda: 1234)
    office.answers["history"] = {"changes": [], "next": None}
    assert run(HISTORY) == 0
    assert office.calls[0].actor.name == "uid 1234"


def test_a_server_of_another_version_is_no_traceback(office: FakeOffice, capsys: Captured) -> None:
    office.answers["history"] = {"something": "else"}
    assert run(HISTORY) == 2
    assert "`changes` is missing" in capsys.readouterr().err


def test_what_others_wrote_does_not_move_the_cursor(office: FakeOffice, capsys: Captured) -> None:
    active = status_answer(policy("0a" * 64))["active"]
    office.answers["history"] = {
        "changes": [{**active, "message": "\x1b[2Jall is well\u202e", "author": "eve\r"}],
        "next": None,
    }
    assert run(HISTORY) == 0
    said = capsys.readouterr().out
    assert "\\x1b[2Jall is well\\u202e" in said
    assert "\x1b" not in said


def test_a_pipe_in_the_place_of_a_token_hangs_nothing(tmp_path: Path) -> None:
    pipe = tmp_path / "token"
    os.mkfifo(pipe, 0o600)
    with pytest.raises(ConfigurationError, match="not a regular file"):
        read_secret(pipe, what="token", ours=False)


def test_the_name_of_a_user_moves_no_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "mallory\x1b[2Jalice\u202e")
    assert _user() == "mallory\\x1b[2Jalice\\u202e"
