"""The epochs as releases use them: looked up twice a second, and compared when a release is recorded.

A query for each release would cost more than its verification. What operators change in between, the
transaction that records a release notices, and the release is judged again.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from sqlalchemy import func, select

from kms.database.schema import key_epochs
from kms.keys.epochs import EpochTable
from kms.ledger.entries import timestamp
from kms.operator_ports import KeyRegister

_LOOK_EVERY: Final = 0.5  # seconds


class EpochsMark(NamedTuple):
    """The newest epoch, how many are retired, and the latest time of one: each change moves one of them."""

    newest: int | None
    retired: int
    latest: str | None

    @classmethod
    def of(cls, table: EpochTable) -> "EpochsMark":
        """Give the mark of a table, as `EPOCHS_MARK` gives it of the rows that it was read from."""
        return cls(
            newest=max((each.number for each in table.epochs), default=None),
            retired=sum(each.retired_at is not None for each in table.epochs),
            latest=max((timestamp(each.active_from) for each in table.epochs), default=None),
        )


EPOCHS_MARK: Final = (
    select(func.max(key_epochs.c.epoch)).scalar_subquery().label("newest"),
    select(func.count(key_epochs.c.retired_at)).scalar_subquery().label("retired"),
    select(func.max(key_epochs.c.active_from)).scalar_subquery().label("latest"),
)


class KeptEpochs:
    """Implements `kms.ports.Epochs` over a register of epochs."""

    def __init__(self, register: KeyRegister, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._register = register
        self._monotonic = monotonic
        self._kept: tuple[float, EpochTable] | None = None
        self._looking = asyncio.Lock()

    async def epochs(self) -> EpochTable:
        """Give what the database said a moment ago; see `kms.ports.Epochs.epochs`."""
        kept = self._kept
        if kept is not None and self._monotonic() - kept[0] < _LOOK_EVERY:
            return kept[1]
        # One looks, for all that came meanwhile: else each of them would open a connection of its own.
        asked = self._monotonic()
        async with self._looking:
            kept = self._kept
            if kept is None or kept[0] < asked:
                self._kept = kept = self._monotonic(), await self._register.epochs()
        return kept[1]

    def forget(self) -> None:
        """Ask anew next time; see `kms.ports.Epochs.forget`."""
        self._kept = None
