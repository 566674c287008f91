"""A SIMULATED configfs-tsm on a real mount point, for tests that want the real system calls."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from kms.simulator.machine import SimulatedMachine
from kms.simulator.tsm_fuse import Faults, SimulatedTsm
from kms.simulator.tsm_reports import reports_of

_CAP_SYS_ADMIN: Final = 21  # include/uapi/linux/capability.h
_WELL: Final = Faults()


def _may_mount() -> bool:
    """Tell whether /dev/fuse is here and mount(2) permitted; being root is not enough in a container."""
    effective = next(
        line.split()[1]
        for line in Path("/proc/self/status").read_text("ascii").splitlines()
        if "CapEff" in line
    )
    return os.access("/dev/fuse", os.R_OK | os.W_OK) and bool(int(effective, 16) >> _CAP_SYS_ADMIN & 1)


needs_fuse = pytest.mark.skipif(not _may_mount(), reason="a SIMULATED configfs-tsm takes /dev/fuse and root")


@contextmanager
def simulated_tsm(folder: Path, machine: SimulatedMachine, faults: Faults = _WELL) -> Iterator[SimulatedTsm]:
    """Mount on `folder`, which is made if it is missing, what that machine's kernel would offer."""
    folder.mkdir(parents=True, exist_ok=True)
    tsm = SimulatedTsm(reports_of(machine.guest), faults=faults)
    with tsm.serve(folder):
        yield tsm
