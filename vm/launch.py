"""What a machine is started from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

VCPUS: Final = 1
VCPU_TYPE: Final = "EPYC"


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """The files of a measured direct boot."""

    firmware: Path
    kernel: Path
    initrd: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A launch as the host orders it. `cmdline` is what QEMU hands to the firmware.

    `measured_cmdline` is the one whose hash is in the table that is measured: a host that lies has another.
    The app document, whose hash is HOST_DATA, and the workload reach the guest through fw_cfg, unmeasured.
    """

    image: Image
    cmdline: str
    measured_cmdline: str
    app_document: Path
    workload: Path
    disk: Path
