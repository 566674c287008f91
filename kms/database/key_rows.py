"""Rows of epochs and of generations of the identity: how they are written, sealed and read.

Each carries a MAC over every other column. One that does not verify is not left out but spoils the whole
table: without the newest epoch, or with a retired one that is not, guests would get other keys than operators
decided.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final, TypeAlias

from sqlalchemy import Table

from kms.database.schema import key_epochs, key_identities
from kms.errors import LedgerUnavailable
from kms.keys.epochs import Epoch, EpochTable, without_gap
from kms.keys.row_seal import RowSeal, optional
from kms.ledger.entries import timestamp
from kms.operator_ports import Generation

EPOCHS_UNTRUSTED: Final = "epochs-untrusted"
_SECOND_GENERATION: Final = 2  # the first needs no row

Values: TypeAlias = tuple[object, ...]  # of one row, in the order of the table's columns; the MAC is last


class EpochsUntrusted(LedgerUnavailable):
    """What the database says of epochs and generations was not written by this KMS, or is an older copy."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail, reason=EPOCHS_UNTRUSTED)


class KeyRows:
    """Seals rows, and reads tables of which every row is authentic."""

    def __init__(self, seal: RowSeal) -> None:
        self._seal = seal

    def of_epoch(self, epoch: Epoch) -> dict[str, Any]:
        """Give the columns of an epoch, with the MAC."""
        return self._sealed(
            key_epochs,
            epoch.number,
            timestamp(epoch.made_at),
            epoch.made_by,
            timestamp(epoch.active_from),
            None if epoch.retired_at is None else timestamp(epoch.retired_at),
            epoch.retired_by,
        )

    def of_generation(self, generation: Generation) -> dict[str, Any]:
        """Give the columns of a generation, with the MAC."""
        return self._sealed(
            key_identities, generation.number, timestamp(generation.made_at), generation.made_by
        )

    def epochs(self, rows: Sequence[Values]) -> EpochTable:
        """Read all rows of epochs, by number.

        Raises:
            EpochsUntrusted: there are none, one is missing, or one is not authentic.

        """
        epochs = []
        for number, made_at, made_by, active_from, retired_at, retired_by in self._opened(key_epochs, rows):
            epoch = Epoch(
                number=number,
                made_at=datetime.fromisoformat(made_at),
                made_by=made_by,
                active_from=datetime.fromisoformat(active_from),
                retired_at=None if retired_at is None else datetime.fromisoformat(retired_at),
                retired_by=retired_by,
            )
            epochs.append(epoch)
        try:
            return EpochTable(tuple(epochs))
        except ValueError as error:
            raise EpochsUntrusted(f"rows were removed from the database: {error}") from None

    def generations(self, rows: Sequence[Values]) -> tuple[Generation, ...]:
        """Read all rows of generations, by number; there may be none. Raises as `epochs`."""
        found = tuple(
            Generation(number=number, made_at=datetime.fromisoformat(made_at), made_by=made_by)
            for number, made_at, made_by in self._opened(key_identities, rows)
        )
        if not without_gap([each.number for each in found], _SECOND_GENERATION):
            raise EpochsUntrusted("rows of generations of the identity were removed from the database")
        return found

    def _sealed(self, table: Table, *values: int | str | None) -> dict[str, Any]:
        mac = self._seal.mac(table.name, *_fields(values))
        return dict(zip(table.columns.keys(), (*values, mac), strict=True))

    def _opened(self, table: Table, rows: Iterable[Values]) -> list[tuple[Any, ...]]:
        """Give the values without the MACs, which verify."""
        found = []
        for *values, mac in rows:
            number, *texts = values
            # SQLite keeps whatever somebody writes by hand, of whatever type; and the MAC is over texts.
            typed = type(number) is int and all(text is None or isinstance(text, str) for text in texts)
            authentic = isinstance(mac, bytes) and self._seal.verifies(mac, table.name, *_fields(values))
            if not typed or not authentic:
                raise EpochsUntrusted(f"row {str(number)[:20]} of {table.name} was not written by this KMS")
            found.append(tuple(values))
        return found


def _fields(values: Iterable[object]) -> list[bytes]:
    return [optional(None if value is None else str(value)) for value in values]
