"""The firmware parser, and every input on which sev-snp-measure crashes or misleads (field lesson 16)."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kms.measurement import guids
from kms.measurement.errors import MeasurementError
from kms.measurement.firmware import MAX_FIRMWARE, Firmware, firmware_digest
from kms.measurement.kernel_hashes import hash_table
from kms.measurement.metadata import MAX_METADATA_PAGES, MAX_SECTIONS, PAGE, Section, SectionType
from kms.measurement.snp import metadata_digest
from kms.measurement.vmsa import Vmm
from kms.simulator.firmware import (
    AMDSEV_HASHES_TABLE_GPA,
    AMDSEV_RESET_EIP,
    AMDSEV_SECTIONS,
    build_firmware,
)

SIZE = 2 * PAGE
TABLE = hash_table(bytes(32), bytes(32), "")
GOOD = build_firmware(size=SIZE, seed=b"good")
FOOTER = SIZE - 50  # of the footer's length field
HASHES = Section(0x81_0000, PAGE, SectionType.KERNEL_HASHES)


def patched(offset: int, data: bytes, image: bytes = GOOD) -> bytes:
    return image[:offset] + data + image[offset + len(data) :]


def entry_length_at(guid: bytes) -> int:
    """Where the length field of an entry is: right before its GUID."""
    return GOOD.index(guid) - 2


METADATA = GOOD.index(b"ASEV")
FIRST_SECTION = METADATA + 16


def with_sections(*sections: Section) -> bytes:
    return build_firmware(size=SIZE, sections=sections, seed=b"s")


def odd_section(gpa: int, size: int, number: int) -> Section:
    return Section(gpa, size, number)  # type: ignore[arg-type]  # what firmware says, not what is valid


def test_reads_what_ovmf_says() -> None:
    firmware = Firmware.parse(GOOD)
    assert firmware.gpa == (1 << 32) - SIZE
    assert firmware.sections == AMDSEV_SECTIONS
    assert firmware.reset_eip == AMDSEV_RESET_EIP
    assert firmware.hashes_table_gpa == AMDSEV_HASHES_TABLE_GPA
    assert firmware.describe().digest == firmware_digest(GOOD)


def test_known_digest_is_not_computed_again() -> None:
    firmware = Firmware.parse(GOOD)
    other = Firmware.parse(build_firmware(size=SIZE, seed=b"other")).digest()
    assert firmware.describe(other).digest == other


REFUSED = {
    "empty": b"",
    "shorter than a footer": bytes(49),
    "not whole pages": GOOD + bytes(100),
    "too large": bytes(MAX_FIRMWARE + PAGE),
    "footer length below its own": patched(FOOTER, struct.pack("<H", 17)),
    "footer length beyond the file": patched(FOOTER, struct.pack("<H", 0xFFFF)),
    "entry of length zero": patched(entry_length_at(guids.SEV_METADATA), bytes(2)),
    "entry longer than the table": patched(entry_length_at(guids.SEV_METADATA), b"\xff\xff"),
    "entry that swallows its neighbour's half": patched(entry_length_at(guids.SEV_METADATA), b"\x21\x00"),
    "two entries of one GUID": GOOD.replace(guids.SEV_ES_RESET_BLOCK, guids.SEV_METADATA),
    "reset block without data": patched(entry_length_at(guids.SEV_ES_RESET_BLOCK), b"\x12\x00"),
    "metadata beyond the start": GOOD.replace(guids.SEV_METADATA, guids.SEV_METADATA).replace(
        GOOD[GOOD.index(guids.SEV_METADATA) - 6 :][:4], struct.pack("<I", SIZE + 4)
    ),
    "metadata at the very end": GOOD.replace(
        GOOD[GOOD.index(guids.SEV_METADATA) - 6 :][:4], struct.pack("<I", 8)
    ),
    "wrong signature": patched(METADATA, b"ASEW"),
    "wrong version": patched(METADATA + 8, b"\x02"),
    "metadata length too small": patched(METADATA + 4, struct.pack("<I", 16)),
    "metadata length beyond the file": patched(METADATA + 4, b"\xff\xff\xff\xff"),
    "more sections than bytes": patched(METADATA + 12, struct.pack("<I", 60)),
    "billions of sections": patched(METADATA + 12, b"\xff\xff\xff\xff"),
    "too many sections": with_sections(*[Section(0, PAGE, SectionType.SEC_MEMORY)] * (MAX_SECTIONS + 1)),
    "unknown section type": with_sections(odd_section(0, PAGE, 5)),
    "unaligned section size": with_sections(odd_section(0, PAGE + 1, 1)),
    "unaligned section address": with_sections(odd_section(0x10, PAGE, 1)),
    "empty section": with_sections(odd_section(0, 0, 1)),
    "section beyond 4 GiB": with_sections(odd_section(0xFFFF_F000, 2 * PAGE, 1)),
    "section of 4 GiB": with_sections(odd_section(0, 0xFFFF_F000, 1)),
    "pages beyond the cap over all sections": with_sections(
        Section(0, MAX_METADATA_PAGES * PAGE, SectionType.SEC_MEMORY), HASHES
    ),
    "secrets of two pages": with_sections(odd_section(0, 2 * PAGE, 2)),
    "no sections": with_sections(),
    "no footer (Debian's OVMF has no metadata either)": bytes(SIZE),
    "no metadata entry": GOOD.replace(guids.SEV_METADATA, bytes(15) + b"\x01"),
    "no reset block": GOOD.replace(guids.SEV_ES_RESET_BLOCK, bytes(15) + b"\x01"),
}


@pytest.mark.parametrize("image", REFUSED.values(), ids=REFUSED)
def test_refuses(image: bytes) -> None:
    with pytest.raises(MeasurementError):
        firmware_digest(image)


def test_left_over_bytes_in_the_table() -> None:
    longer = struct.unpack_from("<H", GOOD, FOOTER)[0] + 4
    with pytest.raises(MeasurementError, match="left-over"):
        Firmware.parse(patched(FOOTER, struct.pack("<H", longer)))


def test_plain_firmware_parses_for_sev() -> None:
    firmware = Firmware.parse(bytes(SIZE))
    assert firmware.sections == ()
    assert firmware.hashes_table_gpa == 0
    with pytest.raises(MeasurementError, match="reset block"):
        _ = firmware.reset_eip


@pytest.mark.parametrize("end_at", [SIZE - PAGE, (1 << 32) + PAGE, (1 << 32) - 1])
def test_refuses_to_be_mapped_elsewhere(end_at: int) -> None:
    with pytest.raises(MeasurementError, match="mapped"):
        Firmware.parse(GOOD, end_at=end_at)


@pytest.mark.parametrize("entry", [0, SIZE - 1])
def test_svsm_entry(entry: int) -> None:
    firmware = Firmware.parse(build_firmware(size=SIZE, svsm_entry=entry, seed=b"svsm"), end_at=1 << 24)
    assert firmware.svsm_entry == (1 << 24) - SIZE + entry


def test_svsm_entry_outside_the_image() -> None:
    firmware = Firmware.parse(build_firmware(size=SIZE, svsm_entry=SIZE, seed=b"svsm"))
    with pytest.raises(MeasurementError, match="outside"):
        _ = firmware.svsm_entry


HASH_PLACES = {
    "no section": ((), 0x81_0C00),
    "two sections": ((HASHES, Section(0x82_0000, PAGE, SectionType.KERNEL_HASHES)), 0x81_0C00),
    "two pages": ((Section(0x81_0000, 2 * PAGE, SectionType.KERNEL_HASHES),), 0x81_0C00),
    "address 0": ((HASHES,), 0),
    "address before": ((HASHES,), 0x80_FFFF),
    "table across the page's end": ((HASHES,), 0x81_0F51),
    "same offset in another page": ((HASHES,), 0x82_0C00),
}


@pytest.mark.parametrize(("sections", "gpa"), HASH_PLACES.values(), ids=HASH_PLACES)
def test_refuses_a_kernel_whose_hashes_have_no_place(sections: tuple[Section, ...], gpa: int) -> None:
    memory = Section(0, PAGE, SectionType.SEC_MEMORY)
    image = build_firmware(size=SIZE, sections=(memory, *sections), hashes_table_gpa=gpa, seed=b"h")
    firmware = Firmware.parse(image).describe()
    with pytest.raises(MeasurementError, match="kernel given"):
        metadata_digest(Vmm.QEMU, firmware, TABLE)
    # Without a kernel the page is zeros, and where the table would go does not matter.
    assert len(metadata_digest(Vmm.QEMU, firmware, None)) == 48


def test_last_place_for_the_hash_table() -> None:
    image = build_firmware(size=SIZE, hashes_table_gpa=0x81_0F50, seed=b"h")
    assert len(metadata_digest(Vmm.QEMU, Firmware.parse(image).describe(), TABLE)) == 48


edits = st.lists(st.tuples(st.integers(1, 400), st.integers(0, 255)), min_size=1, max_size=8)


@settings(max_examples=400, deadline=None)
@given(edits=edits)
def test_mutations_measure_or_refuse(edits: list[tuple[int, int]]) -> None:
    """Bytes near the end are the table and the metadata: whatever they say, it is a digest or our error."""
    image = bytearray(GOOD)
    for from_end, value in edits:
        image[-from_end] = value
    try:
        firmware = Firmware.parse(bytes(image)).describe()
        metadata_digest(Vmm.QEMU, firmware, TABLE)
    except MeasurementError:
        return
    assert sum(each.size for each in firmware.sections) <= MAX_METADATA_PAGES * PAGE


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=3 * PAGE))
def test_anything_measures_or_refuses(data: bytes) -> None:
    try:
        Firmware.parse(data)
    except MeasurementError:
        return
    assert len(data) % PAGE == 0
