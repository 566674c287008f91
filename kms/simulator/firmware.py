"""A firmware image with everything that a launch measurement reads, and noise elsewhere.

It cannot boot. It has OVMF's footer table and SEV metadata where OVMF has them, so that the demo and the
tests measure real bytes without shipping somebody's firmware.
"""

from collections.abc import Sequence
from hashlib import shake_256
from struct import pack
from typing import Final

from kms.measurement import guids
from kms.measurement.metadata import FOUR_GIB, Section, SectionType

# The sections, reset address and hash table address of edk2's AmdSev build.
AMDSEV_SECTIONS: Final = (
    Section(0x80_0000, 0x9000, SectionType.SEC_MEMORY),
    Section(0x80_A000, 0x3000, SectionType.SEC_MEMORY),
    Section(0x80_D000, 0x1000, SectionType.SECRETS),
    Section(0x80_E000, 0x1000, SectionType.CPUID),
    Section(0x80_F000, 0x1000, SectionType.SVSM_CAA),
    Section(0x81_1000, 0xF000, SectionType.SEC_MEMORY),
    Section(0x81_0000, 0x1000, SectionType.KERNEL_HASHES),
)
AMDSEV_RESET_EIP: Final = 0x80_B004
AMDSEV_HASHES_TABLE_GPA: Final = 0x81_0C00
_HASHES_TABLE_SIZE: Final = 0x400
_AFTER_TABLE: Final = 32


def build_firmware(
    *,
    sections: Sequence[Section] = AMDSEV_SECTIONS,
    size: int = 4 << 20,
    reset_eip: int = AMDSEV_RESET_EIP,
    hashes_table_gpa: int = AMDSEV_HASHES_TABLE_GPA,
    svsm_entry: int | None = None,
    seed: bytes,
) -> bytes:
    """Build an image of `size` bytes (whole pages), the same for the same arguments.

    `seed` decides its contents. `svsm_entry` (an offset into the image) adds the entry that makes it a
    Coconut-SVSM image. Values are written as given, so that tests can build what must be refused.

    Raises:
        ValueError: `size` is not whole pages, or too small for the sections.

    """
    metadata = pack("<4sIII", b"ASEV", 16 + 12 * len(sections), 1, len(sections))
    metadata += b"".join(pack("<III", each.gpa, each.size, each.type) for each in sections)
    entries = _entry(guids.SEV_HASH_TABLE, pack("<II", hashes_table_gpa, _HASHES_TABLE_SIZE))
    entries += _entry(guids.SEV_ES_RESET_BLOCK, pack("<I", reset_eip))
    if svsm_entry is not None:
        entries += _entry(guids.SVSM_INFO, pack("<I", svsm_entry))
    # The metadata stands right before the table, whose length does not depend on where it points.
    table_length = (
        len(entries) + len(_entry(guids.SEV_METADATA, bytes(4))) + len(_entry(guids.TABLE_FOOTER, b""))
    )
    from_end = _AFTER_TABLE + table_length + len(metadata)
    entries += _entry(guids.SEV_METADATA, pack("<I", from_end))
    footer = pack("<H", table_length) + guids.TABLE_FOOTER
    body = size - from_end
    if size % 4096 or not 0 <= body < FOUR_GIB:
        raise ValueError("firmware must be whole pages with room for its metadata")
    noise = shake_256(seed).digest(body + _AFTER_TABLE)
    return noise[:body] + metadata + entries + footer + noise[body:]


def _entry(guid: bytes, data: bytes) -> bytes:
    return data + pack("<H", len(data) + 18) + guid
