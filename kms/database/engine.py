"""Connections to the database, set so that a commit is on stable storage when it returns."""

import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from kms.errors import ConfigurationError, LedgerUnavailable

SQLITE_FILE: Final = "kms.sqlite3"
_WRITES: Final = "kms_writes"
_LOCKED_TRIES: Final = 250
_LOCKED_PAUSE: Final = 0.02  # seconds, at most 5 in all, and only while a file is new
_PRAGMAS: Final = (
    # First: of two servers that open a new file at once, one waits for the other.
    "PRAGMA busy_timeout=10000",
    "PRAGMA journal_mode=WAL",
    # FULL: a committed transaction survives a power cut, in WAL mode too (sqlite.org/pragma.html).
    "PRAGMA synchronous=FULL",
    "PRAGMA foreign_keys=ON",
)


def sqlite_url(data_dir: Path) -> str:
    """Give the URL of the embedded database in a data folder."""
    return URL.create("sqlite+aiosqlite", database=str(data_dir / SQLITE_FILE)).render_as_string()


def check_database_url(url: str) -> URL:
    """Read a database URL, without touching what it names.

    Raises:
        ConfigurationError: not a URL of a database that this version supports.

    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigurationError("KMS_DATABASE_URL is not a database URL") from error
    if parsed.drivername != "sqlite+aiosqlite":
        raise ConfigurationError(
            f"this version keeps its data in SQLite, not in {parsed.drivername}",
            remedy="leave KMS_DATABASE_URL unset, or write sqlite+aiosqlite:///PATH",
        )
    if not parsed.database or parsed.database.startswith((":memory:", "file:")) or parsed.query:
        # In memory, every audit record and spent challenge would be gone at the next start; a `file:` URI
        # or a parameter can ask for that too, or switch locking off.
        raise ConfigurationError(
            "KMS_DATABASE_URL names no file",
            remedy="leave it unset, or write sqlite+aiosqlite:///PATH, without parameters",
        )
    return parsed


def open_engine(url: str) -> AsyncEngine:
    """Open the database.

    Raises:
        ConfigurationError: not a URL of a database that this version supports.

    """
    engine = create_async_engine(check_database_url(url))
    event.listen(engine.sync_engine, "connect", _prepare)
    event.listen(engine.sync_engine, "begin", _begin)
    return engine


@asynccontextmanager
async def writing(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Open a transaction that holds the write lock from its start, so that what it read stays true.

    Raises:
        LedgerUnavailable: the database did not do what it was asked; nothing of the transaction is there.

    """
    with _translated():
        async with engine.connect() as connection:
            await connection.execution_options(**{_WRITES: True})
            async with connection.begin():
                yield connection


@asynccontextmanager
async def reading(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Open a connection for reading, each statement by itself.

    Raises:
        LedgerUnavailable: the database did not answer.

    """
    with _translated():
        async with engine.connect() as connection:
            yield connection


def triggers_and_views(connection: Connection) -> list[str]:
    """Name what no migration makes, and what could undo a revocation while it is written (SQLite)."""
    query = text("SELECT type, name FROM sqlite_master WHERE type IN ('trigger', 'view')")
    return [f"{row.type} {row.name}" for row in connection.execute(query)]


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        cause = getattr(error, "orig", None) or error
        raise LedgerUnavailable(f"the database: {type(cause).__name__}: {cause}") from error


def _prepare(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    # The driver's own transaction handling starts transactions too late; we start them ourselves.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in _PRAGMAS:
        _execute(cursor, pragma)
    cursor.close()


def _execute(cursor: DBAPICursor, pragma: str) -> None:
    """Execute a pragma; wait where SQLite does not: of two that switch a new file to WAL, one is told off."""
    for _ in range(_LOCKED_TRIES):
        try:
            cursor.execute(pragma)
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            time.sleep(_LOCKED_PAUSE)
        else:
            return
    cursor.execute(pragma)


def _begin(connection: Connection) -> None:
    if connection.get_execution_options().get(_WRITES):
        connection.exec_driver_sql("BEGIN IMMEDIATE")
