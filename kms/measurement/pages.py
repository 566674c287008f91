"""The launch digest itself: a chain of SHA-384 over one PAGE_INFO structure for each page.

Source: SEV-SNP firmware ABI (AMD publication 56860), section 8.17.2, table 67. PAGE_INFO is 0x70 bytes:
0x00 current digest, 0x30 CONTENTS, 0x60 length, 0x62 page type, 0x63 IMI and 0x64 VMPL permissions (zero
for every hypervisor we know), 0x68 guest physical address; little-endian.
"""

from enum import IntEnum
from functools import lru_cache
from hashlib import sha384
from struct import Struct
from typing import Final

from kms.measurement.metadata import PAGE

_page_info: Final = Struct("<48s48sHBxxxxxQ").pack
_PAGE_INFO_LENGTH: Final = 0x70
_TAIL: Final = Struct("<HBxxxxxQ")  # PAGE_INFO from 0x60: length, type, IMI and permissions, address
_NO_CONTENTS: Final = bytes(48)

START: Final = bytes(48)  # the digest before the first page

# The RMP names a VMSA page by address -1, page-aligned and cut to 52 bits: the same for every vCPU.
VMSA_GPA: Final = 0x0000_FFFF_FFFF_F000


class PageType(IntEnum):
    """PAGE_TYPE of SNP_LAUNCH_UPDATE (publication 56860, table 66)."""

    NORMAL = 1
    VMSA = 2
    ZERO = 3
    UNMEASURED = 4
    SECRETS = 5
    CPUID = 6


def extend_data(digest: bytes, gpa: int, data: bytes | memoryview) -> bytes:
    """Chain NORMAL pages that hold `data` (whole pages) from address `gpa`."""
    view = memoryview(data)
    # The one loop that costs anything: a 4 MiB firmware goes round it 1024 times.
    pack, length, normal = _page_info, _PAGE_INFO_LENGTH, PageType.NORMAL
    for offset in range(0, len(view), PAGE):
        contents = sha384(view[offset : offset + PAGE]).digest()
        digest = sha384(pack(digest, contents, length, normal, gpa + offset)).digest()
    return digest


def extend_empty(digest: bytes, page_type: PageType, gpa: int, size: int) -> bytes:
    """Chain pages of a type whose contents the processor does not measure: `size` bytes from `gpa`."""
    for info in _empty_infos(page_type, gpa, size):
        digest = sha384(digest + info).digest()
    return digest


# Images share firmware layouts, and making these takes a quarter of the time of hashing them. A whole
# description has at most 4096 (MAX_METADATA_PAGES).
@lru_cache(maxsize=64)
def _empty_infos(page_type: PageType, gpa: int, size: int) -> tuple[bytes, ...]:
    """Give PAGE_INFO after the current digest for each page."""
    head = _NO_CONTENTS + _TAIL.pack(_PAGE_INFO_LENGTH, page_type, 0)[:8]
    return tuple(head + address.to_bytes(8, "little") for address in range(gpa, gpa + size, PAGE))


def vmsa_contents(page: bytes) -> bytes:
    """Give what `extend_vmsa` chains for a VMSA page: the PAGE_INFO after the current digest."""
    return sha384(page).digest() + _TAIL.pack(_PAGE_INFO_LENGTH, PageType.VMSA, VMSA_GPA)


def extend_vmsa(digest: bytes, contents: bytes, vcpus: int = 1) -> bytes:
    """Chain `vcpus` vCPUs that share a VMSA page, prepared once by `vmsa_contents`."""
    for _ in range(vcpus):
        digest = sha384(digest + contents).digest()
    return digest
