"""Which guests took which epoch, by the record of this KMS, and whom the end of an epoch would leave behind.

A guest is an app id, an instance id and a chip id, as a release proved them. Where one of them is not told,
several guests look like one: those of an app on one chip without instance ids, or of an app without both.
Then the one that took a newer epoch hides the others that did not. And a guest that moved to another chip
looks like two, of which the old one stays behind until it was not seen for long enough.

Nothing here says that the record is as it was written.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from heapq import nlargest, nsmallest
from typing import Final, NamedTuple

from kms.administration.office import Json
from kms.administration.what_if import MOST_RECORDS
from kms.errors import EpochInUse
from kms.identifiers import AppId, ChipId, InstanceId
from kms.ledger.entries import REFUSED, RELEASED, timestamp
from kms.ledger.recorded import RecordDamaged
from kms.operator_ports import Records
from kms.strict_json import MAX_VALUES, Fields, JsonValue

MOST_LISTED: Final = 1_000  # guests of a rotation
MOST_LEFT_BEHIND: Final = 50  # guests or apps that are named; the rest is counted
_PAUSE_AFTER: Final = 10  # records: a millisecond


class Guest(NamedTuple):
    """What guests are told apart by."""

    app_id: AppId
    instance_id: InstanceId | None
    chip_id: ChipId | None

    def to_json(self) -> Json:
        """Give the ids as hex."""
        return {name: None if value is None else value.hex() for name, value in self._asdict().items()}


class _Release(NamedTuple):
    """What counts here of a recorded release: to read all of each takes five times as long."""

    guest: Guest
    epochs: frozenset[int]
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
        epochs = frozenset(
            each if type(each) is int and each > 0 else fields.fail("`epochs` must be integers from 1 on")
            for each in fields.array("epochs", at_most=MAX_VALUES)
        )
        decided_at = fields.convert("decided_at", fields.text("decided_at"), _moment)
        return cls(guest, epochs, decided_at)


@dataclass(slots=True, kw_only=True)
class Rotation:
    """What guests (of one app, or of all) took from `since` on: which epochs, and when each last.

    A release of several epochs counts for each; one of keys that have no epoch (dstack's) for none.
    `records` were read, of which `damaged` could not be, so that their guests are unknown. `complete` is
    false where there are more: then it is the latest ones.
    """

    since: datetime
    app: AppId | None = None
    guests: dict[Guest, dict[int, datetime]] = field(default_factory=dict)
    records: int = 0
    damaged: int = 0
    complete: bool = True

    def take(self, entry: JsonValue) -> None:
        """Count one record. They come newest first."""
        self.records += 1
        try:
            release = _Release.read(entry)
        except RecordDamaged:
            self.damaged += 1
            return
        if release is None or not release.epochs:
            return
        if self.app is None or release.guest.app_id == self.app:
            taken = self.guests.setdefault(release.guest, {})
            for epoch in release.epochs:
                taken.setdefault(epoch, release.decided_at)

    def to_json(self) -> Json:
        """Give the answer of `KeyWork.rotation`; those that are furthest behind come first."""
        by_epoch = Counter(max(taken) for taken in self.guests.values())
        listed = nsmallest(
            MOST_LISTED, self.guests.items(), key=lambda each: (max(each[1]), -_last(each[1]).timestamp())
        )
        return {
            "since": timestamp(self.since),
            "guests": [
                {
                    **guest.to_json(),
                    "epochs": {str(epoch): timestamp(at) for epoch, at in sorted(taken.items())},
                    "newest": max(taken),
                    "last_seen": timestamp(_last(taken)),
                }
                for guest, taken in listed
            ],
            "count": len(self.guests),
            "by_epoch": {str(epoch): count for epoch, count in sorted(by_epoch.items())},
            "records": self.records,
            "damaged": self.damaged,
            "complete": self.complete,
        }

    def left_behind(self, epoch: int, seen_since: datetime) -> dict[Guest, dict[int, datetime]]:
        """Give the guests seen since then that never took a newer epoch, with what they took."""
        return {
            guest: taken
            for guest, taken in self.guests.items()
            if max(taken) <= epoch and _last(taken) >= seen_since
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftBehind:
    """Whom the end of an epoch would leave without keys, and whether that is all.

    `pinned` are the apps that the policy in force pins to the epoch, None where that cannot be told.
    """

    guests: Mapping[Guest, Mapping[int, datetime]]
    pinned: frozenset[AppId] | None
    damaged: int
    complete: bool

    def require_nobody(self) -> None:
        """Go on only if nobody is left behind.

        Raises:
            EpochInUse: somebody is, or may be.

        """
        if self.guests:
            detail, reason = "guests that were seen lately never took a newer epoch", None
        elif self.pinned:
            detail, reason = "the policy in force pins apps to this epoch", "epoch-pinned"
        elif self.pinned is None:
            detail, reason = "which apps the policy in force pins cannot be told", "epoch-pins-unknown"
        elif self.damaged:
            detail, reason = "records that cannot be read may be of guests that use it", "records-damaged"
        elif not self.complete:
            detail, reason = "there are more records than can be read at once", "too-many-records"
        else:
            return
        raise EpochInUse(f"{detail}; nothing was changed", reason=reason, details=self.to_json())

    def to_json(self) -> Json:
        """Give those that were seen last, with `facts`."""
        guests = nlargest(MOST_LEFT_BEHIND, self.guests.items(), key=lambda each: _last(each[1]))
        shown: list[JsonValue] = [
            {**guest.to_json(), "last_seen": timestamp(_last(taken)), "epochs": [*sorted(taken)]}
            for guest, taken in guests
        ]
        return {"guests": shown, **self.facts()}

    def facts(self) -> Json:
        """Give how many guests there are, and the rest."""
        pinned: list[JsonValue] | None = None
        if self.pinned is not None:
            pinned = [*sorted(app.hex() for app in self.pinned)[:MOST_LEFT_BEHIND]]
        return {
            "count": len(self.guests),
            "pinned": pinned,
            "damaged": self.damaged,
            "complete": self.complete,
        }


async def who_took(
    records: Records,
    since: datetime,
    pause: Callable[[], Awaitable[None]],
    *,
    app: AppId | None = None,
) -> Rotation:
    """Read which guest (of one app, or of all) took which epoch from `since` on.

    `pause` is awaited every few records, so that guests are served meanwhile.

    Raises:
        LedgerUnavailable: the database did not answer.

    """
    rotation = Rotation(since=since, app=app)
    async for entry in records.scan(since):
        if rotation.records == MOST_RECORDS:
            rotation.complete = False
            break
        rotation.take(entry)
        if rotation.records % _PAUSE_AFTER == 0:
            await pause()
    return rotation


def _last(taken: Mapping[int, datetime]) -> datetime:
    return max(taken.values())


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if timestamp(moment) != text:
        raise ValueError("not a time as it is recorded")
    return moment
