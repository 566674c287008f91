"""How anything gets into the record: decisions and operators' actions, sealed, in one order.

Entries are sealed before a transaction, and given their places inside of it, where the write lock makes the
order that of the commits.
"""

import secrets
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection, Row, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from kms.database.schema import entries, ledger_checkpoints, operator_actions
from kms.errors import LedgerUnavailable
from kms.ledger.actions import ACTION, OperatorAction
from kms.ledger.entries import DECISION, SALT_LENGTH, DecisionEntry, timestamp
from kms.ledger.sealed_entry import EntrySeal, SealedEntry
from kms.ledger_ports import MAX_PLACE, ROLLED_BACK, UNTRUSTED
from kms.ports import Randomness


class Recorder:
    """Seals entries as those of one server, and inserts them in transactions of its callers'.

    It remembers how far the record had come when it looked last. Where there is less of it later, somebody
    removed the end, or put an older copy of the database in its place: then nothing is recorded any more.
    """

    def __init__(self, seal: EntrySeal, server: str, *, randomness: Randomness = secrets.token_bytes) -> None:
        self._seal = seal
        self._server = server
        self._randomness = randomness
        self._seen = 0
        # Set by whoever follows the ledger: why nothing may be recorded now.
        self.refused: LedgerUnavailable | None = None

    def decision(self, entry: DecisionEntry) -> SealedEntry:
        """Seal a decision; its salt is its own, because the guest's receipt names it."""
        return self._seal.seal(
            kind=DECISION, id=entry.release_id, server=self._server, salt=entry.salt, entry=entry.canonical
        )

    def action(self, action: OperatorAction) -> SealedEntry:
        """Seal an action.

        Raises:
            ValueError: the randomness gave a salt of another length.

        """
        salt = self._randomness(SALT_LENGTH)
        return self._seal.seal(
            kind=ACTION, id=action.action_id, server=self._server, salt=salt, entry=action.canonical
        )

    async def record_action(self, connection: AsyncConnection, action: OperatorAction) -> None:
        """Record an action in a transaction of the caller's: the change and its record, or neither."""
        await self.insert(connection, [self.action(action)])
        await connection.execute(
            insert(operator_actions).values(
                id=action.action_id,
                at=timestamp(action.at),
                operator=action.actor.name,
                action=action.action,
                outcome=action.outcome,
            )
        )

    async def insert(self, connection: AsyncConnection, sealed: Sequence[SealedEntry]) -> int:
        """Insert entries in a `writing` transaction, and give the place of the last one.

        Raises:
            LedgerUnavailable: reason ``ledger-rolled-back``: there is less in the record than there was.

        """
        last = last_place((await connection.execute(select(*LAST_PLACES))).one())
        return await connection.run_sync(self.insert_after, last, sealed)

    def insert_after(self, connection: Connection, last: int, sealed: Sequence[SealedEntry]) -> int:
        """Insert as `insert` does, after the place that `last_place` gave in the same transaction."""
        self.require(last)
        if sealed:
            rows = [_row(last + number, each) for number, each in enumerate(sealed, 1)]
            connection.execute(insert(entries), rows)
        return last + len(sealed)

    def require(self, last: int) -> None:
        """Compare what the record says of its end with what was seen, and remember it. Raises as `insert`."""
        if self.refused is not None:
            raise LedgerUnavailable(self.refused.detail, reason=self.refused.reason)
        if last < self._seen:
            raise LedgerUnavailable(
                f"the record ends at place {last}, and this server has seen place {self._seen}:"
                " an older copy of the database, or its end was removed",
                reason=ROLLED_BACK,
            )
        self._seen = last

    def verified(self, row: Row[*tuple[Any, ...]]) -> SealedEntry | None:
        """Read a row of `entries`; None for one that no server of this KMS has written just so."""
        sealed = sealed_entry(row)
        return sealed if sealed is not None and self._seal.verifies(sealed) else None

    def forget(self) -> None:
        """Forget how far the record had come: an operator accepted that it went back."""
        self._seen = 0

    def committed(self, last: int) -> None:
        """Remember what was committed, so that its loss is noticed also before anything comes after it."""
        self._seen = max(self._seen, last)


# Where entries were removed by hand that a checkpoint has looked at, their places are not given again: what
# comes next would never be looked at. The largest checkpoint has the highest place.
LAST_PLACES: Final = (
    select(func.max(entries.c.place)).scalar_subquery().label("last_entry"),
    select(ledger_checkpoints.c.place)
    .order_by(ledger_checkpoints.c.size.desc())
    .limit(1)
    .scalar_subquery()
    .label("last_looked_at"),
)


def last_place(row: Row[*tuple[Any, ...]]) -> int:
    """Give the highest place that was ever given, by a row with `LAST_PLACES`; 0 for none.

    Raises:
        LedgerUnavailable: reason ``ledger-untrusted``: somebody wrote there what is no place, and it must go
            before anything is recorded after it.

    """
    places = [0 if place is None else place for place in (row.last_entry, row.last_looked_at)]
    if not all(type(place) is int and place <= MAX_PLACE for place in places):
        raise LedgerUnavailable(
            "the record ends at what is no place: `kms ledger verify` names the entry to remove",
            reason=UNTRUSTED,
        )
    return max(places)


def sealed_entry(row: Row[*tuple[Any, ...]]) -> SealedEntry | None:
    """Read a row of `entries`; None for one that has no MAC, or that no server can have written."""
    # SQLite keeps anything in any column.
    typed = all(isinstance(each, str) for each in (row.kind, row.id, row.server)) and all(
        isinstance(each, bytes) for each in (row.salt, row.entry, row.mac)
    )
    if not typed:
        return None
    return SealedEntry(
        kind=row.kind, id=row.id, server=row.server, salt=row.salt, entry=row.entry, mac=row.mac
    )


def _row(place: int, sealed: SealedEntry) -> dict[str, object]:
    return {
        "place": place,
        "id": sealed.id,
        "kind": sealed.kind,
        "server": sealed.server,
        "entry": sealed.entry,
        "salt": sealed.salt,
        "mac": sealed.mac,
    }
