"""The record of what operators did, in the database."""

import secrets
from contextlib import suppress
from typing import Final

import structlog
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from kms.database.engine import reading, writing
from kms.database.schema import operator_actions
from kms.ledger.actions import OperatorAction
from kms.ledger.entries import SALT_LENGTH, timestamp
from kms.ports import Randomness
from kms.strict_json import JsonError, JsonValue, parse_object

_log = structlog.get_logger("kms.operators")

_UNREADABLE: Final = "unreadable"


class ActionStore:
    """Implements `kms.operator_ports.Actions`.

    Every method raises `LedgerUnavailable` when the database does not answer.
    """

    def __init__(self, engine: AsyncEngine, *, randomness: Randomness = secrets.token_bytes) -> None:
        self._engine = engine
        self._randomness = randomness

    async def record(self, action: OperatorAction) -> None:
        """Make an action durable; see `kms.operator_ports.Actions.record`."""
        async with writing(self._engine) as connection:
            await insert_action(connection, action, self._randomness(SALT_LENGTH))

    async def actions(self, *, before: str | None, limit: int) -> tuple[dict[str, JsonValue], ...]:
        """Give actions, newest first; see `kms.operator_ports.Actions.actions`.

        The ids sort by time. A row that is no entry any more is given as ``{"kind": "unreadable",
        "action_id"}``: left out, it would hide that somebody had been at the record.
        """
        query = select(operator_actions.c.id, operator_actions.c.entry)
        query = query.order_by(operator_actions.c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(operator_actions.c.id < before)
        async with reading(self._engine) as connection:
            rows = (await connection.execute(query)).all()
        return tuple(_entry(row.id, row.entry) for row in rows)


async def insert_action(connection: AsyncConnection, action: OperatorAction, salt: bytes) -> None:
    """Write an action down in a transaction of the caller's: the change and its record, or neither.

    `salt` is 16 random bytes (`kms.ledger.entries.entry_digest`).

    Raises:
        ValueError: a salt of another length.

    """
    if len(salt) != SALT_LENGTH:
        raise ValueError(f"a salt has {SALT_LENGTH} bytes")
    await connection.execute(
        insert(operator_actions).values(
            id=action.action_id,
            at=timestamp(action.at),
            operator=action.actor.name,
            action=action.action,
            outcome=action.outcome,
            entry=action.canonical,
            salt=salt,
        )
    )


def _entry(action_id: str, canonical: object) -> dict[str, JsonValue]:
    entry: dict[str, JsonValue] = {}
    if isinstance(canonical, bytes):  # SQLite keeps anything in any column
        with suppress(JsonError):
            entry = parse_object(canonical)
    if entry.get("action_id") != action_id:
        _log.warning("operator-action-unreadable", action_id=action_id)
        return {"kind": _UNREADABLE, "action_id": action_id}
    return entry
