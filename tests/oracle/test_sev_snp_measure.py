"""Every output of ``kms measure`` is compared with sev-snp-measure's own, byte for byte.

The cases are inputs on which that tool is right. Where it is wrong it is no oracle: `test_refusals` holds
those, and that the tool still answers them.
"""

import contextlib
import io
import os
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sevsnpmeasure import cli as oracle

from kms.cli import measure
from kms.measurement.errors import MeasurementError
from kms.measurement.metadata import PAGE, Section, SectionType
from kms.measurement.vcpu_types import VCPU_TYPES
from kms.simulator.firmware import AMDSEV_SECTIONS, build_firmware

NORMAL_CASES, NIGHTLY_CASES = 300, 5000
MODES = ["snp"] * 5 + ["seves", "sev", "snp:ovmf-hash", "snp:svsm"]
COMMAND_LINES = [
    None, "", " ", "console=ttyS0 loglevel=7", " leading", "trailing ", "two  spaces\n", "\t", "é ü 漢 🦀",
    "{app_id}", "x" * 4096,
]  # fmt: skip


@dataclass
class Case:
    """One call, and the files it reads."""

    argv: list[str]
    files: dict[str, bytes] = field(default_factory=dict)


def sections(rng: random.Random, *, hashes: bool) -> tuple[list[Section], int]:
    """Sections in any order, and an address for the hash table."""
    pages = rng.sample(range(1 << 20), 16)
    found = [
        Section(pages[0] * PAGE, PAGE, SectionType.SECRETS),
        Section(pages[1] * PAGE, PAGE, SectionType.CPUID),
        Section(pages[2] * PAGE, PAGE, SectionType.SVSM_CAA),
    ]
    for page in pages[3 : 3 + rng.randint(0, 4)]:
        size = min(rng.randint(1, 9), (1 << 20) - page) * PAGE
        found.append(Section(page * PAGE, size, SectionType.SEC_MEMORY))
    if hashes:
        found.append(Section(pages[15] * PAGE, PAGE, SectionType.KERNEL_HASHES))
    rng.shuffle(found)
    return found[rng.randint(0, 1) :] if not hashes else found, pages[15] * PAGE + rng.randrange(0xF51)


def vcpus(rng: random.Random, vmm: str) -> list[str]:
    argv = ["--vcpus", str(rng.choice([1, 1, 2, 3, 4, 8, 64, rng.randint(1, 512)]))]
    kind = rng.choice(["type", "type", "sig", "family"] + (["none"] if vmm != "QEMU" else []))
    if kind == "type":
        argv += ["--vcpu-type", rng.choice(list(VCPU_TYPES))]
    elif kind == "sig":
        argv += ["--vcpu-sig", rng.choice(["{:#x}", "{}"]).format(rng.randint(1, (1 << 32) - 1))]
    elif kind == "family":
        family, model, stepping = rng.randint(1, 270), rng.randint(0, 255), rng.randint(0, 15)
        argv += ["--vcpu-family", str(family), "--vcpu-model", str(model), "--vcpu-stepping", str(stepping)]
    return argv


def generate(seed: int) -> Case:
    rng = random.Random(seed)
    mode = rng.choice(MODES)
    vmm = "QEMU" if mode == "snp:svsm" else rng.choice(["QEMU", "QEMU", "ec2", "gce"])
    kernel = mode not in {"snp:svsm", "snp:ovmf-hash"} and rng.random() < 0.6
    layout, hashes_gpa = sections(rng, hashes=kernel or rng.random() < 0.5)
    size = rng.choice([1, 1, 2, 4, 16]) * PAGE
    seed_bytes = seed.to_bytes(8, "big")
    reset_eip = rng.randint(1, (1 << 32) - 1)
    case = Case(["--mode", mode, "--ovmf", "ovmf.fd", "--vmm-type", vmm])
    case.files["ovmf.fd"] = build_firmware(
        sections=layout, size=size, reset_eip=reset_eip, hashes_table_gpa=hashes_gpa, seed=seed_bytes
    )
    if mode != "sev":
        case.argv += vcpus(rng, vmm)
    if rng.random() < 0.7:
        features = rng.choice([0x0, 0x1, 0x21, 0x201, 0xFFFF, (1 << 64) - 1, rng.getrandbits(64)])
        case.argv += ["--guest-features", rng.choice([hex(features), str(features)])]
    if kernel:
        _with_kernel(rng, case)
    if mode == "snp" and rng.random() < 0.2:
        case.argv += ["--snp-ovmf-hash", rng.randbytes(48).hex()]
    if mode == "snp:svsm":
        entry = rng.randrange(PAGE)
        case.files["svsm.bin"] = build_firmware(sections=layout, size=PAGE, svsm_entry=entry, seed=b"svsm")
        case.argv += ["--svsm", "svsm.bin"]
        pages = rng.randint(1, 200)
        if rng.random() < 0.5:
            case.files["vars.fd"] = bytes(pages * PAGE)
            case.argv += ["--vars-file", "vars.fd"]
        else:
            case.argv += ["--vars-size", str(pages * PAGE)]
    if rng.random() < 0.2:
        case.argv.append(rng.choice(["--verbose", "-v"]))
    if rng.random() < 0.2:
        case.argv += ["--output-format", rng.choice(["hex", "base64"])]
    return case


def _with_kernel(rng: random.Random, case: Case) -> None:
    case.argv += ["--kernel", "vmlinuz"]
    case.files["vmlinuz"] = rng.randbytes(rng.choice([0, 1, 5000]))
    if rng.random() < 0.7:
        case.argv += ["--initrd", "initrd"]
        case.files["initrd"] = rng.randbytes(rng.choice([0, 1, 5000]))
    cmdline = rng.choice(COMMAND_LINES)
    if cmdline is not None:
        case.argv.append(f"--append={cmdline}")


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[io.StringIO]:
    before = Path.cwd()
    os.chdir(folder)
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            yield output
    finally:
        os.chdir(before)


def theirs(argv: list[str], folder: Path) -> str:
    given = sys.argv
    sys.argv = ["sev-snp-measure", *argv]
    try:
        with inside(folder) as output:
            assert oracle.main() == 0
    finally:
        sys.argv = given
    return output.getvalue()


def ours(argv: list[str], folder: Path) -> str:
    with inside(folder) as output:
        assert measure.main(argv) == 0
    return output.getvalue()


def compare(seeds: range, folder: Path) -> None:
    for seed in seeds:
        case = generate(seed)
        for name, data in case.files.items():
            (folder / name).write_bytes(data)
        assert ours(case.argv, folder) == theirs(case.argv, folder), f"case {seed}: {case.argv}"


def test_same_output(tmp_path: Path) -> None:
    compare(range(NORMAL_CASES), tmp_path)


@pytest.mark.nightly
def test_same_output_exhaustively(tmp_path: Path) -> None:
    compare(range(NORMAL_CASES, NORMAL_CASES + NIGHTLY_CASES), tmp_path)


@pytest.mark.parametrize("mode", ["seves", "snp", "snp:svsm"])
@pytest.mark.parametrize("vcpus", [1, 3])
def test_same_dumped_pages(mode: str, vcpus: int, tmp_path: Path) -> None:
    argv = ["--mode", mode, "--vcpus", str(vcpus), "--vcpu-type", "EPYC-Milan", "--dump-vmsa"]
    argv += ["--ovmf", "../ovmf.fd", "--svsm", "../svsm.bin", "--vars-size", "4096"]
    if mode != "snp:svsm":
        argv = argv[:-4]
    (tmp_path / "ovmf.fd").write_bytes(build_firmware(size=PAGE, seed=b"dump"))
    (tmp_path / "svsm.bin").write_bytes(build_firmware(size=PAGE, svsm_entry=16, seed=b"dump"))
    written = []
    for run in (ours, theirs):
        folder = tmp_path / run.__name__
        folder.mkdir()
        output = run(argv, folder)
        written.append((output, {path.name: path.read_bytes() for path in folder.iterdir()}))
    assert written[0] == written[1]
    assert len(written[0][1]) == vcpus


QEMU = ["--vcpu-type", "EPYC-v4"]
SNP = ["--mode", "snp", "--ovmf", "ovmf.fd", *QEMU]
GOOD = build_firmware(size=PAGE, seed=b"wrong")
WRONGLY_ACCEPTED = {
    "no metadata": (["--mode", "snp:ovmf-hash", "--ovmf", "ovmf.fd"], bytes(PAGE)),
    "odd size": (["--mode", "sev", "--ovmf", "ovmf.fd"], bytes(PAGE + 1)),
    "no vCPUs": ([*SNP, "--vcpus", "0"], GOOD),
    "negative vCPUs": ([*SNP, "--vcpus", "-1"], GOOD),
    "too many vCPUs": ([*SNP, "--vcpus", "513"], GOOD),
    "features beyond 64 bits": ([*SNP, "--vcpus", "1", "--guest-features", hex((1 << 64) + 1)], GOOD),
    "negative features": ([*SNP, "--vcpus", "1", "--guest-features", "-1"], GOOD),
    "signature beyond 32 bits": (
        ["--mode", "snp", "--ovmf", "ovmf.fd", "--vcpus", "1", "--vcpu-sig", hex(1 << 64 | 0x800F12)],
        GOOD,
    ),
    "NUL in the command line": ([*SNP, "--vcpus", "1", "--kernel", "vmlinuz", "--append", "a\0b"], GOOD),
    "hash table nowhere": (
        [*SNP, "--vcpus", "1", "--kernel", "vmlinuz"],
        build_firmware(size=PAGE, hashes_table_gpa=0, seed=b"wrong"),
    ),
    "hash table outside its section": (
        [*SNP, "--vcpus", "1", "--kernel", "vmlinuz"],
        build_firmware(size=PAGE, hashes_table_gpa=0x82_0C00, seed=b"wrong"),
    ),
    "unaligned section": (
        [*SNP, "--vcpus", "1"],
        build_firmware(
            size=PAGE, sections=[Section(0x10, PAGE, SectionType.SEC_MEMORY), *AMDSEV_SECTIONS], seed=b"wrong"
        ),
    ),
}


@pytest.mark.parametrize(("argv", "image"), WRONGLY_ACCEPTED.values(), ids=WRONGLY_ACCEPTED)
def test_refusals(argv: list[str], image: bytes, tmp_path: Path) -> None:
    (tmp_path / "ovmf.fd").write_bytes(image)
    (tmp_path / "vmlinuz").touch()
    assert theirs(argv, tmp_path)
    with pytest.raises(MeasurementError):
        ours(argv, tmp_path)
