"""What stands against the end of an epoch: its state, and whom it would leave behind."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from heapq import nlargest
from typing import Final

from kms.administration.key_shapes import epoch_json
from kms.administration.office import Json
from kms.administration.rotation import Guest, Rotation, Taken, epochs_of, last_seen
from kms.errors import EpochInUse, KeysConflict, LedgerUnavailable
from kms.identifiers import AppId
from kms.keys.epochs import Epoch, EpochState, EpochTable
from kms.ledger.entries import timestamp
from kms.ports import Policies
from kms.strict_json import JsonValue

MOST_NAMED: Final = 50  # guests or apps that are named; the rest is counted
_MOST_KEYS: Final = 32  # of a guest that are named: as many as one release can have


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftBehind:
    """Whom the end of an epoch would leave without keys, and whether that is all.

    `guests` have the keys that they would lose. `pinned` are the apps that the policy in force pins to the
    epoch, None where that cannot be told.
    """

    guests: Mapping[Guest, Taken]
    pinned: frozenset[AppId] | None
    damaged: int
    complete: bool

    @classmethod
    def of(
        cls, rotation: Rotation, epoch: int, seen_since: datetime, pinned: frozenset[AppId] | None
    ) -> "LeftBehind":
        """Give whom the end of `epoch` leaves behind, by what is known so far."""
        return cls(
            guests=rotation.left_behind(epoch, seen_since),
            pinned=pinned,
            damaged=rotation.damaged,
            complete=rotation.complete,
        )

    def require_nobody(self) -> None:
        """Go on only if nobody is left behind.

        Raises:
            EpochInUse: somebody is, or may be.

        """
        if self.guests:
            detail, reason = "guests that were seen lately did not move on to a newer epoch", None
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
        shown: list[JsonValue] = [
            {
                **guest.to_json(),
                "last_seen": timestamp(last_seen(taken)),
                "epochs": [*sorted(epochs_of(taken))],
                "keys": [key.to_json() for key in sorted(taken)[:_MOST_KEYS]],
            }
            for guest, taken in nlargest(MOST_NAMED, self.guests.items(), key=lambda each: last_seen(each[1]))
        ]
        return {"guests": shown, **self.facts()}

    def facts(self) -> Json:
        """Give how many guests there are, and the rest."""
        pinned: list[JsonValue] | None = None
        if self.pinned is not None:
            pinned = [*sorted(app.hex() for app in self.pinned)[:MOST_NAMED]]
        return {
            "count": len(self.guests),
            "pinned": pinned,
            "damaged": self.damaged,
            "complete": self.complete,
        }


def require_retirable(table: EpochTable, number: int, now: datetime) -> Epoch:
    """Give an older epoch that is available: the only ones that end.

    Raises:
        KeysConflict: reason ``epoch-unknown``, or ``epoch-`` and its state.

    """
    epoch = table.epoch(number)
    if epoch is None:
        raise KeysConflict(f"there is no epoch {number}", reason="epoch-unknown")
    state = table.state(epoch, now)
    if state is not EpochState.AVAILABLE:
        raise KeysConflict(
            f"epoch {number} is {state}; only an older one that is available can be retired",
            reason=f"epoch-{state}",
            details={"epoch": epoch_json(table, epoch, now)},
        )
    return epoch


async def pinned_to(policies: Policies, epoch: int) -> frozenset[AppId] | None:
    """Give the apps that the policy in force pins to an epoch; None where it cannot be told."""
    try:
        await policies.refresh()
        active = await policies.active()
    except LedgerUnavailable:
        return None
    apps = () if active is None else active.policy.apps
    return frozenset(app.id for app in apps if app.epoch == epoch)
