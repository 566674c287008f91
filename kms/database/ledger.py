"""The ledger in the database: entries with their places, the leaves of the tree, its tiles and checkpoints.

Nothing here says that it is as it was written: who reads it verifies (`kms.sequencing`,
`kms.ledger.verifying`).
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import structlog
from sqlalchemy import (
    Column,
    ColumnElement,
    Row,
    Select,
    and_,
    delete,
    func,
    insert,
    not_,
    or_,
    select,
    text,
    true,
)
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from kms.database.dialect import POSTGRESQL, insert_or
from kms.database.engine import ANSWER_WITHIN, migrating, reading, writing
from kms.database.faults import database_fault
from kms.database.lookups import LOOKUPS, disagreement
from kms.database.recording import sealed_entry
from kms.database.schema import (
    entries,
    ledger_checkpoints,
    ledger_leaves,
    ledger_tiles,
)
from kms.errors import LedgerUnavailable
from kms.ledger.entries import read_timestamp, timestamp
from kms.ledger.findings import Finding, FindingKind
from kms.ledger_ports import UNTRUSTED, Growth, Leaf, LedgerHead, LedgerState, Recorded

# ASCII "KMS1", as the write lock has it (kms/database/engine.py), and 2.
_TAKE_TURN: Final = text("SELECT pg_catalog.pg_try_advisory_xact_lock(1263358769, 2)")
_ROWS_AT_ONCE: Final = 4096
# Leaves of a round that are written with no limit of time: those of before the ledger, taken all at once.
_MANY: Final = 10_000

_log = structlog.get_logger("kms.ledger")

_ENTRY: Final = (
    entries.c.place,
    entries.c.id,
    entries.c.kind,
    entries.c.server,
    entries.c.entry,
    entries.c.salt,
    entries.c.mac,
)
_LOOKUP: Final = tuple(
    column.label(f"{table.name}_{column.name}") for table in LOOKUPS.values() for column in table.c
)
_LEAF: Final = (
    ledger_leaves.c.number.label("leaf"),
    ledger_leaves.c.place.label("leaf_place"),
    *_ENTRY,
    *_LOOKUP,
)
# A leaf of another number is none, and must hide no entry. (SQLite puts texts after all numbers.)
_NUMBERED: Final = ledger_leaves.c.number.between(0, 2**63 - 1)
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
        its_leaf = and_(ledger_leaves.c.place == entries.c.place, _NUMBERED)
        query = _with_lookups(select(*_ENTRY, *_LOOKUP).outerjoin_from(entries, ledger_leaves, its_leaf))
        query = query.where(ledger_leaves.c.number.is_(None)).order_by(entries.c.place)
        async for page in self._pages(entries.c.place):
            for row in await self._rows(query.where(page)):
                found = _recorded(row)
                yield Recorded(place=found.place, sealed=found.sealed, lookup=_lookup(row))

    async def strays(self) -> AsyncIterator[Finding]:
        """Name rows that belong to nothing; see `LedgerReader.strays`."""
        for kind, table in LOOKUPS.items():
            its_entry = and_(entries.c.id == table.c.id, entries.c.kind == kind)
            query = select(table.c.id).outerjoin(entries, its_entry).where(entries.c.id.is_(None))
            async for page in self._pages(table.c.id):
                for row in await self._rows(query.where(page)):
                    what = f"a {kind} can be looked up that is not in the record: {row.id}"
                    yield Finding(kind=FindingKind.LOOKUP_CHANGED, index=None, id=str(row.id), sentence=what)
        query = select(ledger_leaves.c.number).where(not_(_NUMBERED)).limit(_ROWS_AT_ONCE)
        for row in await self._rows(query):
            what = f"a leaf has the number {row.number}"
            yield Finding(kind=FindingKind.LEAF_ADDED, index=None, id=None, sentence=what)

    async def _pages(self, key: Column[Any]) -> AsyncIterator[ColumnElement[bool]]:
        """Give conditions that part a table by a key of its own, whatever stands there, into small pieces."""
        after: ColumnElement[bool] = true()
        while True:
            page = select(key).where(after).order_by(key).limit(_ROWS_AT_ONCE).subquery()
            [(last,)] = await self._rows(select(func.max(page.c[0])))
            if last is None:
                return
            yield and_(after, key <= last)
            after = key > last

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
                    async with asyncio.timeout(ANSWER_WITHIN):
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
        transaction = writing if len(growth.places) < _MANY else migrating
        async with transaction(self._engine) as connection:
            size = select(func.coalesce(func.max(ledger_checkpoints.c.size), 0))
            if (await connection.execute(size)).scalar() != growth.first:
                return False
            # What no checkpoint made, somebody put there by hand: it must not stop us. Every leaf of the tree
            # was recorded before those that are added: one at a place of theirs was moved there.
            by_hand = or_(
                not_(_NUMBERED),
                ledger_leaves.c.number >= growth.first,
                ledger_leaves.c.place >= growth.places[0],
            )
            removed = (await connection.execute(delete(ledger_leaves).where(by_hand))).rowcount
            for start in range(0, len(growth.places), _ROWS_AT_ONCE):
                places = enumerate(growth.places[start : start + _ROWS_AT_ONCE], growth.first + start)
                leaves = [{"number": number, "place": place} for number, place in places]
                await connection.execute(insert(ledger_leaves), leaves)
            put = insert_or(connection, ledger_tiles)
            put = put.on_conflict_do_update(
                index_elements=["level", "number"], set_={"hashes": put.excluded.hashes}
            )
            await connection.execute(put, tiles)
            await connection.execute(insert(ledger_checkpoints), [checkpoint])
        if removed:
            _log.error("ledger-leaves-removed", count=removed, cause="no checkpoint made them")
        return True

    async def _with_lock(self) -> AsyncConnection | None:
        """Give a connection with a transaction that has the lock; None where another server has it."""
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
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
    of_leaf = entries.c.place == ledger_leaves.c.place
    return _with_lookups(select(*_LEAF).outerjoin_from(ledger_leaves, entries, of_leaf))


def _with_lookups(query: Select[Any]) -> Select[Any]:
    for table in LOOKUPS.values():
        query = query.outerjoin(table, table.c.id == entries.c.id)
    return query


def _leaf(row: Row[Any]) -> Leaf:
    return Leaf(
        index=_integer(row.leaf),
        place=_integer(row.leaf_place),
        entry=sealed_entry(row),
        lookup=_lookup(row),
    )


def _lookup(row: Row[Any]) -> str | None:
    """Say what does not fit in the row that an entry is looked up by; None where there is no entry."""
    entry = sealed_entry(row)
    if entry is None or (table := LOOKUPS.get(entry.kind)) is None:
        return None
    return disagreement(
        entry, {column.name: getattr(row, f"{table.name}_{column.name}") for column in table.c}
    )


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
