"""The two copies of a LUKS2 header's binary part and metadata, and which of them counts.

LUKS2 On-Disk Format Specification 1.1.4, sections 2.1 (binary header), 2.2 (JSON area) and 4.5 (recovery).
The checksum finds accidents. It is no authentication: whoever changes a header computes it again.
"""

import hashlib
import hmac
import re
from dataclasses import dataclass
from struct import Struct
from typing import Final, Self

from kms.guest.luks.errors import DiskRefused

BINARY_LENGTH: Final = 4096
# Table 1: where a second header may begin, which is how long a first one is.
SIZES: Final = tuple(0x4000 << shift for shift in range(9))

_PRIMARY: Final = b"LUKS\xba\xbe"
_SECONDARY: Final = b"SKUL\xba\xbe"
# magic, version, hdr_size, seqid, label, csum_alg, salt, uuid, subsystem, hdr_offset, zeros, csum (figure 2)
_BINARY: Final = Struct(">6sHQQ48s32s64s40s48sQ184s64s")
_CSUM: Final = slice(448, 512)
_MAGIC: Final = slice(0, 6)
_OFFSET: Final = slice(256, 264)
_CSUM_ALGORITHM: Final = b"sha256"
# The number goes up with every change; one near its end would begin again at 0, as the older of two.
_MAX_SEQUENCE: Final = 1 << 62
_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderCopy:
    """One copy whose checksum is right: `raw` is its binary header and JSON area, `offset` where it was."""

    raw: bytes
    offset: int
    sequence: int
    uuid: bytes

    @classmethod
    def read(cls, area: bytes, offset: int) -> Self | None:
        """Give the copy at `offset` of what was read from the device's start; None if none is whole."""
        if len(area) < offset + BINARY_LENGTH:
            return None
        fields = _BINARY.unpack_from(area, offset)
        magic, version, size, sequence, _, algorithm, _, uuid, _, stated_offset, _, csum = fields
        if (magic, version, stated_offset) != (_SECONDARY if offset else _PRIMARY, 2, offset):
            return None
        raw = area[offset : offset + size] if size in SIZES else b""
        if len(raw) != size or (offset and offset != size) or algorithm != _CSUM_ALGORITHM.ljust(32, b"\0"):
            return None
        if not hmac.compare_digest(_checksum(raw), csum):
            return None
        return cls(raw=raw, offset=offset, sequence=sequence, uuid=uuid)

    @property
    def size(self) -> int:
        """The length in bytes; that of the other copy is the same."""
        return len(self.raw)

    @property
    def json_area(self) -> bytes:
        """The JSON text and the zeros after it."""
        return self.raw[BINARY_LENGTH:]

    def identifier(self) -> str:
        """Give the volume's UUID. Raises `DiskRefused`: it becomes a part of names."""
        text = self.uuid.rstrip(b"\0").decode("ascii", "replace")
        if not _UUID.fullmatch(text):
            raise DiskRefused("the LUKS2 header's UUID is none", reason="metadata-malformed")
        return text

    def moved_to(self, offset: int) -> bytes:
        """Give this header as the other copy: with the magic and checksum of that place.

        The salt, which should differ, is left as it is: nothing reads it (section 2.1), and `cryptsetup`
        writes new ones with its next change.
        """
        moved = bytearray(self.raw)
        moved[_MAGIC] = _SECONDARY if offset else _PRIMARY
        moved[_OFFSET] = offset.to_bytes(8, "big")
        moved[_CSUM] = _checksum(moved)
        return bytes(moved)


def chosen_copy(area: bytes) -> tuple[HeaderCopy, bool]:
    """Give the copy that counts, as `cryptsetup` chooses (section 4.5), and whether the other one agrees.

    It is the one with the higher sequence number; the other one alone where one is not whole, as after a
    power cut.

    Raises:
        DiskRefused: there is none.

    """
    primary = HeaderCopy.read(area, 0)
    places = SIZES if primary is None else (primary.size,)
    secondary = next((copy for at in places if (copy := HeaderCopy.read(area, at)) is not None), None)
    copies = [copy for copy in (primary, secondary) if copy is not None]
    if not copies:
        raise _none_found(area)
    chosen = max(copies, key=lambda copy: copy.sequence)  # of equals the first
    if chosen.sequence >= _MAX_SEQUENCE:
        raise DiskRefused("the LUKS2 header's sequence number is at its end", reason="metadata-malformed")
    agree = len(copies) == 2 and len({(copy.sequence, copy.uuid, copy.json_area) for copy in copies}) == 1
    return chosen, agree


def _none_found(area: bytes) -> DiskRefused:
    if area[:8] == _PRIMARY + b"\0\1":
        return DiskRefused("a LUKS1 volume: only LUKS2 is opened", reason="luks1")
    magics = {area[at : at + 6] for at in (0, *SIZES)}
    if magics & {_PRIMARY, _SECONDARY}:
        return DiskRefused("neither copy of the LUKS2 header is whole", reason="header-damaged")
    return DiskRefused("there is no LUKS2 header on the device", reason="not-luks")


def _checksum(raw: bytes | bytearray) -> bytes:
    """Give what stands in the checksum field (64 bytes): SHA-256 with that field zeroed, then zeros."""
    zeroed = bytearray(raw)
    zeroed[_CSUM] = bytes(64)
    return hashlib.sha256(zeroed).digest().ljust(64, b"\0")
