"""The register of operators in the database.

Each row carries a MAC under a key that the root derives, over every column but `last_used_at`. Whoever can
write the database, but does not have the root key, can remove operators and can add none; a row that was
written or altered by hand is ignored and reported.

What this does not notice: an old copy of a whole row put back, with the MAC that it had then. So somebody
who kept a copy of the database from before a revocation, and can write to it now, can undo that revocation.
Nothing in the same database could tell, for it can be put back as well. What limits it is the expiry, which
is in the MAC: that is why tokens always have one, and what speaks for one with a certificate too.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

import structlog
from sqlalchemy import ColumnElement, RowMapping, delete, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from kms.administration.register import Entry, LastAdmin, NotAuthentic, Operator, Standing
from kms.database.engine import reading, writing
from kms.database.recording import Recorder
from kms.database.schema import operators
from kms.errors import LedgerUnavailable, OperatorExists
from kms.keys.row_seal import RowSeal, optional
from kms.ledger.actions import OperatorAction
from kms.ledger.entries import timestamp
from kms.operators import Role
from kms.ports import Clock

_log = structlog.get_logger("kms.operators")

_TABLE: Final = "operators"
_SEALED: Final = tuple(column.name for column in operators.c if column.name not in {"last_used_at", "mac"})
_TOUCH_EVERY: Final = timedelta(minutes=1)
_REPORT_EVERY: Final = 600.0  # seconds, for each row
_MOST_REPORTED: Final = 1000  # rows; beyond, the log would only repeat that the table was written by hand


class OperatorStore:
    """Implements `kms.administration.register.Register`. `monotonic` gives seconds."""

    def __init__(
        self,
        engine: AsyncEngine,
        clock: Clock,
        seal: RowSeal,
        *,
        recorder: Recorder,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._seal = seal
        self._recorder = recorder
        self._monotonic = monotonic
        self._reported: dict[str, float] = {}
        self._touched: dict[str, datetime] = {}

    async def add(self, operator: Operator, action: OperatorAction) -> None:
        """Add an operator; see `Register.add`."""
        same = operators.c.name == operator.name
        if operator.subject is not None:
            same = or_(same, operators.c.subject == operator.subject)
        async with writing(self._engine) as connection:
            for row in (await connection.execute(select(operators).where(same))).mappings():
                self._require_room(operator, row)
            await connection.execute(delete(operators).where(operators.c.name == operator.name))
            await connection.execute(insert(operators).values(self._sealed(operator)))
            await self._require_written(connection, operator)
            await self._recorder.record_action(connection, action)

    async def revoke(
        self, name: str, at: datetime, action: OperatorAction, *, keep_an_admin: bool
    ) -> Operator | None:
        """End an operator's access; see `Register.revoke`."""
        async with writing(self._engine) as connection:
            found = await self._authentic(connection, operators.c.name == name)
            if not found or found[0].revoked_at is not None:
                return found[0] if found else None
            if keep_an_admin:
                admins = await self._authentic(connection, operators.c.role == Role.ADMIN.value)
                if [each.name for each in admins if each.standing(at) is Standing.ACTIVE] == [name]:
                    raise LastAdmin
            revoked = replace(found[0], revoked_at=at)
            sealed = self._sealed(revoked)
            await connection.execute(update(operators).where(operators.c.name == name).values(sealed))
            await self._require_written(connection, revoked)
            await self._recorder.record_action(connection, action)
        return revoked

    async def entries(self, *, after: str | None, limit: int) -> tuple[Entry, ...]:
        """Give entries by name; see `Register.entries`."""
        query = select(operators).order_by(operators.c.name).limit(limit)
        if after is not None:
            query = query.where(operators.c.name > after)
        async with reading(self._engine) as connection:
            rows = (await connection.execute(query)).mappings().all()
        return tuple(self._opened(row) or NotAuthentic(str(row["name"])) for row in rows)

    async def by_token_id(self, token_id: str) -> Operator | None:
        """Give the entry of a token; see `Register.by_token_id`."""
        return await self._one(operators.c.token_id == token_id)

    async def by_subject(self, subject: str) -> Operator | None:
        """Give the entry of a certificate; see `Register.by_subject`."""
        return await self._one(operators.c.subject == subject)

    async def touch(self, operator: Operator) -> None:
        """Note the last use, at most once a minute; see `Register.touch`."""
        now = self._clock()
        # The memory of this process too: where the database cannot be written, not every request must try.
        for last in (operator.last_used_at, self._touched.get(operator.name)):
            if last is not None and abs(now - last) < _TOUCH_EVERY:
                return
        self._touched[operator.name] = now
        this = operators.c.name == operator.name
        try:
            async with writing(self._engine) as connection:
                await connection.execute(update(operators).where(this).values(last_used_at=timestamp(now)))
        except LedgerUnavailable as error:
            _log.warning("operator-use-not-noted", name=operator.name, cause=error.detail)

    async def _require_written(self, connection: AsyncConnection, operator: Operator) -> None:
        """Read back what was written: a database with triggers may do something else, and say nothing."""
        written = await self._authentic(connection, operators.c.name == operator.name)
        if [replace(each, last_used_at=None) for each in written] != [replace(operator, last_used_at=None)]:
            raise LedgerUnavailable("the database did not keep the operator that it was given")

    async def _one(self, condition: ColumnElement[bool]) -> Operator | None:
        async with reading(self._engine) as connection:
            found = await self._authentic(connection, condition)
        return found[0] if found else None

    async def _authentic(self, connection: AsyncConnection, condition: ColumnElement[bool]) -> list[Operator]:
        rows = (await connection.execute(select(operators).where(condition))).mappings()
        return [operator for row in rows if (operator := self._opened(row)) is not None]

    def _require_room(self, operator: Operator, row: RowMapping) -> None:
        """Refuse to add an operator beside this row, unless the row has its name and gives access no more."""
        if row["name"] != operator.name:
            raise OperatorExists(f"this certificate is that of the operator {row['name']}")
        found = self._opened(row)
        if found is not None and found.standing(operator.created_at) is Standing.ACTIVE:
            raise OperatorExists(f"there is an active operator {operator.name}; revoke that one first")

    def _sealed(self, operator: Operator) -> dict[str, Any]:
        row: dict[str, Any] = {
            "name": operator.name,
            "role": operator.role.value,
            "token_id": operator.token_id,
            "token_hash": operator.token_hash,
            "subject": operator.subject,
            "created_at": timestamp(operator.created_at),
            "created_by": operator.created_by,
            "expires_at": None if operator.expires_at is None else timestamp(operator.expires_at),
            "revoked_at": None if operator.revoked_at is None else timestamp(operator.revoked_at),
        }
        return row | {"mac": self._seal.mac(_TABLE, *(optional(row[name]) for name in _SEALED))}

    def _opened(self, row: RowMapping) -> Operator | None:
        """Read a row; None, reported, if its MAC is not of what stands in it."""
        sealed = [row[name] for name in _SEALED]
        # SQLite keeps anything in any column.
        ours = all(value is None or isinstance(value, str) for value in sealed) and isinstance(
            row["mac"], bytes
        )
        if not ours or not self._seal.verifies(row["mac"], _TABLE, *map(optional, sealed)):
            self._report(str(row["name"]))
            return None
        return Operator(
            name=row["name"],
            role=Role(row["role"]),
            token_id=row["token_id"],
            token_hash=row["token_hash"],
            subject=row["subject"],
            created_at=datetime.fromisoformat(row["created_at"]),
            created_by=row["created_by"],
            expires_at=_moment(row["expires_at"]),
            revoked_at=_moment(row["revoked_at"]),
            last_used_at=_claimed_moment(row["last_used_at"]),
        )

    def _report(self, name: str) -> None:
        now = self._monotonic()
        if now - self._reported.get(name, -_REPORT_EVERY) < _REPORT_EVERY:
            return
        if len(self._reported) >= _MOST_REPORTED:
            self._reported.clear()
        self._reported[name] = now
        _log.error("operator-row-not-authentic", name=name)


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _claimed_moment(text: object) -> datetime | None:
    """Read a time that no MAC covers, so that anything may stand there."""
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return None if moment is None or moment.tzinfo is None else moment
