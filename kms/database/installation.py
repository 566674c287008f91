"""The marks of a database: what it was made for, and which root made its keys."""

from collections.abc import Mapping

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncEngine

from kms.database.engine import reading, writing
from kms.database.schema import installation, root_checks
from kms.errors import ConfigurationError
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
        """Give the stored key-check value (32 bytes) of each epoch."""
        query = select(root_checks.c.epoch, root_checks.c.check_value)
        async with reading(self._engine) as connection:
            return {row.epoch: row.check_value for row in await connection.execute(query)}

    async def remember_check_values(self, values: Mapping[int, bytes]) -> None:
        """Store the key-check values of new epochs, all of them or none.

        Raises:
            ConfigurationError: another server stored another value meanwhile: there are two roots.

        """
        now = timestamp(self._clock())
        async with writing(self._engine) as connection:
            query = select(root_checks.c.epoch, root_checks.c.check_value)
            stored = {row.epoch: row.check_value for row in await connection.execute(query)}
            if any(stored.get(epoch, value) != value for epoch, value in values.items()):
                raise ConfigurationError(
                    "another server gave this database another root key just now",
                    remedy="let both servers use one root key (KMS_ROOT_KEY); this one's was never used",
                )
            for epoch, value in values.items():
                if epoch not in stored:
                    await connection.execute(
                        insert(root_checks).values(epoch=epoch, check_value=value, created_at=now)
                    )
