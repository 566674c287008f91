"""The measurement of a launch description: the room's front door.

A description holds hashes and no files, so that a policy can carry it and a request can be judged by it.
"""

from functools import lru_cache
from typing import Final

from kms.identifiers import Measurement
from kms.measurement.description import LaunchDescription, os_image_hash
from kms.measurement.errors import MeasurementError
from kms.measurement.kernel_hashes import NO_INITRD, hash_table
from kms.measurement.launch_file import LaunchFile, parse_launch_file
from kms.measurement.metadata import FirmwareDescription, Section, SectionType
from kms.measurement.snp import Machine, machine_digest, metadata_digest
from kms.measurement.vmsa import Vmm

__all__ = [
    "FirmwareDescription",
    "LaunchDescription",
    "LaunchFile",
    "Machine",
    "Section",
    "SectionType",
    "Vmm",
    "launch_measurement",
    "launch_prefix",
    "os_image_hash",
    "parse_launch_file",
]

_REMEMBERED: Final = 1024  # a fleet shows few of them, each again and again


def launch_prefix(description: LaunchDescription, *, cmdline: str | None = None) -> bytes:
    """Give the digest (48 bytes) before any vCPU: what all machines of one command line share.

    `cmdline` replaces the description's, placeholders filled.

    Raises:
        MeasurementError: a command line without a kernel, or one that cannot be measured.

    """
    if description.kernel is None:
        if cmdline is not None:
            raise MeasurementError("a command line is measured only with a kernel")
        return metadata_digest(description.vmm, description.firmware, None)
    text = cmdline if cmdline is not None else description.cmdline or ""
    initrd = NO_INITRD if description.initrd is None else description.initrd
    table = hash_table(description.kernel, initrd, text)
    return metadata_digest(description.vmm, description.firmware, table)


@lru_cache(maxsize=_REMEMBERED)
def launch_measurement(
    description: LaunchDescription, machine: Machine, *, cmdline: str | None = None
) -> Measurement:
    """Give the measurement (48 bytes) that an SNP report shows for this description on this machine.

    `cmdline` replaces the description's, placeholders filled.

    Raises:
        MeasurementError: as `launch_prefix`.

    """
    prefix = launch_prefix(description, cmdline=cmdline)
    return machine_digest(prefix, description.vmm, machine, description.firmware.reset_eip)
