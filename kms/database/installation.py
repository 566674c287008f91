"""The marks of a database: what it was made for, and which root made its keys."""

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from kms.database.engine import reading, writing
from kms.database.schema import installation, root_checks
from kms.errors import ConfigurationError, LedgerUnavailable
from kms.keys.root_messages import Mode
from kms.ledger.entries import timestamp
from kms.ports import Clock


class Installation:
    """Reads and makes the marks. They are made once and never changed."""

    def __init__(self, engine: AsyncEngine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock

    async def mark(self, mode: Mode) -> None:
        """Mark a new database with a mode, or check that an old one has it.

        Raises:
            ConfigurationError: the database was made for the other mode.

        """
        async with writing(self._engine) as connection:
            row = (await connection.execute(select(installation.c.mode))).first()
            if row is None:
                values = {"id": 1, "mode": mode.value, "created_at": timestamp(self._clock())}
                await connection.execute(insert(installation).values(values))
                return
        if row.mode != mode.value:
            raise ConfigurationError(
                f"this database was made for {row.mode} mode, and the server is in {mode.value} mode",
                remedy="development roots (KMS_DEVELOPMENT_ROOTS) never serve a production database, nor the "
                "reverse: use another data folder",
            )

    async def check_values(self) -> dict[int, bytes]:
        """Give the stored key-check value (32 bytes) of each epoch.

        Raises:
            LedgerUnavailable: the database did not answer, or holds something else in their place.

        """
        async with reading(self._engine) as connection:
            return await stored_check_values(connection)

    async def remember_check_values(self, values: Mapping[int, bytes]) -> None:
        """Store the key-check values of new epochs, all of them or none; see `adopt_check_values`."""
        async with writing(self._engine) as connection:
            await adopt_check_values(connection, values, self._clock())


async def stored_check_values(connection: AsyncConnection) -> dict[int, bytes]:
    """Give the key-check values, in a transaction of the caller's; see `Installation.check_values`."""
    query = select(root_checks.c.epoch, root_checks.c.check_value)
    stored = {row.epoch: row.check_value for row in await connection.execute(query)}
    # SQLite keeps anything in any column.
    if not all(type(epoch) is int and isinstance(value, bytes) for epoch, value in stored.items()):
        raise LedgerUnavailable("a stored key-check value is not one", reason="epochs-untrusted")
    return stored


async def adopt_check_values(connection: AsyncConnection, values: Mapping[int, bytes], now: datetime) -> None:
    """Store those that are not there, in a transaction of the caller's.

    Raises:
        ConfigurationError: another value is there: there are two roots.

    """
    stored = await stored_check_values(connection)
    if any(stored.get(epoch, value) != value for epoch, value in values.items()):
        raise ConfigurationError(
            "another server gave this database another root key just now",
            remedy="let both servers use one root key (KMS_ROOT_KEY); this one's was never used",
        )
    for epoch, value in values.items():
        if epoch not in stored:
            row = {"epoch": epoch, "check_value": value, "created_at": timestamp(now)}
            await connection.execute(insert(root_checks).values(row))
