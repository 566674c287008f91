"""Launch measurements, ours and sev-snp-measure's (in process by its library, and as a command)."""

import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha384
from pathlib import Path
from typing import Final

from sevsnpmeasure import guest as theirs
from sevsnpmeasure.sev_mode import SevMode

from bench.pairs import Case, Work, by_turns
from kms.identifiers import Measurement
from kms.measurement import snp
from kms.measurement.firmware import Firmware
from kms.measurement.images import Image, MeasurementTable
from kms.measurement.launch import (
    LaunchDescription,
    Machine,
    Vmm,
    launch_measurement,
    os_image_hash,
)
from kms.measurement.metadata import PAGE
from kms.measurement.snp import machine_digest, metadata_digest
from kms.measurement.vcpu_types import VCPU_TYPES
from kms.simulator.firmware import build_firmware

_TYPES: Final = ("EPYC-v4", "EPYC-Rome", "EPYC-Milan", "EPYC-Genoa", "EPYC-Turin")
_FEATURES: Final = (0x1, 0x21)
_COUNTS: Final = 64
_SIGNATURE: Final = VCPU_TYPES["EPYC-v4"]
_LOOK_UPS: Final = 10_000
_BIN: Final = Path(sys.executable).parent


def cases(folder: Path, rounds: int) -> Iterator[Case]:
    """Measure everything, with files in `folder`; each case when it is done."""
    path = folder / "ovmf.fd"
    path.write_bytes(build_firmware(seed=b"bench"))
    firmware = Firmware.parse(path.read_bytes())
    description = LaunchDescription(vmm=Vmm.QEMU, firmware=firmware.describe())
    for vcpus in (1, 64, 512):
        yield _cold(path, vcpus, rounds)
    for vcpus in (1, 64, 512):
        yield _digest_known(path, description, vcpus, rounds)
    yield _index(path, description, max(3, rounds // 10))
    yield _look_up(description, rounds)
    yield _process(path, max(5, rounds // 2))


def _cold(path: Path, vcpus: int, rounds: int) -> Case:
    """One measurement from the file, nothing remembered; and what nobody can save."""
    return by_turns(
        f"cold, 4 MiB firmware, {vcpus} vCPUs",
        {
            "ours": lambda: _measure_file(path, vcpus),
            "sev-snp-measure": lambda: _theirs(path, vcpus, 1),
            "read, SHA-384": _bare_work(path, vcpus),
        },
        rounds=rounds,
        aims={"sev-snp-measure": 0.85, "read, SHA-384": 1.1},
    )


def _measure_file(path: Path, vcpus: int) -> bytes:
    snp._page_contents.cache_clear()  # noqa: SLF001  # cold is cold
    firmware = Firmware.parse(path.read_bytes()).describe()
    prefix = metadata_digest(Vmm.QEMU, firmware, None)
    return machine_digest(prefix, Vmm.QEMU, Machine(vcpus, _SIGNATURE, 1), firmware.reset_eip)


def _theirs(path: Path, vcpus: int, features: int, firmware: str = "", signature: int = _SIGNATURE) -> bytes:
    digest: bytes = theirs.calc_launch_digest(
        SevMode.SEV_SNP, vcpus, signature, str(path), None, None, None, features, firmware
    )
    return digest


def _bare_work(path: Path, vcpus: int) -> Work:
    """Give the work that no measurement can save: the file read, and each hash over bytes that lie ready."""
    sections = Firmware.parse(path.read_bytes()).sections
    others = vcpus + sum(each.size for each in sections) // PAGE
    page, info = bytes(PAGE), bytes(112)

    def hash_all() -> None:
        data = memoryview(path.read_bytes())
        for offset in range(0, len(data), PAGE):
            sha384(data[offset : offset + PAGE]).digest()
            sha384(info).digest()
        for _ in range(min(vcpus, 2)):
            sha384(page).digest()
        for _ in range(others):
            sha384(info).digest()

    return hash_all


def _digest_known(path: Path, description: LaunchDescription, vcpus: int, rounds: int) -> Case:
    machine, digest = Machine(vcpus, _SIGNATURE, 1), description.firmware.digest.hex()
    return by_turns(
        f"firmware digest known, {vcpus} vCPUs",
        {
            "ours": lambda: launch_measurement(description, machine),
            "sev-snp-measure": lambda: _theirs(path, vcpus, 1, digest),
        },
        rounds=rounds,
        batch=10,
        aims={"sev-snp-measure": 0.1},
    )


def _image(description: LaunchDescription) -> Image:
    return Image(
        name="bench",
        os_image_hash=os_image_hash(description.to_json()),
        description=description,
        enforces=frozenset(),
        vcpu_types=_TYPES,
        vcpus_minimum=1,
        vcpus_maximum=_COUNTS,
        guest_features=_FEATURES,
    )


def _index(path: Path, description: LaunchDescription, rounds: int) -> Case:
    """Every measurement of an image, until the first look-up is answered."""
    image, digest = _image(description), description.firmware.digest.hex()
    unknown = Measurement(bytes(48))

    def one_by_one() -> None:
        for name in _TYPES:
            for features in _FEATURES:
                for vcpus in range(1, _COUNTS + 1):
                    _theirs(path, vcpus, features, digest, VCPU_TYPES[name])

    count = len(_TYPES) * len(_FEATURES) * _COUNTS
    return by_turns(
        f"index of an image, {count} measurements",
        {
            "ours": lambda: MeasurementTable(image).find(unknown),
            "sev-snp-measure": one_by_one,
        },
        rounds=rounds,
        limit=10e-3,
    )


def _look_up(description: LaunchDescription, rounds: int) -> Case:
    table = MeasurementTable(_image(description))
    shown = [measurement for measurement, _ in table]
    wanted = (shown * (_LOOK_UPS // len(shown) + 1))[:_LOOK_UPS]

    def look_up() -> None:
        for measurement in wanted:
            table.find(measurement)

    case = by_turns("index look-up", {"ours": look_up}, rounds=rounds)
    return Case(case.name, {"ours": tuple(each / _LOOK_UPS for each in case.seconds["ours"])}, limit=5e-6)


def _process(path: Path, rounds: int) -> Case:
    flags = ["--mode", "snp", "--vcpus", "2", "--vcpu-type", "EPYC-v4", "--ovmf", str(path)]

    def run(*command: str) -> None:
        subprocess.run([*command, *flags], check=True, stdout=subprocess.DEVNULL)  # noqa: S603  # our own

    return by_turns(
        "the whole process",
        {
            "ours": lambda: run(str(_BIN / "kms"), "measure"),
            "sev-snp-measure": lambda: run(str(_BIN / "sev-snp-measure")),
        },
        rounds=rounds,
        aims={"sev-snp-measure": 1.0},
    )
