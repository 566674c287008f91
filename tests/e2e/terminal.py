"""An operator's terminal: commands as a page shows them, typed into a shell, and all that was printed."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.conformance.own_server import environment
from tests.e2e.test_walkthrough import Step, matches

_WITHIN = 60.0  # seconds, for a command


@dataclass(frozen=True, slots=True)
class Typed:
    """A command as it was typed, and what came of it."""

    command: str
    output: str  # standard output
    printed: list[str]  # that and standard error, as lines


@dataclass(kw_only=True)
class Terminal:
    """A terminal on the server's machine, in `folder`.

    `settings` are the server's. `means` are words of a page, and what a reader puts in their place.
    """

    folder: Path
    settings: Mapping[str, str]
    means: dict[str, str]
    transcript: list[Typed] = field(default_factory=list)

    def type(self, command: str, *, status: int = 0) -> Typed:
        """Type a command as the page has it; it must end with `status`."""
        real = command
        for written, meant in self.means.items():
            real = real.replace(written, meant)
        inherited = environment(self.settings)
        binaries = str(Path(sys.executable).parent)
        ended = subprocess.run(
            ["bash", "--noprofile", "--norc", "-c", real],
            cwd=self.folder,
            env={**inherited, "PATH": f"{binaries}{os.pathsep}{inherited['PATH']}", "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=_WITHIN,
            check=False,
        )
        assert ended.returncode == status, f"{real}: {ended.returncode}\n{ended.stdout}{ended.stderr}"
        typed = Typed(command, ended.stdout, (ended.stdout + ended.stderr).splitlines())
        self.transcript.append(typed)
        return typed

    def require_shown(self, step: Step) -> None:
        """Go on only if what a page shows was typed, and printed what the page shows."""
        printed = [typed.printed for typed in self.transcript if typed.command == step.command]
        assert printed, f"nobody typed: {step.command}"
        assert any(matches(step.shown, each) for each in printed), f"{step.command}\n{printed}"
