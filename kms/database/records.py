"""Reading the record of decisions: one, pages of them by filters, or all of a time to judge them again."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, Select, func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from kms.database.engine import reading
from kms.database.recording import Recorder
from kms.database.schema import decisions
from kms.database.schema import entries as recorded
from kms.errors import NotFound
from kms.ledger.entries import DECISION, timestamp
from kms.ledger.recorded import RecordDamaged
from kms.operator_ports import RecordFilter
from kms.strict_json import JsonValue

_PAGE: Final = 100  # entries of ten kilobytes each
_columns = decisions.c


class DecisionRecords:
    """Implements `kms.operator_ports.Records` on the tables of decisions and entries."""

    def __init__(self, engine: AsyncEngine, recorder: Recorder) -> None:
        self._engine = engine
        self._recorder = recorder

    async def entry(self, release_id: str) -> dict[str, JsonValue] | None:
        """Give one recorded entry; see `Records.entry`."""
        found = await self._rows(_entries().where(_columns.id == release_id))
        if not found:
            return None
        entry = self._object(found[0])
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
        return tuple(self._object(row) or _unreadable(row) for row in await self._rows(query))

    async def scan(self, since: datetime, *, until: datetime | None = None) -> AsyncIterator[JsonValue]:
        """Give every entry of a time, newest first; see `Records.scan`."""
        query = _entries().where(*_conditions(RecordFilter(since=since, until=until))).limit(_PAGE)
        # Page by page: one long read would keep SQLite from resetting its write-ahead log.
        rows = await self._rows(query)
        while rows:
            for row in rows:
                yield self._json(row)
            rows = await self._rows(query.where(_older_than(rows[-1]))) if len(rows) == _PAGE else []

    async def end(self) -> int:
        """Give the place of what was recorded last; see `Records.end`."""
        [row] = await self._rows(select(func.coalesce(func.max(recorded.c.place), 0)))
        return int(row[0])

    async def scan_after(self, place: int) -> AsyncIterator[tuple[int, JsonValue]]:
        """Give every entry that was recorded after a place; see `Records.scan_after`."""
        while True:
            async with reading(self._engine) as connection:
                found = await decisions_after(connection, place, self._recorder, limit=_PAGE)
            for each in found.decisions:
                yield each
            if found.last == place:
                return
            place = found.last

    def _json(self, row: Row[Any]) -> JsonValue:
        """Give a decision that a server of this KMS recorded just so; else None."""
        sealed = self._recorder.verified(row)
        return _json(row) if sealed is not None and sealed.kind == DECISION else None

    def _object(self, row: Row[Any]) -> dict[str, JsonValue] | None:
        """Give the decision that the row was made of; None where somebody put something else there."""
        entry = self._json(row)
        if not isinstance(entry, dict):
            return None
        own = (entry.get("release_id"), entry.get("decided_at")) == (row.id, row.decided_at)
        return entry if own else None

    async def _rows(self, query: Select[Any]) -> list[Row[Any]]:
        async with reading(self._engine) as connection:
            return list((await connection.execute(query)).all())


@dataclass(frozen=True, slots=True)
class RecordedAfter:
    """Decisions with their places, None for what cannot be believed to be none; and the last place read."""

    decisions: list[tuple[int, JsonValue]]
    last: int


async def decisions_after(
    connection: AsyncConnection, place: int, recorder: Recorder, *, limit: int | None = None
) -> RecordedAfter:
    """Give what was recorded after a place, on the caller's connection, in order.

    What was removed, or was not written by a server of this KMS, may have been a decision: it is given as one
    that is no JSON.
    """
    query = select(recorded).where(recorded.c.place > place).order_by(recorded.c.place).limit(limit)
    found: list[tuple[int, JsonValue]] = []
    for row in await connection.execute(query):
        if row.place != place + 1:
            found.append((row.place - 1, None))
        place = row.place
        sealed = recorder.verified(row)
        if sealed is None or sealed.kind == DECISION:
            found.append((place, None if sealed is None else _json(row)))
    return RecordedAfter(found, place)


def _entries() -> Select[tuple[object, ...]]:
    of_entry = (column for column in recorded.c if column.name != "id")
    query = select(_columns.id, _columns.decided_at, *of_entry)
    query = query.outerjoin_from(decisions, recorded, recorded.c.id == _columns.id)
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


def _unreadable(row: Row[tuple[object, ...]]) -> dict[str, JsonValue]:
    # Whatever somebody wrote there by hand.
    return {"release_id": str(row.id), "decided_at": str(row.decided_at)}
