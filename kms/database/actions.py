"""The record of what operators did, in the database."""

from contextlib import suppress
from typing import Final

import structlog
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from kms.database.engine import reading, writing
from kms.database.recording import Recorder
from kms.database.schema import entries, operator_actions
from kms.ledger.actions import OperatorAction
from kms.strict_json import JsonError, JsonValue, parse_object

_log = structlog.get_logger("kms.operators")

_UNREADABLE: Final = "unreadable"


class ActionStore:
    """Implements `kms.operator_ports.Actions`.

    Every method raises `LedgerUnavailable` when the database does not answer.
    """

    def __init__(self, engine: AsyncEngine, recorder: Recorder) -> None:
        self._engine = engine
        self._recorder = recorder

    async def record(self, action: OperatorAction) -> None:
        """Make an action durable; see `kms.operator_ports.Actions.record`."""
        async with writing(self._engine) as connection:
            await self._recorder.record_action(connection, action)

    async def actions(self, *, before: str | None, limit: int) -> tuple[dict[str, JsonValue], ...]:
        """Give actions, newest first; see `kms.operator_ports.Actions.actions`.

        The ids sort by time. A row that is no entry any more is given as ``{"kind": "unreadable",
        "action_id"}``: left out, it would hide that somebody had been at the record.
        """
        query = select(operator_actions.c.id, entries.c.entry)
        query = query.outerjoin_from(operator_actions, entries, entries.c.id == operator_actions.c.id)
        query = query.order_by(operator_actions.c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(operator_actions.c.id < before)
        async with reading(self._engine) as connection:
            rows = (await connection.execute(query)).all()
        return tuple(_entry(row.id, row.entry) for row in rows)


def _entry(action_id: str, canonical: object) -> dict[str, JsonValue]:
    entry: dict[str, JsonValue] = {}
    if isinstance(canonical, bytes):  # SQLite keeps anything in any column
        with suppress(JsonError):
            entry = parse_object(canonical)
    if entry.get("action_id") != action_id:
        _log.warning("operator-action-unreadable", action_id=action_id)
        return {"kind": _UNREADABLE, "action_id": action_id}
    return entry
