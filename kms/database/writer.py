"""Whole transactions as functions, so that many rows cost few trips.

The asynchronous driver of SQLite carries each statement to a thread and back, which costs more than the
statement itself. What is written for every release therefore runs in one thread, from BEGIN to COMMIT, over a
connection of its own. PostgreSQL is asked over the network anyhow: there the same function runs on the
engine's connections.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from kms.database.dialect import POSTGRESQL
from kms.database.engine import open_sync_engine, writing
from kms.database.faults import database_fault

T = TypeVar("T")


class Writer:
    """Runs functions in `writing` transactions, one after the other. Who writes after `close` opens it again.

    What it runs may be in another thread: it must not touch what the event loop changes.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._own: tuple[ThreadPoolExecutor, Engine] | None = None

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in one transaction, and commit unless it raises.

        Whoever stops waiting does not stop it: it may have been committed all the same.

        Raises:
            LedgerUnavailable: as `writing`.

        """
        if self._engine.dialect.name == POSTGRESQL:
            async with writing(self._engine) as connection:
                return await connection.run_sync(work)
        if self._own is None:
            self._own = (
                ThreadPoolExecutor(1, thread_name_prefix="writer"),
                open_sync_engine(self._engine.url),
            )
        thread, engine = self._own
        return await asyncio.get_running_loop().run_in_executor(thread, _written, engine, work)

    def close(self) -> None:
        """Let what runs end, and close the connection."""
        if self._own is not None:
            thread, engine = self._own
            self._own = None
            thread.shutdown()
            engine.dispose()


def _written(engine: Engine, work: Callable[[Connection], T]) -> T:
    try:
        with engine.begin() as connection:
            return work(connection)
    except (SQLAlchemyError, OSError) as error:
        raise database_fault(error) from error
