"""Which guests took which keys of which epoch, by the record of this KMS.

A guest is an app id, an instance id and a chip id, as a release proved them. Where one of them is not told,
several guests look like one: those of an app on one chip without instance ids, or of an app without both.
Then the one that took a newer epoch hides the others that did not. And a guest that moved to another chip
looks like two, of which the old one stays behind until it was not seen for long enough.

Each key counts by itself, by its name and scope: a guest that took its `env` of a newer epoch may have its
disk under `disk` of the old one. And it counts by the epoch that was taken last. A guest that once took a
newer one may have been unable to open its disk with it (it was started without naming an epoch), and asks for
the old one ever since. Of epochs that one request took together the newest counts: that is how guests move.

Nothing here says that the record is as it was written.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from heapq import nsmallest
from typing import Final, NamedTuple, TypeAlias

from kms.administration.office import Json
from kms.administration.what_if import MOST_RECORDS
from kms.identifiers import AppId, ChipId, InstanceId
from kms.ledger.entries import REFUSED, RELEASED, read_timestamp, timestamp
from kms.ledger.recorded import RecordDamaged, read_epochs
from kms.operator_ports import Records
from kms.strict_json import MAX_VALUES, Fields, JsonValue

MOST_LISTED: Final = 1_000  # guests of a rotation
MOST_KEYS: Final = 500_000  # of all guests, 400 bytes each: a guest may ask for ever new names
_PAUSE_AFTER: Final = 10  # records: a millisecond


class Guest(NamedTuple):
    """What guests are told apart by."""

    app_id: AppId
    instance_id: InstanceId | None
    chip_id: ChipId | None

    def to_json(self) -> Json:
        """Give the ids as hex."""
        return {name: None if value is None else value.hex() for name, value in self._asdict().items()}


class Key(NamedTuple):
    """What a guest's keys are told apart by, as it asked for them."""

    name: str
    scope: str

    def to_json(self) -> Json:
        """Give both."""
        return {"name": self.name, "scope": self.scope}


Taken: TypeAlias = Mapping[Key, Mapping[int, datetime]]
"""A guest's keys: when it last took each of which epoch."""


class _Release(NamedTuple):
    """What counts here of a recorded release: to read all of each takes five times as long."""

    guest: Guest
    keys: tuple[tuple[Key, int], ...]
    decided_at: datetime

    @classmethod
    def read(cls, entry: JsonValue) -> "_Release | None":
        """Read an entry; None for a refusal. Raises `RecordDamaged`: it is neither."""
        fields = Fields(entry, "entry", RecordDamaged)
        outcome = fields.text("outcome")
        if outcome == REFUSED:
            return None
        if outcome != RELEASED:
            fields.fail("`outcome` is none")
        proven = fields.object("boot_info")
        guest = Guest(
            app_id=proven.hex("app_id", AppId),
            instance_id=proven.nullable("instance_id", lambda name: proven.hex(name, InstanceId)),
            chip_id=proven.nullable("chip_id", lambda name: proven.hex(name, ChipId)),
        )
        keys = [_key(each) for each in fields.array("keys", at_most=MAX_VALUES)]
        epochs, of_keys = read_epochs(fields, len(keys))
        if not of_keys:
            # It was recorded when there was one epoch, and none was said of each key. Should it have more,
            # the oldest counts for all: better a guest that stays behind than one whose disk is lost.
            of_keys = (min(epochs, default=None),) * len(keys)
        taken = tuple((key, epoch) for key, epoch in zip(keys, of_keys, strict=True) if epoch is not None)
        decided_at = fields.convert("decided_at", fields.text("decided_at"), read_timestamp)
        return cls(guest, taken, decided_at)


@dataclass(slots=True, kw_only=True)
class Rotation:
    """What guests (of one app, or of all) took from `since` on: which keys of which epochs, and when last.

    Keys that have no epoch (dstack's) do not count. `records` were read, of which `damaged` could not be, so
    that their guests are unknown; all that was recorded up to `place` is among them. `complete` is false
    where there are more, or too many keys: then it is the latest ones.
    """

    since: datetime
    app: AppId | None = None
    guests: dict[Guest, dict[Key, dict[int, datetime]]] = field(default_factory=dict)
    keys: int = 0
    records: int = 0
    damaged: int = 0
    complete: bool = True
    place: int = 0

    def take(self, entry: JsonValue) -> None:
        """Count one record; in any order, and one that comes twice changes nothing of the guests."""
        self.records += 1
        try:
            release = _Release.read(entry)
        except RecordDamaged:
            self.damaged += 1
            return
        if release is None or (self.app is not None and release.guest.app_id != self.app):
            return
        for key, epoch in release.keys:
            epochs = self.guests.setdefault(release.guest, {}).setdefault(key, {})
            self.keys += not epochs
            epochs[epoch] = max(epochs.get(epoch, release.decided_at), release.decided_at)

    def to_json(self) -> Json:
        """Give the answer of `KeyWork.rotation`; those that are furthest behind come first.

        A guest is of the epoch that it took every one of its keys of last, or of a newer one.
        """
        by_epoch = Counter(map(_epoch_of_guest, self.guests.values()))
        listed = nsmallest(
            MOST_LISTED,
            self.guests.items(),
            key=lambda each: (_epoch_of_guest(each[1]), -last_seen(each[1]).timestamp()),
        )
        return {
            "since": timestamp(self.since),
            "guests": [
                {
                    **guest.to_json(),
                    "epochs": {str(epoch): timestamp(at) for epoch, at in sorted(epochs_of(taken).items())},
                    "epoch": _epoch_of_guest(taken),
                    "last_seen": timestamp(last_seen(taken)),
                }
                for guest, taken in listed
            ],
            "count": len(self.guests),
            "by_epoch": {str(epoch): count for epoch, count in sorted(by_epoch.items())},
            "records": self.records,
            "damaged": self.damaged,
            "complete": self.complete,
        }

    def left_behind(self, epoch: int, seen_since: datetime) -> dict[Guest, Taken]:
        """Give the keys that guests took since then, and last of this epoch or an older one."""
        found: dict[Guest, Taken] = {}
        for guest, taken in self.guests.items():
            lost = {
                key: epochs
                for key, epochs in taken.items()
                if _epoch_of_key(epochs) <= epoch and max(epochs.values()) >= seen_since
            }
            if lost:
                found[guest] = lost
        return found


async def who_took(
    records: Records,
    since: datetime,
    pause: Callable[[], Awaitable[None]],
    *,
    app: AppId | None = None,
) -> Rotation:
    """Read which guest (of one app, or of all) took what from `since` on.

    `pause` is awaited every few records, so that guests are served meanwhile.

    Raises:
        LedgerUnavailable: the database did not answer.

    """
    rotation = Rotation(since=since, app=app, place=await records.end())

    async def take(entry: JsonValue) -> None:
        rotation.take(entry)
        if rotation.records % _PAUSE_AFTER == 0:
            await pause()

    async for entry in records.scan(since):
        if rotation.records == MOST_RECORDS or rotation.keys >= MOST_KEYS:
            rotation.complete = False
            break
        await take(entry)
    # The newest come first, so that nothing of what was recorded meanwhile is among them.
    async for place, entry in records.scan_after(rotation.place):
        await take(entry)
        rotation.place = place
    return rotation


def last_seen(taken: Taken) -> datetime:
    """Give when a guest last took any of these keys."""
    return max(max(epochs.values()) for epochs in taken.values())


def epochs_of(taken: Taken) -> dict[int, datetime]:
    """Give when a guest last took any of these keys of each epoch."""
    found: dict[int, datetime] = {}
    for epochs in taken.values():
        for epoch, at in epochs.items():
            found[epoch] = max(found.get(epoch, at), at)
    return found


def _epoch_of_guest(taken: Taken) -> int:
    return min(map(_epoch_of_key, taken.values()))


def _epoch_of_key(epochs: Mapping[int, datetime]) -> int:
    return max(epochs, key=lambda epoch: (epochs[epoch], epoch))


def _key(value: JsonValue) -> Key:
    fields = Fields(value, "entry.keys", RecordDamaged)
    return Key(fields.text("name"), fields.text("scope"))
