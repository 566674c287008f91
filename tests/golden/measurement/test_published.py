"""Vectors that others published: every mode, hypervisor and VMSA variant that they cover."""

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from kms.cli import measure
from kms.errors import KmsError
from kms.identifiers import Measurement
from kms.measurement import guids
from kms.measurement.errors import MeasurementError
from kms.measurement.firmware import Firmware, firmware_digest
from kms.measurement.kernel_hashes import NO_INITRD, hash_table
from kms.measurement.launch import Machine, Vmm, launch_measurement, parse_launch_file
from kms.measurement.metadata import FirmwareDescription, section
from kms.measurement.pages import START, extend_data
from kms.measurement.snp import machine_digest, metadata_digest
from kms.measurement.vcpu_types import VCPU_TYPES
from kms.measurement.vmsa import VmsaVariant

HERE = Path(__file__).parent
PUBLISHED: dict[str, Any] = json.loads((HERE / "published.json").read_text())
LAUNCHES: list[dict[str, Any]] = json.loads((HERE / "launches.json").read_text())
EMPTY_SHA256 = hashlib.sha256(b"").digest()


def shared() -> Path:
    given = os.environ.get("KMS_REAL_EVIDENCE")
    return Path(given) if given else Path(__file__).resolve().parents[3].parent / "shared"


def fixture(name: str) -> Path:
    facts: dict[str, Any] = PUBLISHED["firmware"][name]
    path: Path = shared() / "measurement" / facts["file"]
    if not path.exists():
        pytest.skip(f"no {path.name} beside the project (KMS_REAL_EVIDENCE)")
    return path


def described(name: str) -> FirmwareDescription:
    facts = PUBLISHED["firmware"][name]
    return FirmwareDescription(
        digest=Measurement.from_hex(facts["digest"]),
        reset_eip=facts["reset_eip"],
        hashes_table_gpa=facts["hashes_table_gpa"],
        sections=tuple(section(*each) for each in facts["sections"]),
    )


SNP = [case for case in PUBLISHED["cases"] if case["mode"] == "snp" and case["expect"] != "error"]


@pytest.mark.parametrize("case", SNP, ids=lambda case: case["name"])
def test_snp_from_facts_alone(case: dict[str, Any]) -> None:
    firmware = described(case["ovmf"])
    vmm = Vmm(case["vmm"].lower())
    table = hash_table(EMPTY_SHA256, NO_INITRD, case.get("append") or "") if "kernel" in case else None
    machine = Machine(
        case["vcpus"], VCPU_TYPES[case.get("vcpu_type", "EPYC")], int(case["guest_features"], 0)
    )
    variant = VmsaVariant(case.get("vmsa_variant", "current"))
    prefix = metadata_digest(vmm, firmware, table)
    assert machine_digest(prefix, vmm, machine, firmware.reset_eip, variant).hex() == case["expect"]


@pytest.mark.real_evidence
@pytest.mark.parametrize("case", PUBLISHED["cases"], ids=lambda case: case["name"])
def test_command(case: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    argv = ["--mode", case["mode"], "--vmm-type", case["vmm"], "--ovmf", str(fixture(case["ovmf"]))]
    for name in ("vcpus", "vcpu_type", "guest_features", "append", "snp_ovmf_hash", "vmsa_variant"):
        if name in case:
            argv += [f"--{name.replace('_', '-')}", str(case[name])]
    for name in ("kernel", "initrd"):
        if name in case:
            argv += [f"--{name}", str(empty)]
    if case["expect"] == "error":
        with pytest.raises(KmsError, match="kernel given"):
            measure.main(argv)
        return
    assert measure.main(argv) == 0
    assert capsys.readouterr().out == case["expect"] + "\n"


@pytest.mark.real_evidence
@pytest.mark.parametrize("name", PUBLISHED["firmware"])
def test_fixture_facts(name: str) -> None:
    data = fixture(name).read_bytes()
    assert hashlib.sha256(data).hexdigest() == PUBLISHED["firmware"][name]["sha256"]
    assert Firmware.parse(data).describe() == described(name)


@pytest.mark.parametrize("case", LAUNCHES, ids=lambda case: case["name"])
def test_launch_inputs(case: dict[str, Any]) -> None:
    """The first of these was signed by hardware: it ties VMSA, sections, hash table and order to silicon."""
    file = parse_launch_file(case["launch"])
    machine = file.machine()
    assert machine is not None
    assert launch_measurement(file.description, machine).hex() == case["expect"]


@pytest.mark.real_evidence
def test_launch_of_the_signed_report() -> None:
    folder = shared() / "evidence" / "milan-v3-vcek-launch"
    if not folder.exists():
        pytest.skip("no real evidence beside the project (KMS_REAL_EVIDENCE)")
    file = parse_launch_file(json.loads((folder / "launch.json").read_bytes()))
    machine = file.machine()
    assert machine is not None
    report = (folder / "report.bin").read_bytes()
    assert launch_measurement(file.description, machine) == report[0x90:0xC0]


def test_one_page() -> None:
    """dstack-mr's vector of a single NORMAL page whose contents are SHA-384("page")."""
    contents = hashlib.sha384(b"page").digest()
    info = START + contents + bytes.fromhex("7000010000000000") + (0x1000).to_bytes(8, "little")
    expect = (
        "3ebc1a70acc0bae5ae2788fae29a0371f983b19a68faf9843064f36040f58571ce5bb6bcdc9c361087073f8cffd92635"
    )
    assert hashlib.sha384(info).hexdigest() == expect
    page = bytes(4096)
    info = START + hashlib.sha384(page).digest() + info[0x60:]
    assert extend_data(START, 0x1000, page) == hashlib.sha384(info).digest()


def test_synthetic_firmware() -> None:
    """dstack-mr's synthetic OVMF; its metadata says a length of 0, which QEMU takes for no metadata."""

    def entry(guid: bytes, value: int) -> bytes:
        return struct.pack("<IH", value, 22) + guid

    metadata = struct.pack("<4sIII", b"ASEV", 0, 1, 4)
    for gpa, number in ((0x1000, 1), (0x2000, 2), (0x3000, 3), (0x4000, 0x10)):
        metadata += struct.pack("<III", gpa, 0x1000, number)
    table = entry(guids.SEV_HASH_TABLE, 0x4000) + entry(guids.SEV_ES_RESET_BLOCK, 0xFFFF_FFF0)
    table += entry(guids.SEV_METADATA, 4096 - 512)
    table += struct.pack("<H", len(table) + 18) + guids.TABLE_FOOTER
    image = (bytes(512) + metadata).ljust(4096 - 32 - len(table), b"\0") + table + bytes(32)
    expect = (
        "7c0f80f0a8d0ab1ee23fe763b255b8b210bb71113febcda60d76c00e84512f0cc141ffaa61be7bd22164736e85ec52d3"
    )
    assert extend_data(START, (1 << 32) - 4096, image).hex() == expect
    with pytest.raises(MeasurementError, match="shorter than its sections"):
        firmware_digest(image)
    # With the right length it parses, and measures as what it then is.
    corrected = image[:516] + struct.pack("<I", len(metadata)) + image[520:]
    assert len(Firmware.parse(corrected).describe().sections) == 4
