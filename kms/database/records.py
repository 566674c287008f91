"""Reading the record of decisions: one, pages of them by filters, or all of a time to judge them again."""

import json
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Integer, Row, Select, func, literal_column, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from kms.database.engine import reading
from kms.database.schema import decisions
from kms.errors import NotFound
from kms.ledger.entries import timestamp
from kms.ledger.recorded import RecordDamaged
from kms.operator_ports import RecordFilter
from kms.strict_json import JsonValue

_PAGE: Final = 100  # entries of ten kilobytes each
_columns = decisions.c
# SQLite numbers rows in the order in which they were written, and no decision is ever deleted.
_place: Final = literal_column("decisions.rowid", Integer)


class DecisionRecords:
    """Implements `kms.operator_ports.Records` on the table of decisions."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def entry(self, release_id: str) -> dict[str, JsonValue] | None:
        """Give one recorded entry; see `Records.entry`."""
        found = await self._rows(_entries().where(_columns.id == release_id))
        if not found:
            return None
        entry = _object(found[0])
        if entry is None:
            raise RecordDamaged(f"the recorded decision {release_id} is not the JSON object of that decision")
        return entry

    async def entries(self, wanted: RecordFilter, *, limit: int) -> tuple[dict[str, JsonValue], ...]:
        """Give the newest entries that match; see `Records.entries`."""
        query = _entries().where(*_conditions(wanted)).limit(limit)
        if wanted.before is not None:
            cursor = await self._rows(_entries().where(_columns.id == wanted.before))
            if not cursor:
                raise NotFound(
                    "there is no recorded decision of the id to go on from", reason="cursor-unknown"
                )
            query = query.where(_older_than(cursor[0]))
        return tuple(_object(row) or _unreadable(row) for row in await self._rows(query))

    async def scan(self, since: datetime, *, until: datetime | None = None) -> AsyncIterator[JsonValue]:
        """Give every entry of a time, newest first; see `Records.scan`."""
        query = _entries().where(*_conditions(RecordFilter(since=since, until=until))).limit(_PAGE)
        # Page by page: one long read would keep SQLite from resetting its write-ahead log.
        rows = await self._rows(query)
        while rows:
            for row in rows:
                yield _json(row)
            rows = await self._rows(query.where(_older_than(rows[-1]))) if len(rows) == _PAGE else []

    async def end(self) -> int:
        """Give the place of what was recorded last; see `Records.end`."""
        [row] = await self._rows(select(func.coalesce(func.max(_place), 0)).select_from(decisions))
        return int(row[0])

    async def scan_after(self, place: int) -> AsyncIterator[tuple[int, JsonValue]]:
        """Give every entry that was recorded after a place; see `Records.scan_after`."""
        while True:
            async with reading(self._engine) as connection:
                entries = await entries_after(connection, place, limit=_PAGE)
            if not entries:
                return
            for each in entries:
                yield each
            place = entries[-1][0]

    async def _rows(self, query: Select[Any]) -> list[Row[Any]]:
        async with reading(self._engine) as connection:
            return list((await connection.execute(query)).all())


async def entries_after(
    connection: AsyncConnection, place: int, *, limit: int | None = None
) -> list[tuple[int, JsonValue]]:
    """Give the entries that were recorded after a place, each with its own, on the caller's connection."""
    query = select(_place.label("place"), _columns.entry).where(_place > place).order_by(_place).limit(limit)
    return [(row.place, _json(row)) for row in await connection.execute(query)]


def _entries() -> Select[tuple[object, ...]]:
    query = select(_columns.id, _columns.decided_at, _columns.entry)
    return query.order_by(_columns.decided_at.desc(), _columns.id.desc())


def _conditions(wanted: RecordFilter) -> list[ColumnElement[bool]]:
    equal = (
        (_columns.app_id, wanted.app),
        (_columns.image, wanted.image),
        (_columns.chip_id, wanted.chip),
        (_columns.outcome, wanted.outcome),
        (_columns.code, wanted.code),
    )
    conditions: list[ColumnElement[bool]] = [column == value for column, value in equal if value is not None]
    if wanted.since is not None:
        conditions.append(_columns.decided_at >= timestamp(wanted.since))
    if wanted.until is not None:
        conditions.append(_columns.decided_at < timestamp(wanted.until))
    return conditions


def _older_than(row: Row[tuple[object, ...]]) -> ColumnElement[bool]:
    return tuple_(_columns.decided_at, _columns.id) < (row.decided_at, row.id)


def _json(row: Row[Any]) -> JsonValue:
    try:
        entry: JsonValue = json.loads(row.entry)
    except (ValueError, TypeError, RecursionError):  # somebody wrote it by hand; SQLite keeps any type
        return None
    return entry


def _object(row: Row[tuple[object, ...]]) -> dict[str, JsonValue] | None:
    """Give the decision that the row was made of; None where somebody put something else there."""
    entry = _json(row)
    if not isinstance(entry, dict):
        return None
    own = (entry.get("release_id"), entry.get("decided_at")) == (row.id, row.decided_at)
    return entry if own else None


def _unreadable(row: Row[tuple[object, ...]]) -> dict[str, JsonValue]:
    # Whatever somebody wrote there by hand.
    return {"release_id": str(row.id), "decided_at": str(row.decided_at)}
