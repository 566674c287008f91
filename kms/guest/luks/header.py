"""A LUKS2 header, read once and judged: what is opened is this copy, never the one on the device.

The host owns the disk and may change any byte at any time, also between two reads. So each byte is read
once into memory, what was read is judged (`kms.guest.luks.metadata`), and `cryptsetup` is given these bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kms.guest.luks.binary_header import SIZES, chosen_copy
from kms.guest.luks.device import Device, open_device
from kms.guest.luks.errors import DiskRefused
from kms.guest.luks.metadata import EpochToken, judge

_BOTH_COPIES: Final = 2 * SIZES[-1]  # of the longest headers: then all of every other header is in there too


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedHeader:
    """A header that may be opened.

    `raw` is the device's beginning up to the end of the key slots area, as it was read; `image` the same
    with the judged header as both of its copies, so that `cryptsetup` has nothing else to choose; they
    differ where a power cut left an older or a torn copy. `size` is the length of one copy, in bytes;
    `key_slots` are the numbers of all key slots, ours or not; `data_offset` is in bytes.
    """

    raw: bytes = field(repr=False)
    image: bytes = field(repr=False)
    size: int
    uuid: str
    key_slots: frozenset[int]
    tokens: tuple[EpochToken, ...]
    data_offset: int

    def slots_of(self, key: str) -> Mapping[int, int]:
        """Give the key slots that our tokens name for a key (``disk@app``), with their epochs."""
        return {
            token.slot: token.epoch for token in self.tokens if token.slot is not None and token.key == key
        }

    @property
    def slots(self) -> Mapping[int, int]:
        """Give the key slots that our tokens name, with their epochs, whatever the key."""
        return {token.slot: token.epoch for token in self.tokens if token.slot is not None}

    @property
    def epochs(self) -> tuple[int, ...]:
        """The epochs that our tokens name, in order: those whose key to ask for."""
        return tuple(sorted(set(self.slots.values())))


def read_header(device: Path) -> CheckedHeader:
    """Read and judge the LUKS2 header at the beginning of a block device (or a file).

    Raises:
        DiskRefused: there is none, or one that must not be opened.
        DiskFailed: the device cannot be read.

    """
    with open_device(device) as opened:
        return check_header(opened)


def check_header(device: Device, *, data_size: int | None = None) -> CheckedHeader:
    """Read and judge the header of an open device.

    `data_size` is the length in bytes of the device with the data, where the header is a copy elsewhere.
    Raises as `read_header`.
    """
    area = device.read(0, _BOTH_COPIES)
    copy, agree = chosen_copy(area)
    metadata = judge(copy.json_area, header_size=copy.size)
    if len(area) < metadata.header_end:
        area += device.read(len(area), metadata.header_end - len(area))  # no byte is read twice
    raw = area[: metadata.header_end]
    size = device.size if data_size is None else data_size
    if len(raw) < metadata.header_end or metadata.data_offset >= size:
        raise DiskRefused("the device ends before the volume's data", reason="device-too-small")
    image = raw if agree else copy.moved_to(0) + copy.moved_to(copy.size) + raw[2 * copy.size :]
    return CheckedHeader(
        raw=raw,
        image=image,
        size=copy.size,
        uuid=copy.identifier(),
        key_slots=metadata.slots,
        tokens=metadata.tokens,
        data_offset=metadata.data_offset,
    )
