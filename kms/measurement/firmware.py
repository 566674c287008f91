"""OVMF as the hypervisor reads it: the footer table near its end, and the SEV metadata that it points to.

Layout: edk2 OvmfPkg/ResetVector. The table ends 32 bytes before the end of the image and is read backwards;
an entry is data, u16 length (of data and these 18 bytes), GUID. Everything is little-endian. The parser takes
what the hypervisor would read and refuses the rest: a digest of firmware that cannot start, or that another
reader would read differently, is worse than none (field lesson 16).
"""

from collections.abc import Mapping
from struct import Struct
from types import MappingProxyType
from typing import Final, NamedTuple, Self

from kms.identifiers import Measurement
from kms.measurement import guids
from kms.measurement.errors import MeasurementError
from kms.measurement.metadata import (
    FOUR_GIB,
    MAX_SECTIONS,
    PAGE,
    FirmwareDescription,
    Section,
    checked_sections,
    section,
)
from kms.measurement.pages import START, extend_data

MAX_FIRMWARE: Final = 16 << 20  # bytes; QEMU takes 8 MiB of flash, the largest builds that we know are 4 MiB

_AFTER_TABLE: Final = 32  # bytes between the table and the end: the reset vector
_ENTRY: Final = Struct("<H16s")  # length of the whole entry, GUID; its data stands before
_METADATA: Final = Struct("<4sIII")  # "ASEV", length with this header, version, number of sections
_SECTION: Final = Struct("<III")  # address, length, type
_U32: Final = Struct("<I")


class Firmware(NamedTuple):
    """A firmware image, parsed. `gpa` is where it is mapped; `sections` is empty where it has no metadata."""

    data: bytes
    gpa: int
    table: Mapping[bytes, bytes]
    sections: tuple[Section, ...]

    @classmethod
    def parse(cls, data: bytes, *, end_at: int = FOUR_GIB) -> Self:
        """Parse an image that is mapped to end at address `end_at`.

        An image without footer table or metadata parses: plain SEV needs neither, and what does says so.

        Raises:
            MeasurementError: not whole pages, too large, or a table or metadata that is not well formed.

        """
        if not data or len(data) % PAGE or len(data) > MAX_FIRMWARE:
            raise MeasurementError(f"firmware must be whole 4 KiB pages, at most {MAX_FIRMWARE >> 20} MiB")
        if end_at % PAGE or not len(data) <= end_at <= FOUR_GIB:
            raise MeasurementError("firmware must be mapped to whole pages below 4 GiB")
        table = _footer_table(data)
        sections = _sections(data, table)
        return cls(data=data, gpa=end_at - len(data), table=MappingProxyType(table), sections=sections)

    # Without the megabytes of data. No `override`: importing it would cost more than parsing.
    def __repr__(self) -> str:  # type: ignore[explicit-override]
        return f"Firmware(gpa={self.gpa:#x}, sections={self.sections})"

    @property
    def hashes_table_gpa(self) -> int:
        """Where the kernel hash table goes; 0 if the firmware has no place for it."""
        entry = self.table.get(guids.SEV_HASH_TABLE)
        return 0 if entry is None else _u32(entry)

    @property
    def reset_eip(self) -> int:
        """Where application processors start. Raises `MeasurementError` if the firmware does not say."""
        return self._required(guids.SEV_ES_RESET_BLOCK, "SEV-ES reset block")

    @property
    def svsm_entry(self) -> int:
        """Where an SVSM image starts. Raises `MeasurementError` if it does not say, or beyond itself."""
        offset = self._required(guids.SVSM_INFO, "SVSM info")
        if offset >= len(self.data):
            raise MeasurementError("the SVSM entry point lies outside the image")
        return self.gpa + offset

    def digest(self) -> Measurement:
        """Give the launch digest after the image's own pages."""
        return Measurement(extend_data(START, self.gpa, self.data))

    def describe(self, digest: Measurement | None = None) -> FirmwareDescription:
        """Give what an SNP measurement depends on; `digest` saves hashing an image whose digest is known.

        Raises:
            MeasurementError: no SEV metadata or no reset block, so it cannot start an SNP guest.

        """
        sections = checked_sections(self.sections)
        return FirmwareDescription(
            reset_eip=self.reset_eip,
            hashes_table_gpa=self.hashes_table_gpa,
            sections=sections,
            digest=self.digest() if digest is None else digest,
        )

    def _required(self, guid: bytes, what: str) -> int:
        if guid not in self.table:
            raise MeasurementError(f"the footer table has no {what} entry: not firmware for this mode")
        return _u32(self.table[guid])


def firmware_digest(data: bytes) -> Measurement:
    """Give the digest that ``snp:ovmf-hash`` prints: of the firmware's pages alone, ending at 4 GiB.

    Raises:
        MeasurementError: not firmware that can start an SNP guest.

    """
    return Firmware.parse(data).describe().digest


def _u32(entry: bytes) -> int:
    if len(entry) < _U32.size:
        raise MeasurementError("an entry of the footer table is shorter than its 32-bit value")
    value: int = _U32.unpack_from(entry)[0]
    return value


def _footer_table(data: bytes) -> dict[bytes, bytes]:
    """Read the entries by GUID; none where there is no footer."""
    end = len(data) - _AFTER_TABLE - _ENTRY.size
    length, guid = _ENTRY.unpack_from(data, end)
    if guid != guids.TABLE_FOOTER:
        return {}
    # The footer is itself an entry, whose length is that of the whole table.
    start = end + _ENTRY.size - length
    if length < _ENTRY.size or start < 0:
        raise MeasurementError("the footer table does not fit into the firmware")
    table: dict[bytes, bytes] = {}
    while end > start:
        header = end - _ENTRY.size
        if header < start:
            raise MeasurementError("the footer table has left-over bytes")
        length, guid = _ENTRY.unpack_from(data, header)
        if length < _ENTRY.size or end - length < start:
            raise MeasurementError("an entry of the footer table has an impossible length")
        if guid in table:
            # QEMU takes the one nearest the end, others the other: two readers, two measurements.
            raise MeasurementError("the footer table has two entries of one GUID")
        table[guid] = data[end - length : header]
        end -= length
    return table


def _sections(data: bytes, table: Mapping[bytes, bytes]) -> tuple[Section, ...]:
    """Read the metadata sections; none where the table does not point to any."""
    entry = table.get(guids.SEV_METADATA)
    if entry is None:
        return ()
    start = len(data) - _u32(entry)
    if not 0 <= start <= len(data) - _METADATA.size:
        raise MeasurementError("the SEV metadata lies outside the firmware")
    signature, length, version, count = _METADATA.unpack_from(data, start)
    if signature != b"ASEV" or version != 1:
        raise MeasurementError("the SEV metadata has a wrong signature or version")
    # Counted before they are read: the number is the firmware's own.
    if count > MAX_SECTIONS:
        raise MeasurementError(f"more than {MAX_SECTIONS} SEV metadata sections")
    if _METADATA.size + count * _SECTION.size > length or start + length > len(data):
        raise MeasurementError("the SEV metadata is shorter than its sections")
    first = start + _METADATA.size
    items = _SECTION.iter_unpack(data[first : first + count * _SECTION.size])
    sections = [section(gpa, size, number) for gpa, size, number in items]
    return checked_sections(sections) if sections else ()
