"""Making a volume on a blank disk, so that a power cut leaves a blank disk or a volume.

A host can always present a blank disk: that one was made here says nothing of what was there before.
"""

from typing import Final

from kms.guest.luks.cryptsetup import DATA_OFFSET, Cryptsetup
from kms.guest.luks.device import Device
from kms.guest.luks.errors import DiskRefused
from kms.guest.luks.header import CheckedHeader, check_header
from kms.guest.luks.key_slots import as_device
from kms.guest.luks.memory_file import memory_file
from kms.guest.luks.write_back import write_back

_LOOKED_AT: Final = 1 << 20  # bytes at either end: where file systems, RAID and partition tables have theirs


def check_blank(device: Device) -> None:
    """Check that a device may be formatted: it holds nothing at its beginning and end, and is not too small.

    Raises:
        DiskRefused: it is not like that.

    """
    if device.size < DATA_OFFSET + _LOOKED_AT:
        raise DiskRefused("the device is too small for a volume", reason="device-too-small")
    for offset in (0, device.size - _LOOKED_AT):
        if any(device.read(offset, _LOOKED_AT)):
            raise DiskRefused(
                "the device holds no whole LUKS2 header and is not blank: it is not formatted",
                reason="not-blank",
            )


def format_blank(
    device: Device, cryptsetup: Cryptsetup, key: bytes, *, epoch: int, name: str
) -> CheckedHeader:
    """Make a volume whose one key slot is opened by `key`, of this epoch and called `name` (``disk@app``).

    The header is made in memory, judged like any other, and written with its first copy last: that copy fills
    the first MiB, so until the second one is whole the disk still begins as a blank one, and is formatted
    anew. Nothing is on it before this returns.

    Raises:
        DiskRefused, DiskFailed: it cannot be done, or the device is blank no more.

    """
    with memory_file(bytes(DATA_OFFSET)) as image:
        cryptsetup.format(image, device.path, key)
        cryptsetup.add_token(image, slot=0, epoch=epoch, key=name)
        header = check_header(as_device(image), data_size=device.size)
    with device.without_cryptsetup():
        check_blank(device)  # again: the key was asked for since, and somebody may have used that time
        write_back(device, device.read(0, DATA_OFFSET), header.image, header_size=header.size)
    return header
