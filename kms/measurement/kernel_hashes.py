"""The table of kernel, initrd and command line hashes that QEMU writes for a measured direct boot.

Source: QEMU target/i386/sev.c (PaddedSevHashTable) and edk2 OvmfPkg BlobVerifierLibSevHashes. The layout is
QEMU's, entry order included: cmdline, initrd, kernel.
"""

from hashlib import sha256
from struct import Struct
from typing import Final

from kms.measurement import guids
from kms.measurement.errors import MeasurementError
from kms.measurement.metadata import PAGE, Section, SectionType

_HEADER: Final = Struct("<16sH")  # GUID, length of the whole table
_ENTRY: Final = Struct("<16sH32s")  # GUID, length of the entry, SHA-256
_LENGTH: Final = _HEADER.size + 3 * _ENTRY.size  # 168
TABLE_LENGTH: Final = (_LENGTH + 15) & ~15  # 176: padded with zeros

NO_INITRD: Final = sha256(b"").digest()  # what QEMU hashes when there is no initrd


def cmdline_bytes(cmdline: str) -> bytes:
    """Give the exact bytes of a command line.

    Nothing is trimmed: the hypervisor measures every space (field lesson 17).

    Raises:
        MeasurementError: a NUL, after which a C hypervisor would measure nothing, or no valid UTF-8.

    """
    if "\0" in cmdline:
        raise MeasurementError("the command line holds a NUL")
    try:
        return cmdline.encode("utf-8")
    except UnicodeEncodeError:
        raise MeasurementError("the command line is not valid UTF-8") from None


def hash_table(kernel: bytes, initrd: bytes, cmdline: str) -> bytes:
    """Give the padded table (176 bytes) of two SHA-256 digests and a command line.

    Raises:
        MeasurementError: digests of another length, or a command line that cannot be measured.

    """
    if not len(kernel) == len(initrd) == len(NO_INITRD):
        raise MeasurementError("kernel and initrd must be SHA-256 digests")
    # QEMU hashes the command line with its terminating NUL, also where it is empty.
    of_cmdline = sha256(cmdline_bytes(cmdline) + b"\0").digest()
    entries = ((guids.HASH_CMDLINE, of_cmdline), (guids.HASH_INITRD, initrd), (guids.HASH_KERNEL, kernel))
    table = _HEADER.pack(guids.HASH_TABLE_HEADER, _LENGTH) + b"".join(
        _ENTRY.pack(guid, _ENTRY.size, digest) for guid, digest in entries
    )
    return table.ljust(TABLE_LENGTH, b"\0")


def hash_page(table: bytes, table_gpa: int) -> bytes:
    """Give the page (4096 bytes) that holds the table at its address, zeros around it."""
    return (bytes(table_gpa % PAGE) + table).ljust(PAGE, b"\0")


def check_table_place(sections: tuple[Section, ...], table_gpa: int) -> None:
    """Check that the firmware has one page for the hash table, and that the table lies in it.

    Elsewhere the hypervisor would write hashes that the guest never reads, or refuse to launch: the kernel
    would not be measured though the digest says so (field lesson 16).

    Raises:
        MeasurementError: no KERNEL_HASHES section, more than one, not one page, or the table outside.

    """
    pages = [each for each in sections if each.type is SectionType.KERNEL_HASHES]
    if not pages:
        raise MeasurementError("kernel given, but the firmware has no SNP_KERNEL_HASHES section")
    if len(pages) > 1 or pages[0].size != PAGE:
        raise MeasurementError("kernel given, but SNP_KERNEL_HASHES is not one section of one page")
    start = pages[0].gpa
    if not start <= table_gpa <= start + PAGE - TABLE_LENGTH:
        raise MeasurementError("kernel given, but the hash table lies outside the SNP_KERNEL_HASHES page")
