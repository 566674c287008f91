"""The commands of docs/reference/measurement.md run as they are written there."""

import re
import shlex
from pathlib import Path

import pytest

from kms.cli import run
from kms.measurement.vmsa import VmsaVariant
from kms.simulator.firmware import build_firmware

REFERENCE = Path(__file__).parents[3] / "docs" / "reference" / "measurement.md"


def commands() -> list[list[str]]:
    lines = re.findall(r"^\$ (kms .*)$", REFERENCE.read_text(), re.MULTILINE)
    return [shlex.split(line) for line in lines]


def test_worked_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("OVMF.fd").write_bytes(build_firmware(size=4096, seed=b"reference"))
    Path("vmlinuz").write_bytes(b"kernel")
    Path("initrd.img").write_bytes(b"initrd")
    printed = []
    for argv in commands():
        assert run(argv[1:]) == 0, argv
        printed.append(capsys.readouterr().out)
    described, listed, measured = printed[:3]
    assert described == ""
    assert len(listed.splitlines()) == 2 * 16
    # "The second prints one of the lines of the first."
    assert measured.strip() == listed.splitlines()[1].split()[0]
    assert len(printed) == 5


def test_every_variant_is_documented() -> None:
    text = REFERENCE.read_text()
    assert all(f"`{variant.value}`" in text for variant in VmsaVariant)
