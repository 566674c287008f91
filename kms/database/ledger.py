"""The ledger in the database: entries with their places, the leaves of the tree, its tiles and checkpoints.

Nothing here says that it is as it was written: who reads it verifies (`kms.sequencing`,
`kms.ledger.verifying`).
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from sqlalchemy import Row, Select, delete, func, insert, select, text, true
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from kms.database.dialect import POSTGRESQL, insert_or
from kms.database.engine import reading, writing
from kms.database.faults import database_fault
from kms.database.lookups import LOOKUPS, disagreement
from kms.database.recording import sealed_entry
from kms.database.schema import (
    decisions,
    entries,
    ledger_checkpoints,
    ledger_leaves,
    ledger_tiles,
    operator_actions,
)
from kms.errors import LedgerUnavailable
from kms.ledger.entries import read_timestamp, timestamp
from kms.ledger_ports import UNTRUSTED, Growth, Leaf, LedgerHead, LedgerState, Recorded

# ASCII "KMS1", as the write lock has it (kms/database/engine.py), and 2.
_TAKE_TURN: Final = text("SELECT pg_try_advisory_xact_lock(1263358769, 2)")
_PLACES_AT_ONCE: Final = 4096

_ENTRY: Final = (
    entries.c.place,
    entries.c.id,
    entries.c.kind,
    entries.c.server,
    entries.c.entry,
    entries.c.salt,
    entries.c.mac,
)
_LEAF: Final = (
    ledger_leaves.c.number.label("leaf"),
    ledger_leaves.c.place.label("leaf_place"),
    *_ENTRY,
    *(column.label(f"{table.name}_{column.name}") for table in LOOKUPS.values() for column in table.c),
)
_END: Final = select(func.coalesce(func.max(entries.c.place), 0)).scalar_subquery()


class LedgerStore:
    """Implements `kms.ledger_ports.LedgerWriter`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def head(self) -> LedgerHead | None:
        """Give the newest checkpoint; see `LedgerReader.head`."""
        found = await self.checkpoints(before=None, limit=1)
        return found[0] if found else None

    async def checkpoints(self, *, before: int | None, limit: int) -> tuple[LedgerHead, ...]:
        """Give checkpoints, largest first; see `LedgerReader.checkpoints`."""
        query = select(ledger_checkpoints).order_by(ledger_checkpoints.c.size.desc()).limit(limit)
        if before is not None:
            query = query.where(ledger_checkpoints.c.size < before)
        return tuple(_head(row) for row in await self._rows(query))

    async def tile(self, level: int, number: int) -> bytes | None:
        """Give the hashes of a tile; see `LedgerReader.tile`."""
        of_tile = (ledger_tiles.c.level == level, ledger_tiles.c.number == number)
        rows = await self._rows(select(ledger_tiles.c.hashes).where(*of_tile))
        # SQLite keeps anything in any column.
        return rows[0].hashes if rows and isinstance(rows[0].hashes, bytes) else None

    async def leaves(self, start: int, *, limit: int) -> tuple[Leaf, ...]:
        """Give leaves from an index on; see `LedgerReader.leaves`."""
        query = _leaves().where(ledger_leaves.c.number >= start)
        rows = await self._rows(query.order_by(ledger_leaves.c.number).limit(limit))
        return tuple(_leaf(row) for row in rows)

    async def leaf_of(self, entry_id: str) -> Leaf | None:
        """Give the leaf of an entry; see `LedgerReader.leaf_of`."""
        rows = await self._rows(_leaves().where(entries.c.id == entry_id))
        return _leaf(rows[0]) if rows else None

    async def recorded(self, entry_id: str) -> Recorded | None:
        """Give an entry, sequenced or not; see `LedgerReader.recorded`."""
        rows = await self._rows(select(*_ENTRY).where(entries.c.id == entry_id))
        return _recorded(rows[0]) if rows else None

    async def unsequenced(self) -> AsyncIterator[Recorded]:
        """Give everything that is no leaf, by place; see `LedgerReader.unsequenced`."""
        place, end = -1, (await self.state()).end
        query = select(*_ENTRY).outerjoin(ledger_leaves, ledger_leaves.c.place == entries.c.place)
        query = query.where(ledger_leaves.c.number.is_(None)).order_by(entries.c.place)
        # So many places at a time, for there may be a million before the next one that is no leaf.
        while place < end:
            rows = await self._rows(
                query.where(entries.c.place > place, entries.c.place <= place + _PLACES_AT_ONCE)
            )
            for row in rows:
                yield _recorded(row)
            place += _PLACES_AT_ONCE

    async def state(self) -> LedgerState:
        """Give how far ledger and record have come, in one small query; see `LedgerWriter.state`."""
        newest = select(ledger_checkpoints).order_by(ledger_checkpoints.c.size.desc()).limit(1).subquery()
        ends = select(_END.label("end_place")).subquery()
        query = select(ends.c.end_place, newest).select_from(ends.outerjoin(newest, true()))
        [row] = await self._rows(query)
        if type(row.end_place) is not int:
            raise LedgerUnavailable("the end of the record is no place", reason=UNTRUSTED)
        return LedgerState(head=None if row.size is None else _head(row), end=row.end_place)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[bool]:
        """Take the turn if nobody has it; see `LedgerWriter.turn`.

        On PostgreSQL it lasts as long as a transaction of its own. A server that stands still has it for no
        longer than `idle_in_transaction_session_timeout` (kms/database/engine.py): then another one goes on.
        SQLite's servers are processes of one machine: there the turn is always had, and `append` decides.
        """
        if self._engine.dialect.name != POSTGRESQL:
            yield True
            return
        connection = await self._with_lock()
        try:
            yield connection is not None
        finally:
            if connection is not None:
                # That the transaction was ended for us says nothing of what was done meanwhile.
                with suppress(SQLAlchemyError, OSError):
                    await connection.close()

    async def after(self, place: int, *, limit: int) -> tuple[Recorded, ...]:
        """Give what was recorded after a place; see `LedgerWriter.after`."""
        query = select(*_ENTRY).where(entries.c.place > place).order_by(entries.c.place).limit(limit)
        return tuple(_recorded(row) for row in await self._rows(query))

    async def append(self, growth: Growth) -> bool:
        """Add leaves, tiles and checkpoint in one transaction; see `LedgerWriter.append`.

        The tree must be as it was when they were computed. A sequencer that stood still meanwhile, while
        another had its turn, loses here.
        """
        leaves = [{"number": growth.first + index, "place": each} for index, each in enumerate(growth.places)]
        tiles = [
            {"level": level, "number": number, "hashes": hashes}
            for (level, number), hashes in growth.tiles.items()
        ]
        checkpoint = {
            "size": growth.head.size,
            "place": growth.head.place,
            "note": growth.head.note,
            "made_at": timestamp(growth.head.made_at),
        }
        async with writing(self._engine) as connection:
            size = select(func.coalesce(func.max(ledger_checkpoints.c.size), 0))
            if (await connection.execute(size)).scalar() != growth.first:
                return False
            # What stands beyond the last checkpoint, somebody put there by hand: it must not stop us.
            await connection.execute(delete(ledger_leaves).where(ledger_leaves.c.number >= growth.first))
            await connection.execute(insert(ledger_leaves), leaves)
            put = insert_or(connection, ledger_tiles)
            put = put.on_conflict_do_update(
                index_elements=["level", "number"], set_={"hashes": put.excluded.hashes}
            )
            await connection.execute(put, tiles)
            await connection.execute(insert(ledger_checkpoints), [checkpoint])
        return True

    async def _with_lock(self) -> AsyncConnection | None:
        """Give a connection with a transaction that has the lock; None where another server has it."""
        try:
            connection = await self._engine.connect()
            try:
                had = (await connection.execute(_TAKE_TURN)).scalar() is True
            except BaseException:
                await connection.close()
                raise
            if had:
                return connection
            await connection.close()
        except (SQLAlchemyError, OSError) as error:
            raise database_fault(error) from error
        return None

    async def _rows(self, query: Select[Any]) -> list[Row[Any]]:
        async with reading(self._engine) as connection:
            return list((await connection.execute(query)).all())


def _leaves() -> Select[Any]:
    query = select(*_LEAF).outerjoin_from(ledger_leaves, entries, entries.c.place == ledger_leaves.c.place)
    for table in (decisions, operator_actions):
        query = query.outerjoin(table, table.c.id == entries.c.id)
    return query


def _leaf(row: Row[Any]) -> Leaf:
    entry = sealed_entry(row)
    lookup = None
    if entry is not None and (table := LOOKUPS.get(entry.kind)) is not None:
        found = {column.name: getattr(row, f"{table.name}_{column.name}") for column in table.c}
        lookup = disagreement(entry, found)
    return Leaf(index=_integer(row.leaf), place=_integer(row.leaf_place), entry=entry, lookup=lookup)


def _recorded(row: Row[Any]) -> Recorded:
    return Recorded(place=_integer(row.place), sealed=sealed_entry(row))


def _head(row: Row[Any]) -> LedgerHead:
    size, place, note, made_at = (getattr(row, name) for name in ("size", "place", "note", "made_at"))
    try:
        if type(size) is int and type(place) is int and isinstance(note, str):
            return LedgerHead(size=size, place=place, note=note, made_at=read_timestamp(made_at))
    except (ValueError, TypeError):
        pass
    raise LedgerUnavailable("a checkpoint in the database is not one", reason=UNTRUSTED)


def _integer(value: object) -> int:
    """Give a whole number of the database's; -1 for what somebody put in its place."""
    return value if type(value) is int else -1
