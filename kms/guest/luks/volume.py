"""From a device and a KMS to an open volume, and on to the key of a newer epoch.

::

    header  = read and judged, or made where the disk is blank and that was allowed
    key     = asked for: of the epochs that the header names, the newest that there is
    mapping = opened from the checked copy
    then, if the app has a newer epoch: a key slot for its key, and the older one removed
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from kms.errors import ConfigurationError, KmsError
from kms.guest.config import VolumeConfig
from kms.guest.errors import Refused
from kms.guest.key_words import key_text
from kms.guest.luks.cryptsetup import Cryptsetup
from kms.guest.luks.device import Device, open_device
from kms.guest.luks.errors import DiskFailed, DiskRefused
from kms.guest.luks.formatting import check_blank, format_blank
from kms.guest.luks.header import CheckedHeader, check_header
from kms.guest.luks.key_slots import KeySlots, key_slots
from kms.guest.luks.mapping import Mapping
from kms.guest.machine import Fetch
from kms.keys.names import KeyKind, KeyRequest
from kms.keys.released import ReleasedKey

# The second: formatting was cut off while the second copy was written. The first MiB is then still zero.
_NO_HEADER: Final = frozenset({"not-luks", "header-damaged"})
# Of epochs on one header: the host writes it, and the KMS is asked for each anew, with a deadline of its own.
# Re-keying that is cut off leaves two at most; one more is somebody's who wrote it by hand.
_MAX_TRIED: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Unlocked:
    """A volume that is open under ``/dev/mapper/NAME``.

    `epoch` is that of the key that opens it from now on; None where it was open already, or the key has
    none. `rekeyed_from` is the epoch that it had before. `warning` says why it was not moved to a newer one.
    """

    name: str
    device: Path
    epoch: int | None = None
    formatted: bool = False
    already_open: bool = False
    rekeyed_from: int | None = None
    warning: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rekeyed:
    """A volume whose key is of `epoch`. `rekeyed_from` is the epoch before; None where it was this one."""

    device: Path
    epoch: int
    rekeyed_from: int | None


def unlock_volume(
    volume: VolumeConfig,
    *,
    fetch: Fetch,
    newest_epoch: Callable[[], int | None],
    cryptsetup: Cryptsetup,
) -> Unlocked:
    """Open a volume. `newest_epoch` gives the app's current epoch as a hint, None if it is not known.

    Nothing is asked before the header is judged. What goes wrong after the volume is open is a warning.

    Raises:
        DiskRefused: the disk must not be opened, or the key does not open it.
        DiskFailed: the device or `cryptsetup` fails; the mapping's name is another's.
        KmsError: what `fetch` raises.

    """
    cryptsetup.check_version()
    with open_device(volume.device, write=True) as device:
        if (existing := Mapping.find(cryptsetup, volume.name)) is not None:
            if not existing.is_of(device):
                raise DiskFailed(
                    f"there is a mapping {volume.name} of something else already", reason="name-taken"
                )
            return Unlocked(name=volume.name, device=volume.device, already_open=True)
        header, key = _header(device, volume, fetch, cryptsetup)
        formatted = key is not None
        with key_slots(device, header, cryptsetup, key_text(volume.key)) as slots:
            if key is None:
                key = _first_that(partial(slots.open, volume.name), slots, volume.key, fetch)
            else:
                slots.open(volume.name, passphrase(key))
            done = Unlocked(name=volume.name, device=volume.device, epoch=key.epoch, formatted=formatted)
            try:
                return _kept_up(done, slots, volume, key, fetch=fetch, newest_epoch=newest_epoch)
            except KmsError as error:
                # The data is there: a guest that does not start because of a newer key would be worse off.
                return replace(done, warning=error.detail)


def rekey_volume(path: Path, request: KeyRequest, *, fetch: Fetch, cryptsetup: Cryptsetup) -> Rekeyed:
    """Move a volume to the key of the app's current epoch, be it open or not.

    `request` names the epoch of its key only where the header does not.

    Raises:
        DiskRefused, DiskFailed: as `unlock_volume`; also what is only a warning there.
        ConfigurationError: nothing says which epoch the volume's key is of.
        KmsError: what `fetch` raises.

    """
    cryptsetup.check_version()
    with (
        open_device(path, write=True) as device,
        key_slots(device, check_header(device), cryptsetup, key_text(request)) as slots,
    ):
        if request.epoch is None and not slots.epochs:
            raise ConfigurationError(
                "the header does not say which epoch its key is of", remedy="name it: --key 'disk#1'"
            )
        old = _first_that(slots.slot_of, slots, request, fetch)
        if old.epoch is None:
            raise ConfigurationError("keys of dstack have no epochs")
        slots.repair()
        slots.record(passphrase(old), old.epoch)
        epoch = _move(slots, request, old.epoch, fetch)
        return Rekeyed(device=path, epoch=epoch, rekeyed_from=old.epoch if epoch > old.epoch else None)


def passphrase(key: ReleasedKey) -> bytes:
    """Give what a disk's key slot is opened with: the key; dstack gives its own as hex digits."""
    dstack = key.name.kind is KeyKind.DSTACK_DISK
    return key.secret.hex().encode("ascii") if dstack else key.secret


def _header(
    device: Device, volume: VolumeConfig, fetch: Fetch, cryptsetup: Cryptsetup
) -> tuple[CheckedHeader, ReleasedKey | None]:
    """Give the header, and where it was just made the key that it was made with."""
    try:
        return check_header(device), None
    except DiskRefused as refused:
        if not (volume.format_blank and refused.reason in _NO_HEADER):
            raise
    check_blank(device)
    [key] = fetch([volume.key]).keys
    if key.epoch is None:
        raise ConfigurationError("a volume is not made with a key of dstack's", remedy="use a key of our own")
    made = format_blank(device, cryptsetup, passphrase(key), epoch=key.epoch, name=key_text(volume.key))
    return made, key


def _first_that(
    opens: Callable[[bytes], object], slots: KeySlots, request: KeyRequest, fetch: Fetch
) -> ReleasedKey:
    """Give the newest key of those that the header names which the KMS has and the disk opens with.

    One at a time: the KMS counts a guest that took a newer key as moved, and gives none of several keys where
    the oldest is of an epoch that is over. There are several where re-keying was interrupted.
    """
    named = slots.epochs if request.epoch is None else (request.epoch,)
    first: KmsError | None = None
    for epoch in named[:_MAX_TRIED] or (None,):
        asked = _of_epoch(request, epoch)
        try:
            [key] = fetch([asked]).keys
            opens(passphrase(key))
        except (Refused, DiskRefused) as error:
            if not {"epoch-unavailable", "key-does-not-open"}.intersection(_reasons(error)):
                raise
            first = first or error
        else:
            return key
    raise first or DiskRefused("no key was tried", reason="key-does-not-open")


def _kept_up(
    done: Unlocked,
    slots: KeySlots,
    volume: VolumeConfig,
    key: ReleasedKey,
    *,
    fetch: Fetch,
    newest_epoch: Callable[[], int | None],
) -> Unlocked:
    """Mend what a power cut left, and move on to the app's current epoch if there is a newer one."""
    slots.repair()
    if not volume.rotate or key.epoch is None:
        return done
    if not slots.epochs:
        slots.record(passphrase(key), key.epoch)
    newest = newest_epoch()
    if newest is None or newest <= key.epoch:
        slots.remove_older(passphrase(key), key.epoch)
        return done
    epoch = _move(slots, volume.key, key.epoch, fetch)
    return replace(done, epoch=epoch, rekeyed_from=key.epoch if epoch > key.epoch else None)


def _move(slots: KeySlots, request: KeyRequest, epoch: int, fetch: Fetch) -> int:
    """Move from the key of `epoch` to the app's current one, and give its epoch: `epoch` if it is no newer.

    Both keys come in one answer, so the KMS does not count a guest as moved that has the new one alone.
    """
    old, new = fetch([replace(request, epoch=epoch), replace(request, epoch=None)]).keys
    current = epoch if new.epoch is None else max(epoch, new.epoch)
    slots.remove_older(passphrase(old), epoch)  # first, so that there are never more than two
    if current > epoch:
        slots.add(passphrase(old), passphrase(new), current)
        slots.remove_older(passphrase(new), current)
    return current


def _of_epoch(request: KeyRequest, epoch: int | None) -> KeyRequest:
    try:
        return replace(request, epoch=epoch)
    except ValueError:
        raise DiskRefused(
            "the header names an epoch for a key of dstack's, which has none", reason="token-malformed"
        ) from None


def _reasons(error: Refused | DiskRefused) -> tuple[str, ...]:
    return (error.problem.code, *error.problem.reasons) if isinstance(error, Refused) else (error.reason,)
