"""What OVMF tells the hypervisor about its memory: the SEV metadata sections, and their limits."""

from collections.abc import Sequence
from enum import IntEnum
from typing import Final, NamedTuple

from kms.identifiers import Measurement
from kms.measurement.errors import MeasurementError

PAGE: Final = 4096  # bytes
FOUR_GIB: Final = 1 << 32  # firmware ends here, and its metadata can address nothing above
MAX_SECTIONS: Final = 64
# One section of 4 GiB would cost seconds of hashing (field lesson 16); real firmware has some 30 pages.
MAX_METADATA_PAGES: Final = 4096


class SectionType(IntEnum):
    """Section types of edk2 OvmfPkg/ResetVector/X64/OvmfSevMetadata.asm."""

    SEC_MEMORY = 1
    SECRETS = 2
    CPUID = 3
    SVSM_CAA = 4
    KERNEL_HASHES = 0x10


# Named tuples, here and in the other modules that `kms measure` imports: importing `dataclasses` takes as
# long as measuring a firmware.
class Section(NamedTuple):
    """A range that the hypervisor prepares before launch: page-aligned address and size in bytes."""

    gpa: int
    size: int
    type: SectionType


class FirmwareDescription(NamedTuple):
    """What of a firmware image the measurement depends on.

    `digest` is the launch digest after the firmware's own pages (``snp:ovmf-hash``), `reset_eip` where
    application processors start, `hashes_table_gpa` where the kernel hash table goes (0: nowhere), and
    `sections` are in the firmware's order, which is the order of measurement.
    """

    digest: Measurement
    reset_eip: int
    hashes_table_gpa: int
    sections: tuple[Section, ...]


def section(gpa: int, size: int, number: int) -> Section:
    """Make one section. Raises `MeasurementError` where no hypervisor could launch it."""
    try:
        kind = SectionType(number)
    except ValueError:
        raise MeasurementError(f"unknown SEV metadata section type {number:#x}") from None
    if gpa % PAGE or size % PAGE or size <= 0:
        raise MeasurementError("a SEV metadata section must be whole pages")
    if gpa < 0 or gpa + size > FOUR_GIB:
        raise MeasurementError("a SEV metadata section must end at or below 4 GiB")
    if kind in {SectionType.SECRETS, SectionType.CPUID} and size != PAGE:
        # Hypervisors measure every page of it, sev-snp-measure one: there is no agreed measurement.
        raise MeasurementError("a SECRETS or CPUID section must be one page")
    return Section(gpa, size, kind)


def checked_sections(sections: Sequence[Section]) -> tuple[Section, ...]:
    """Give the sections as a tuple. Raises `MeasurementError` if there are none, or too much to hash."""
    if not sections:
        raise MeasurementError("the firmware has no SEV metadata sections, so it cannot start an SNP guest")
    if len(sections) > MAX_SECTIONS:
        raise MeasurementError(f"more than {MAX_SECTIONS} SEV metadata sections")
    if sum(each.size for each in sections) > MAX_METADATA_PAGES * PAGE:
        raise MeasurementError(f"more than {MAX_METADATA_PAGES} pages of SEV metadata sections")
    return tuple(sections)
