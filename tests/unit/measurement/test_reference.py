"""The commands of docs/reference/measurement.md run as they are written there."""

import re
import shlex
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from kms.cli import run
from kms.measurement.difference import Component
from kms.measurement.explanation import MAX_HASHES, MAX_IMAGES
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
    for name in ("id.pem", "author.pem"):
        key = ec.generate_private_key(ec.SECP384R1())
        Path(name).write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
        )
    printed = []
    for argv in commands():
        if argv[1] == "verify":
            # Needs evidence that hardware signed: test_explained_verification runs it.
            continue
        assert run(argv[1:]) == 0, argv
        printed.append(capsys.readouterr().out)
        if argv[1:4] == ["measure", "id-block", "create"]:
            for part in printed[-1].splitlines()[0].split(","):
                name, _, value = part.partition("=")
                Path(f"{name}.txt").write_text(value)
    described, listed, measured = printed[:3]
    assert described == ""
    assert len(listed.splitlines()) == 2 * 16
    # "The second prints one of the lines of the first."
    assert measured.strip() == listed.splitlines()[1].split()[0]
    assert len(printed) == 7


def test_every_variant_is_documented() -> None:
    text = REFERENCE.read_text()
    assert all(f"`{variant.value}`" in text for variant in VmsaVariant)


def test_explanations_are_documented_as_they_are() -> None:
    text = REFERENCE.read_text()
    assert f"at most {MAX_HASHES:,} hashes" in text
    assert {4: "varies the four images"}[MAX_IMAGES] in text
    assert f"{Component.VCPUS}: 2 was launched, not 4" in text
