"""What a backup says of epochs and generations of the identity, for a database that knows of neither.

Without it, a database that is made anew would give guests the keys of an epoch that operators retired.
Times are UTC, in whole seconds. Operators are not named: whoever finds a backup can read this.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Self

from kms.encoding import from_whole_seconds, whole_seconds
from kms.keys.epochs import Epoch, EpochTable
from kms.keys.hand_over import MAX_HAND_OVERS
from kms.strict_json import Fields, JsonValue

RESTORED: Final = "restored"  # where rows name an operator


@dataclass(frozen=True, slots=True)
class KeyHistory:
    """The epochs that were adopted, and when each generation of the identity after the first was made."""

    epochs: EpochTable
    later_generations: tuple[datetime, ...]

    @classmethod
    def of(cls, table: EpochTable, later_generations: Iterable[datetime]) -> Self:
        """Give what a backup says of these: without names, in whole seconds."""
        return cls(
            EpochTable(tuple(_as_backed_up(each) for each in table.epochs)),
            tuple(each.replace(microsecond=0) for each in later_generations),
        )

    def adopted_json(self, number: int) -> JsonValue:
        """Give what is said of an epoch; null where it waits to be adopted."""
        epoch = self.epochs.epoch(number)
        if epoch is None:
            return None
        return {
            "made_at": whole_seconds(epoch.made_at),
            "active_from": whole_seconds(epoch.active_from),
            "retired_at": None if epoch.retired_at is None else whole_seconds(epoch.retired_at),
        }

    def generations_json(self) -> JsonValue:
        """Give the times of the later generations."""
        return [whole_seconds(each) for each in self.later_generations]


def read_adopted(number: int, fields: Fields) -> Epoch:
    """Read what `KeyHistory.adopted_json` gives. Errors are those of `fields`."""
    retired_at = fields.nullable("retired_at", lambda name: _time(fields, name))
    epoch = Epoch(
        number=number,
        made_at=_time(fields, "made_at"),
        made_by=RESTORED,
        active_from=_time(fields, "active_from"),
        retired_at=retired_at,
        retired_by=None if retired_at is None else RESTORED,
    )
    fields.end()
    return epoch


def read_generations(fields: Fields, name: str) -> tuple[datetime, ...]:
    """Read what `KeyHistory.generations_json` gives. Errors are those of `fields`."""
    texts = fields.texts(name, at_most=MAX_HAND_OVERS)
    return tuple(fields.convert(name, text, from_whole_seconds) for text in texts)


def _time(fields: Fields, name: str) -> datetime:
    return fields.convert(name, fields.text(name, at_most=32), from_whole_seconds)


def _as_backed_up(epoch: Epoch) -> Epoch:
    ended = epoch.retired_at
    return replace(
        epoch,
        made_at=epoch.made_at.replace(microsecond=0),
        made_by=RESTORED,
        active_from=epoch.active_from.replace(microsecond=0),
        retired_at=None if ended is None else ended.replace(microsecond=0),
        retired_by=None if ended is None else RESTORED,
    )
