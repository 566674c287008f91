"""The key slots of one key on one disk: opened from the checked copy of the header, and changed in it.

A change is made to the copy, judged again, tried with the key that must open it, and then brought to the disk
(`kms.guest.luks.write_back`), if that is still as it was read: the KMS is asked in between, and whoever
enrols a recovery key meanwhile must lose neither that nor the volume. A key slot is removed in a change of
its own, and only one that our token says is of an older epoch, when another opens what is on the disk.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from kms.guest.luks.cryptsetup import Cryptsetup
from kms.guest.luks.device import Device
from kms.guest.luks.errors import DiskFailed, DiskRefused
from kms.guest.luks.header import CheckedHeader, check_header
from kms.guest.luks.mapping import Mapping
from kms.guest.luks.memory_file import MemoryFile, memory_file
from kms.guest.luks.write_back import repair, write_back


def as_device(image: MemoryFile) -> Device:
    """Give a header in memory as something to read a header from."""
    return Device(path=Path(image.path), descriptor=image.descriptor, size=image.size, number=None)


class KeySlots:
    """The key slots of the key called `name` (``disk@app``) on an open device. Keys are bytes.

    All methods raise `DiskRefused` where a key does not open what it must, and `DiskFailed`; its reason is
    ``disk-changed`` where somebody else changed the header on the disk, which is then left as it is.
    """

    def __init__(
        self, device: Device, header: CheckedHeader, image: MemoryFile, cryptsetup: Cryptsetup, name: str
    ) -> None:
        self._device = device
        self._header = header
        self._image = image
        self._cryptsetup = cryptsetup
        self._name = name

    @property
    def header(self) -> CheckedHeader:
        """The header as it is now."""
        return self._header

    @property
    def epochs(self) -> tuple[int, ...]:
        """The epochs of the key that our tokens name, the newest first."""
        return tuple(sorted(set(self._header.slots_of(self._name).values()), reverse=True))

    def open(self, mapping: str, key: bytes) -> None:
        """Make the mapping from the checked header, and see that the kernel has what was checked."""
        cryptsetup = self._cryptsetup
        if Mapping.find(cryptsetup, mapping) is not None:
            raise DiskFailed(f"somebody made a mapping {mapping} meanwhile", reason="name-taken")
        try:
            cryptsetup.open(self._image, self._device.path, mapping, key)
        except DiskRefused:
            raise
        except BaseException as error:
            # It may have made the mapping before it was too slow and killed; where it found one there, or the
            # device in use, it has not.
            if not (isinstance(error, DiskFailed) and error.reason == "disk-busy"):
                with suppress(DiskFailed):  # the first error says more
                    self._close_ours(mapping)
            raise
        try:
            if not self._is_ours(mapping):
                raise DiskRefused(
                    "the mapping is not what its header said, and was closed again", reason="mapping-differs"
                )
        except BaseException:
            cryptsetup.close(mapping)
            raise

    def slot_of(self, key: bytes) -> int:
        """Give a key slot that a key opens."""
        for slot in sorted(self._header.key_slots):
            if self._opens(key, slot):
                return slot
        raise DiskRefused("the key opens no key slot of this disk", reason="key-does-not-open")

    def repair(self) -> None:
        """Bring to the disk what a power cut kept from it: the header that counts, as both copies."""
        if self._header.raw != self._header.image:
            with self._unchanged():
                self._repair()

    def record(self, key: bytes, epoch: int) -> None:
        """Write down the epoch of a key whose slot no token names: somebody made the volume by hand."""
        slot = self.slot_of(key)
        if slot not in self._header.slots:
            self._cryptsetup.add_token(self._image, slot=slot, epoch=epoch, key=self._name)
            self._commit()

    def add(self, key: bytes, new: bytes, epoch: int) -> None:
        """Add a key slot for the key of a newer epoch, if none is there that it opens."""
        known = self._header.slots_of(self._name)
        if any(its == epoch and self._opens(new, slot) for slot, its in known.items()):
            return
        before = self._header.key_slots
        self._cryptsetup.add_key(self._image, key, new)
        added = self._judged().key_slots - before
        if len(added) != 1:
            raise DiskFailed("cryptsetup did not add a key slot", reason="cryptsetup-failed")
        (slot,) = added
        self._cryptsetup.add_token(self._image, slot=slot, epoch=epoch, key=self._name)
        self._cryptsetup.test(self._image, new, slot=slot)
        self._commit()

    def remove_older(self, key: bytes, epoch: int) -> None:
        """Remove the key slots of older epochs than that of `key`, which must open one of this epoch."""
        ours = [token for token in self._header.tokens if token.key == self._name]
        kept = [token.slot for token in ours if token.epoch == epoch and token.slot is not None]
        slot = next((slot for slot in kept if self._opens(key, slot)), None)
        older = [token for token in ours if token.epoch < epoch and token.slot != slot]
        if slot is None or not older:
            return
        self.repair()
        with self._unchanged() as area, memory_file(area) as on_disk:
            self._cryptsetup.test(on_disk, key, slot=slot)
        for token in older:
            if token.slot is not None:
                self._cryptsetup.kill_slot(self._image, token.slot)
            self._cryptsetup.remove_token(self._image, token.number)
        self._cryptsetup.test(self._image, key, slot=slot)
        self._commit()

    def _is_ours(self, mapping: str) -> bool:
        found = Mapping.find(self._cryptsetup, mapping)
        return found is not None and found.is_of(self._device, offset=self._header.data_offset)

    def _close_ours(self, mapping: str) -> None:
        if self._is_ours(mapping):
            self._cryptsetup.close(mapping)

    def _opens(self, key: bytes, slot: int) -> bool:
        try:
            self._cryptsetup.test(self._image, key, slot=slot)
        except DiskRefused:
            return False
        return True

    def _judged(self) -> CheckedHeader:
        return check_header(as_device(self._image), data_size=self._device.size)

    def _commit(self) -> None:
        """Bring the changed copy to the disk."""
        changed = self._judged()
        with self._unchanged():
            # First what an earlier power cut left: else a torn write now could leave the oldest of three.
            self._repair()
            write_back(self._device, self._header.image, changed.image, header_size=changed.size)
        self._header = replace(changed, raw=changed.image)

    def _repair(self) -> None:
        repair(self._device, self._header)
        self._header = replace(self._header, raw=self._header.image)

    @contextmanager
    def _unchanged(self) -> Iterator[bytes]:
        """Keep `cryptsetup` from the disk, whose header is the one that was read; give what was compared."""
        with self._device.without_cryptsetup():
            area = self._device.read(0, len(self._header.raw))
            if area != self._header.raw:
                raise DiskFailed(
                    f"somebody changed the header on {self._device.path} meanwhile, so it was left as it is;"
                    " the next start, or `kms guest rekey`, goes on from there",
                    reason="disk-changed",
                )
            yield area


@contextmanager
def key_slots(device: Device, header: CheckedHeader, cryptsetup: Cryptsetup, name: str) -> Iterator[KeySlots]:
    """Give the key slots of the key called `name`, over a copy of the header in memory."""
    with memory_file(header.image) as image:
        yield KeySlots(device, header, image, cryptsetup, name)
