"""docs/guides/disk.md: what it has people copy is short and works; its table has every reason of the code."""

import ast
import re
from pathlib import Path

from kms.guest.config import read_config

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "guides" / "disk.md").read_text()
TO_COPY = GUIDE[GUIDE.index("## What to copy") : GUIDE.index("That is all")]


def test_there_are_fewer_than_twenty_lines_to_copy() -> None:
    blocks = re.findall(r"```\w+\n(.*?)```", TO_COPY, re.DOTALL)
    assert 0 < sum(len(block.splitlines()) for block in blocks) < 20


def test_its_configuration_is_one(tmp_path: Path) -> None:
    [text] = re.findall(r"```toml\n(.*?)```", TO_COPY, re.DOTALL)
    (tmp_path / "kms.id").write_text("A" * 43)
    config = tmp_path / "guest.toml"
    config.write_text(text.replace("/etc/attested-kms/kms.id", str(tmp_path / "kms.id")))
    for file in tmp_path.iterdir():
        file.chmod(0o644)
    volume = read_config(config).volumes["data"]
    assert (volume.format_blank, volume.rotate, str(volume.key.name)) == (True, True, "disk")


def test_its_table_has_every_reason() -> None:
    table = GUIDE[GUIDE.index("| reason |") : GUIDE.index("## What is tested")]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    listed = {reason for row in rows for reason in re.findall(r"`([a-z0-9-]+)`", row)}
    assert listed == {reason for file in (ROOT / "kms/guest/luks").glob("*.py") for reason in _reasons(file)}


def _reasons(file: Path) -> set[str]:
    """Give what stands as a reason: the keyword's values, and the first argument of `_refuse`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call):
            values = [keyword.value for keyword in node.keywords if keyword.arg == "reason"]
            if isinstance(node.func, ast.Name) and node.func.id == "_refuse":
                values.append(node.args[0])
            found |= {
                each.value
                for each in values
                if isinstance(each, ast.Constant) and isinstance(each.value, str)
            }
    return found
