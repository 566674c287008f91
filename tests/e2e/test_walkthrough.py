"""The walk-through of docs/guides/policy.md, typed into a shell: what the page shows is what is printed.

The page is the program. Its ``console`` blocks are run in their order, in one shell and an empty folder;
blocks that begin with ``# some/file`` are written there. Two things differ from what a reader does: the port,
and REQUEST_ID, in whose place a reader puts the id that the guest before was told.
"""

import os
import re
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest

from tests.conformance.own_server import environment
from tests.servers.ports import free_port

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket]

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "policy.md"
PORT = "8443"  # in the page: the server's own default
WITHIN = 60.0  # seconds, for the server to listen


class Step(NamedTuple):
    """A command and the lines that the page shows below it, or a file's path and its lines."""

    line: int
    command: str | None
    path: str | None
    shown: list[str]


def steps(page: str) -> Iterator[Step]:
    """Give what a reader types, and the files that a reader writes, in order."""
    for block in re.finditer(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        kind, text = block.groups()
        first = page.count("\n", 0, block.start(2)) + 1
        lines = text.splitlines()
        if kind == "console":
            yield from _commands(lines, first)
        elif (named := re.fullmatch(r"# (\S+)", lines[0])) is not None:
            yield Step(first, None, named[1], lines)


def _commands(lines: list[str], first: int) -> Iterator[Step]:
    step: Step | None = None
    for number, line in enumerate(lines, first):
        if step is not None and step.command is not None and step.command.endswith("\\"):
            step = step._replace(command=f"{step.command[:-1]}{line.strip()}")
        elif line.startswith("$ "):
            if step is not None:
                yield step
            step = Step(number, line.removeprefix("$ "), None, [])
        else:
            assert step is not None, f"line {number}: output without a command"
            step.shown.append(line)
    if step is not None:
        yield step


def matches(shown: list[str], printed: list[str]) -> bool:
    """Say whether what was printed is what is shown; `…` stands for part of a line, alone for any lines."""
    pattern = "".join(
        r"(?:.*\n)*?" if line.strip() == "…" else ".*".join(map(re.escape, line.split("…"))) + r"\n"
        for line in shown
    )
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in printed)) is not None


class Shell:
    """A shell that stays, as a reader's does, with its variables and what runs in the background."""

    END = "-- end of command --"

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        binaries = str(Path(sys.executable).parent)
        inherited = environment(settings)
        self._process = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=folder,
            env={**inherited, "PATH": f"{binaries}{os.pathsep}{inherited['PATH']}", "LC_ALL": "C.UTF-8"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
        )

    def run(self, command: str) -> list[str]:
        """Run a command, and give the lines that a terminal would show."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{command}\necho; echo '{self.END}'\n")
        self._process.stdin.flush()
        printed = []
        for line in self._process.stdout:
            if line.rstrip("\n") == self.END:
                break
            printed.append(line.rstrip())
        else:
            raise AssertionError(f"the shell ended at: {command}\n" + "\n".join(printed))
        # The empty line before the mark ends what a command left without one.
        return printed[:-1] if printed[-1:] == [""] else printed

    def end(self) -> None:
        """Stop what runs in the background, and the shell."""
        assert self._process.stdin
        self._process.stdin.write("kill $(jobs -p) 2> /dev/null; wait\n")
        self._process.stdin.close()
        assert self._process.stdout
        self._process.stdout.read()
        self._process.stdout.close()
        self._process.wait(30)


@contextmanager
def shell(folder: Path, port: int) -> Iterator[Shell]:
    opened = Shell(folder, {"KMS_LISTEN": f"127.0.0.1:{port}"})
    try:
        yield opened
    finally:
        opened.end()


def wait_for_server(folder: Path, port: int) -> None:
    """Wait until the server answers: a reader sees in its log that it listens."""
    deadline, ca = time.monotonic() + WITHIN, folder / "kms-data" / "tls" / "ca.pem"
    while time.monotonic() < deadline:
        try:
            trust = ssl.create_default_context(cafile=str(ca))
            httpx2.get(f"https://127.0.0.1:{port}/healthz", verify=trust, trust_env=False)
        except (OSError, httpx2.TransportError):
            time.sleep(0.2)
        else:
            return
    raise AssertionError(f"no server:\n{(folder / 'server.log').read_text()[-4000:]}")


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="OpenSSH is not installed")
def test_the_page_is_what_happens(tmp_path: Path) -> None:
    port, request_id, ran = free_port(), "", []
    with shell(tmp_path, port) as opened:
        for step in steps(PAGE.read_text(encoding="utf-8")):
            if step.command is None:
                file = tmp_path / str(step.path)
                file.parent.mkdir(exist_ok=True)
                file.write_text("\n".join(step.shown) + "\n", encoding="utf-8")
                continue
            command = step.command.replace(f":{PORT}", f":{port}").replace("REQUEST_ID", request_id)
            printed = [line.replace(f":{port}", f":{PORT}") for line in opened.run(command)]
            said = "\n".join(printed)
            assert matches(step.shown, printed), f"{PAGE.name}:{step.line}: {command}\n{said}"
            if command.endswith("&"):
                wait_for_server(tmp_path, port)
            if (told := re.search(r"request ([0-9a-f]{32})", said)) is not None:
                request_id = told[1]
            ran.append(command)
    # What the page is there to show; a page that shows nothing would agree with everything.
    typed = "\n".join(ran)
    wanted = (
        "kms image describe",
        "kms simulate guest",
        "kms policy explain",
        "kms policy what-if",
        "kms policy sign",
        "kms policy approve",
        "kms policy apply",
        "kms policy rollback",
        "kms policy revoke",
        "kms policy history",
    )
    assert [each for each in wanted if each not in typed] == []
    assert "Traceback" not in (tmp_path / "server.log").read_text()


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        (["a"], ["a"], True),
        (["a"], ["b"], False),
        ([], ["a"], False),
        (["a"], [], False),
        (["a … c"], ["a b c"], True),
        (["a … c"], ["a b d"], False),
        (["a", "…", "c"], ["a", "b", "b", "c"], True),
        (["a", "…"], ["a"], True),
        (["a.c"], ["abc"], False),
    ],
)
def test_a_page_that_shows_something_else_is_noticed(
    shown: list[str], printed: list[str], same: bool
) -> None:
    assert matches(shown, printed) is same
