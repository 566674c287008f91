"""Random mutations of valid firmware: a measurement or a `MeasurementError`, and never for long.

``python -m tests.fuzz.firmware --cases 100000``. A case is its number: what fails can be run again alone.
"""

import argparse
import random
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from kms.measurement import guids
from kms.measurement.errors import MeasurementError
from kms.measurement.firmware import Firmware
from kms.measurement.kernel_hashes import NO_INITRD, hash_table
from kms.measurement.metadata import PAGE
from kms.measurement.other_modes import sev_measurement, svsm_image, svsm_measurement
from kms.measurement.snp import MAX_VCPUS, Machine, machine_digest, metadata_digest
from kms.measurement.vmsa import Vmm
from kms.simulator.firmware import build_firmware

BOUND = 0.05  # seconds for any input
# Processor time, and yet: a machine that others use loses its caches to them.
LENIENCE = 4

VALID = [
    build_firmware(size=PAGE, seed=b"fuzz"),
    build_firmware(size=3 * PAGE, seed=b"fuzz", svsm_entry=16),
]
_TABLE_ROOM = 400  # bytes before the end that hold metadata, table and footer
_INTERESTING = [0, 1, 15, 16, 18, 0x1000, 0x7FFF, 0xFFFF, 0x1_0000, 0x7FFF_FFFF, 0xFFFF_F000, 0xFFFF_FFFF]
_TABLE = hash_table(bytes(32), NO_INITRD, "console=ttyS0")


@dataclass
class Outcome:
    """What came of a run; `slowest` is of one input, in seconds of processor time."""

    refused: Counter[str] = field(default_factory=Counter)
    measured: int = 0
    slowest: float = 0.0
    slowest_case: int = 0


def mutated(case: int) -> bytes:
    """Give the firmware of a case: one to six changes, mostly where the parser reads."""
    rng = random.Random(case)
    data = bytearray(rng.choice(VALID))
    for _ in range(rng.randint(1, 6)):
        _change(rng, data)
    return bytes(data)


def _change(rng: random.Random, data: bytearray) -> None:
    if len(data) < 8:
        data += rng.randbytes(PAGE)
    room = min(_TABLE_ROOM, len(data))
    at = len(data) - rng.randint(4, room) if rng.random() < 0.9 else rng.randrange(len(data) - 3)
    kind = rng.randrange(8)
    if kind == 0:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        data[at] = rng.randrange(256)
    elif kind == 2:
        data[at : at + 4] = struct.pack("<I", rng.choice(_INTERESTING))
    elif kind == 3:
        data[at : at + 2] = struct.pack("<H", rng.choice(_INTERESTING) & 0xFFFF)
    elif kind == 4:
        value = struct.unpack_from("<I", data, at)[0] + rng.choice([-PAGE, -12, -1, 1, 12, PAGE])
        data[at : at + 4] = struct.pack("<I", value & 0xFFFF_FFFF)
    elif kind == 5:
        source, length = len(data) - rng.randint(1, room), rng.randint(1, 64)
        data[at : at + length] = data[source : source + length]
    elif kind == 6 and rng.random() < 0.2:
        del data[: rng.choice([1, PAGE // 2, PAGE, len(data)])]
    elif kind == 7 and rng.random() < 0.2:
        data[:0] = bytes(rng.choice([1, PAGE, 16 * PAGE]))


def measure_everything(data: bytes) -> None:
    """Measure in every mode that takes this firmware; raises `MeasurementError` if it is refused."""
    firmware = Firmware.parse(data)
    sev_measurement(firmware, None)
    description = firmware.describe()
    machine = Machine(MAX_VCPUS if len(data) == PAGE else 2, 0x800F12, 1)
    for vmm in Vmm:
        prefix = metadata_digest(vmm, description, None)
        machine_digest(prefix, vmm, machine, description.reset_eip)
    metadata_digest(Vmm.QEMU, description, _TABLE)
    if guids.SVSM_INFO in firmware.table:
        svsm_measurement(firmware, svsm_image(firmware, data, PAGE), machine)


def run(cases: Iterable[int]) -> Outcome:
    """Run cases. Whatever is raised but `MeasurementError` is a finding, and goes through."""
    outcome = Outcome()
    for case in cases:
        data = mutated(case)
        started = time.thread_time()
        try:
            measure_everything(data)
        except MeasurementError as error:
            # Without the number that some end with.
            outcome.refused[error.detail.partition(" 0x")[0]] += 1
        except Exception:
            sys.stderr.write(f"case {case}\n")
            raise
        else:
            outcome.measured += 1
        elapsed = time.thread_time() - started
        if elapsed > outcome.slowest:
            outcome.slowest, outcome.slowest_case = elapsed, case
    return outcome


def main() -> int:
    """Run as many cases as asked, and say what came of them; 1 if one took too long."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.firmware")
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0)
    args = parser.parse_args()
    outcome = run(range(args.first, args.first + args.cases))
    print(f"{args.cases} mutations: {outcome.measured} measured, {outcome.refused.total()} refused, as")
    for detail, count in outcome.refused.most_common():
        print(f"  {count:>7}  {detail}")
    print(
        f"slowest: {outcome.slowest * 1e3:.1f} ms (case {outcome.slowest_case}; bound {BOUND * 1e3:.0f} ms)"
    )
    return 0 if outcome.slowest <= BOUND * LENIENCE else 1


if __name__ == "__main__":
    raise SystemExit(main())
