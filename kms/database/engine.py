"""Connections to the database, set so that a commit is on stable storage when it returns."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlencode

from sqlalchemy import Connection, Engine, create_engine, event, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor
from sqlalchemy.exc import ArgumentError, DisconnectionError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from kms.database.dialect import POSTGRESQL, is_postgresql
from kms.database.faults import database_fault
from kms.database.schema import installation
from kms.errors import ConfigurationError

SQLITE_FILE: Final = "kms.sqlite3"
_SQLITE: Final = "sqlite+aiosqlite"
_POSTGRESQL: Final = "postgresql+asyncpg"
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

_CONNECTIONS: Final = 10
_CONNECT_WITHIN: Final = 5.0  # seconds
ANSWER_WITHIN: Final = 10.0  # seconds, for all that is asked on a connection before it is given back
# postgresql.org/docs/current/runtime-config-client.html: settings of a session, in milliseconds.
_SESSION: Final = {
    "application_name": "attested-kms",
    # Each statement sees what was committed before it. At any other level a transaction would see what there
    # was before it waited for the write lock: a policy that was replaced meanwhile.
    "default_transaction_isolation": "read committed",
    # Whatever the database or the user was given for it, a table or function of another schema must not stand
    # before ours, nor before those of PostgreSQL itself, which come first where they are not named.
    "search_path": "public, pg_temp",
    # A committed transaction survives a power cut, whatever the database was told in general.
    "synchronous_commit": "on",
    # A server that stands still in the middle of a transaction must not hold up the others.
    "idle_in_transaction_session_timeout": "1500",
    "lock_timeout": "5000",
    "statement_timeout": "9000",
    # And one that is gone without a word is noticed.
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}
# Of a URL, beside `host` for the folder of a socket: as libpq names them.
_URL_PARAMETERS: Final = frozenset({"sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl", "passfile"})
# A row is locked by who may change it: anybody who may connect could take an advisory lock for ever.
_TAKE_WRITE_LOCK: Final = select(installation.c.id).where(installation.c.id == 1).with_for_update()
_IS_MIGRATED: Final = text("SELECT pg_catalog.to_regclass(:table) IS NOT NULL").bindparams(
    table=installation.name
)
# Until there is that row. Any two numbers would do, if nobody else here used them: ASCII "KMS1" and 1.
_TAKE_FIRST_LOCK: Final = text("SELECT pg_catalog.pg_advisory_xact_lock(1263358769, 1)")
_WITHOUT_LIMITS: Final = text(
    "SELECT pg_catalog.set_config(name, '0', true) FROM (VALUES ('statement_timeout'), ('lock_timeout'),"
    " ('idle_in_transaction_session_timeout')) AS limits (name)"
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
    except (ArgumentError, ValueError):
        # Without the cause: it may repeat a piece of the URL, which may be one of a password.
        raise ConfigurationError("KMS_DATABASE_URL is not a database URL") from None
    if parsed.drivername == _POSTGRESQL:
        return _checked_postgresql(parsed)
    if parsed.drivername != _SQLITE:
        raise ConfigurationError(
            f"data is kept in SQLite or PostgreSQL, not in {parsed.drivername}",
            remedy="leave KMS_DATABASE_URL unset, or write sqlite+aiosqlite:///PATH"
            " or postgresql+asyncpg://USER@HOST/DATABASE",
        )
    if not parsed.database or parsed.database.startswith((":memory:", "file:")) or parsed.query:
        # In memory, every audit record and spent challenge would be gone at the next start; a `file:` URI
        # or a parameter can ask for that too, or switch locking off.
        raise ConfigurationError(
            "KMS_DATABASE_URL names no file",
            remedy="leave it unset, or write sqlite+aiosqlite:///PATH, without parameters",
        )
    return parsed


def _checked_postgresql(url: URL) -> URL:
    if not url.database:
        raise ConfigurationError(
            "KMS_DATABASE_URL names no database", remedy="write postgresql+asyncpg://USER@HOST/DATABASE"
        )
    if url.host is not None and "@" in url.host:
        # The rest of a password would be looked up as the name of a host, in the open.
        raise ConfigurationError(
            "KMS_DATABASE_URL names no host", remedy="write an @ in a password as %40, a / as %2F"
        )
    if unknown := sorted(url.query.keys() - _URL_PARAMETERS - {"host"}):
        raise ConfigurationError(
            f"KMS_DATABASE_URL has parameters that this version does not know: {', '.join(unknown)}",
            remedy=f"leave them out; known are host, {', '.join(sorted(_URL_PARAMETERS))}",
        )
    return url


def is_shared(url: str) -> bool:
    """Say whether servers on other machines can be on this database too."""
    return check_database_url(url).drivername == _POSTGRESQL


def open_engine(url: str) -> AsyncEngine:
    """Open the database.

    Raises:
        ConfigurationError: not a URL of a database that this version supports.

    """
    parsed = check_database_url(url)
    if parsed.drivername == _POSTGRESQL:
        return _open_postgresql(parsed)
    engine = create_async_engine(parsed, hide_parameters=True)
    _listen(engine.sync_engine)
    return engine


def open_sync_engine(url: URL) -> Engine:
    """Open an SQLite file of `open_engine` once more, for a thread that writes: each transaction locks."""
    engine = create_engine(
        url.set(drivername="sqlite"), hide_parameters=True, execution_options={_WRITES: True}
    )
    _listen(engine)
    return engine


@asynccontextmanager
async def writing(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Open a transaction that holds the write lock from its start, so that what it read stays true.

    There is one such transaction at a time on the whole database, whichever server it is of. So what it
    commits has an order, and what it has read (which policy is in force, which epochs are retired) nobody
    changes before it ends. It must be short: nothing is computed in it that can be computed before.

    Raises:
        LedgerUnavailable: the database did not do what it was asked; its reason says why, where that is known
            (kms/database/faults.py). Nothing of the transaction is there, unless it was the answer to the
            commit that did not come: then all of it may be.

    """
    async with _connected(engine) as connection, _locked(connection):
        yield connection


@asynccontextmanager
async def migrating(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Open a transaction as `writing` does, that may take as long as it takes."""
    async with _connected(engine, within=None) as connection, _locked(connection, limited=False):
        yield connection


@asynccontextmanager
async def reading(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Open a connection for reading, each statement by itself.

    Raises:
        LedgerUnavailable: the database did not answer.

    """
    async with _connected(engine) as connection:
        if is_postgresql(connection):
            await connection.execution_options(isolation_level="AUTOCOMMIT")
        yield connection


@asynccontextmanager
async def _connected(
    engine: AsyncEngine, within: float | None = ANSWER_WITHIN
) -> AsyncIterator[AsyncConnection]:
    """Lend a connection, for some seconds where somebody may stand still at the other end of it."""
    try:
        async with asyncio.timeout(within if engine.dialect.name == POSTGRESQL else None):
            # What is cut off in the middle of a statement, by the limit or because nobody waits for it any
            # more, SQLAlchemy closes and does not use again: the other end then rolls back.
            async with engine.connect() as connection:
                yield connection
    except (SQLAlchemyError, OSError) as error:
        # Errors of drivers come wrapped, but for those of sockets.
        raise database_fault(error) from error


@asynccontextmanager
async def _locked(connection: AsyncConnection, *, limited: bool = True) -> AsyncIterator[None]:
    if not is_postgresql(connection):
        await connection.execution_options(**{_WRITES: True})
    async with connection.begin():
        if is_postgresql(connection):
            if not limited:
                await connection.execute(_WITHOUT_LIMITS)
            # Given back at the end of the transaction, also of one whose client is gone or stands still
            # (idle_in_transaction_session_timeout).
            if not await _have_row(connection, new=not limited):
                await connection.execute(_TAKE_FIRST_LOCK)
                # Who had it may have made the row: others lock only that.
                await _have_row(connection, new=not limited)
        yield


async def _have_row(connection: AsyncConnection, *, new: bool) -> bool:
    """Lock the row that every database has, but one that is just being made. `new`: it may have no table."""
    if new and not (await connection.execute(_IS_MIGRATED)).scalar():
        return False
    return (await connection.execute(_TAKE_WRITE_LOCK)).first() is not None


def _open_postgresql(url: URL) -> AsyncEngine:
    to_driver = {name: value for name, value in url.query.items() if name in _URL_PARAMETERS}
    engine = create_async_engine(
        url.difference_update_query(to_driver),
        connect_args={
            # SQLAlchemy knows these parameters by other names, or not at all; the driver by libpq's.
            "dsn": f"postgresql://?{urlencode(to_driver, doseq=True)}",
            "timeout": _CONNECT_WITHIN,
            "server_settings": _SESSION,
        },
        pool_size=_CONNECTIONS,
        max_overflow=0,
        pool_timeout=ANSWER_WITHIN,
        hide_parameters=True,
    )
    event.listen(engine.sync_engine, "checkout", _require_open)
    return engine


def _require_open(
    connection: DBAPIConnection, _entry: ConnectionPoolEntry, _proxy: PoolProxiedConnection
) -> None:
    """Let the pool connect anew where PostgreSQL has said goodbye, as at its restart. Asks nothing."""
    if connection.driver_connection.is_closed():
        raise DisconnectionError("PostgreSQL closed the connection")


def _listen(engine: Engine) -> None:
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)


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
