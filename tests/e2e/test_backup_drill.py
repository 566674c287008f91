"""The drill of docs/guides/keys.md, typed into a shell: what the page shows is what is printed.

As in `tests/e2e/test_walkthrough.py`, the page is the program, and only the port differs.
"""

import re
from pathlib import Path

import pytest

from tests.e2e.test_walkthrough import PORT, matches, shell, steps, wait_for_server
from tests.servers.ports import free_port

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket]

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "keys.md"


def section(title: str) -> str:
    """Give a section of the page, after as many empty lines as stand before it: line numbers stay."""
    before, heading, after = PAGE.read_text(encoding="utf-8").partition(f"\n## {title}\n")
    assert heading
    return "\n" * (before + heading).count("\n") + after.partition("\n## ")[0]


def test_a_destroyed_root_comes_back_as_the_page_says(tmp_path: Path) -> None:
    port, fingerprints, ran = free_port(), [], []
    with shell(tmp_path, port) as opened:
        for step in steps(section("Backups")):
            if step.command is None:
                (tmp_path / str(step.path)).write_text("\n".join(step.shown) + "\n", encoding="utf-8")
                continue
            command = step.command.replace(f":{PORT}", f":{port}")
            printed = [line.replace(f":{port}", f":{PORT}") for line in opened.run(command)]
            said = "\n".join(printed)
            assert matches(step.shown, printed), f"{PAGE.name}:{step.line}: {command}\n{said}"
            if command.endswith("&"):
                wait_for_server(tmp_path, port)
            fingerprints += re.findall(r"fingerprint (\w+)", said)
            ran.append(command)
    assert len(fingerprints) == 2
    assert fingerprints[0] == fingerprints[1]
    assert "rm kms-data/root-key.json" in ran
    assert "Traceback" not in (tmp_path / "server.log").read_text()
