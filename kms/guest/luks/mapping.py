"""What the kernel's device mapper has under a name, in its own words."""

from dataclasses import dataclass
from typing import Final, Self

from kms.guest.luks.cryptsetup import Cryptsetup
from kms.guest.luks.device import Device
from kms.guest.luks.metadata import CIPHER

_SECTOR: Final = 512  # bytes, of the device mapper's numbers


@dataclass(frozen=True, slots=True)
class Mapping:
    """A mapping's targets: the fields of each line of its table, without the name."""

    targets: tuple[tuple[str, ...], ...]

    @classmethod
    def find(cls, cryptsetup: Cryptsetup, name: str) -> Self | None:
        """Give the mapping of this name, None if there is none. Raises `DiskFailed`."""
        lines = [line.partition(": ") for line in cryptsetup.tables().splitlines()]
        targets = tuple(tuple(fields.split()) for its, colon, fields in lines if colon and its == name)
        return cls(targets) if targets else None

    def is_of(self, device: Device, *, offset: int | None = None) -> bool:
        """Say whether it is a device's data, encrypted as we do it; with `offset`, from that byte on."""
        if len(self.targets) != 1:
            return False
        # Linux, Documentation/admin-guide/device-mapper/dm-crypt.rst: start, length and kind of the target;
        # then cipher, key, IV offset, device, its first sector, options.
        match self.targets[0]:
            case ("0", _, "crypt", cipher, _, "0", number, sector, *_):
                begins = offset is None or sector == str(offset // _SECTOR)
                return cipher == CIPHER and begins and device.is_behind(number)
            case _:
                return False
