"""The database: whether it is there, ours, of this version and mode, and can be written."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import quote

from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, select, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from kms.database.dialect import is_postgresql, triggers_and_views
from kms.database.engine import check_database_url, is_shared, open_engine, reading
from kms.database.installation import stored_check_values
from kms.database.schema import installation
from kms.doctor.diagnosis import Diagnoses
from kms.errors import LedgerUnavailable
from kms.findings import Finding, Status, failed, ok, unknown, warning
from kms.keys.root_messages import Mode
from kms.packaged import packaged_folder

_SCHEMA: Final = "database-schema"
_WAIT: Final = 3.0  # seconds for another's lock


@dataclass(slots=True, kw_only=True)
class Seen:
    """What the other checks need of the database. `engine` is None where nothing can be read from it.

    `new`: it was never used, so the server may make what is missing. `ahead`: how many seconds its clock is
    before ours; None where it has none of its own.
    """

    engine: AsyncEngine | None = None
    new: bool = False
    ahead: float | None = None
    check_values: dict[int, bytes] = field(default_factory=dict)
    diagnoses: Diagnoses = field(default_factory=list)


@asynccontextmanager
async def seen_database(url: str, mode: Mode) -> AsyncIterator[Seen]:
    """Look at the database, and keep it open for the other checks."""
    seen, file = Seen(), _file(url)
    if file is not None and not file.exists():
        seen.new = True
        seen.diagnoses.append(
            warning("database", f"{file} is not there", "the server makes a new one; is it the right place?")
        )
        yield seen
        return
    engine = open_engine(url) if file is None else _open_unmade(file)
    try:
        try:
            async with reading(engine) as connection:
                await _look(connection, seen, mode, shown=_shown(url))
        except LedgerUnavailable as error:
            remedy = "is it running, a database of attested-kms, and undamaged?"
            name = "database-content" if seen.diagnoses else "database"
            seen.diagnoses.append(failed(name, error.detail, remedy))
        if _usable(seen):
            seen.engine = engine
            seen.diagnoses.append(await _writable(engine))
        yield seen
    finally:
        await engine.dispose()


def _file(url: str) -> Path | None:
    """Give the file of an embedded database."""
    return None if is_shared(url) else Path(check_database_url(url).database or "")


def _open_unmade(file: Path) -> AsyncEngine:
    """Open an embedded database without making it, and without what a server changes about it (WAL)."""
    url = URL.create(
        "sqlite+aiosqlite", database=f"file:{quote(str(file))}", query={"mode": "rw", "uri": "true"}
    )
    return create_async_engine(url, connect_args={"timeout": _WAIT})


def _shown(url: str) -> str:
    """Name the database without user and password."""
    parsed = check_database_url(url)
    where = f"{parsed.host}:{parsed.port or 5432}/" if is_shared(url) else ""
    return f"{where}{parsed.database}"


async def _look(connection: AsyncConnection, seen: Seen, mode: Mode, *, shown: str) -> None:
    if is_postgresql(connection):
        row = (
            await connection.execute(text("SELECT pg_catalog.clock_timestamp(), pg_catalog.version()"))
        ).one()
        seen.ahead = (row[0] - datetime.now(UTC)).total_seconds()
        kind = " ".join(str(row[1]).split()[:2])
    else:
        kind = f"SQLite {(await connection.execute(text('SELECT sqlite_version()'))).scalar_one()}"
    schema = await connection.run_sync(_schema)
    seen.diagnoses += [ok("database", f"{kind} at {shown}"), *schema]
    if is_postgresql(connection):
        seen.diagnoses.append(await _guests(connection))
    if any(each.failed for each in schema):
        return
    if not await connection.run_sync(lambda sync: inspect(sync).has_table(installation.name)):
        seen.new = True
        return
    seen.diagnoses.append(await _mode(connection, mode))
    seen.check_values = await stored_check_values(connection)
    seen.new = not seen.check_values


async def _guests(connection: AsyncConnection) -> Finding:
    """Say whether every role of the server may connect, which is so by default."""
    name = "database-connections"
    query = """
        SELECT EXISTS (
          SELECT FROM pg_catalog.pg_database AS mine,
            pg_catalog.aclexplode(coalesce(datacl, pg_catalog.acldefault('d', datdba))) AS granted
            WHERE datname = pg_catalog.current_database()
              AND granted.grantee = 0 AND granted.privilege_type = 'CONNECT'
        )
    """
    if (await connection.execute(text(query))).scalar():
        return warning(
            name,
            "every role of this PostgreSQL may connect: who does can hold up the sequencing for seconds",
            "REVOKE CONNECT ON DATABASE ... FROM PUBLIC",
        )
    return ok(name, "only roles with the right to it may connect")


def _schema(connection: Connection) -> Diagnoses:
    """Compare what the database has with the migrations of this version."""
    name = _SCHEMA
    directory = ScriptDirectory(str(packaged_folder("migrations")))
    known = [script.revision for script in directory.walk_revisions()]
    has, heads = set(MigrationContext.configure(connection).get_current_heads()), set(directory.get_heads())
    tables = set(inspect(connection).get_table_names()) - {"alembic_version"}
    if tables and installation.name not in tables:
        return [failed(name, "the database belongs to other software", "set KMS_DATABASE_URL to ours")]
    if newer := has - set(known):
        return [
            failed(
                name,
                f"schema {', '.join(sorted(newer))} is newer than this version knows",
                "run the version of attested-kms that wrote it, or a later one",
            )
        ]
    found: list[Finding] = []
    if foreign := triggers_and_views(connection):
        found.append(
            failed(
                "database-own-doings",
                f"the database does things of its own: {', '.join(foreign)}",
                "drop these triggers and views, and find out who made them",
            )
        )
    if has != heads:
        waiting = known if not has else known[: min(known.index(each) for each in has)]
        pending = ", ".join(reversed(waiting))
        return [
            *found,
            warning(name, f"to be applied: {pending}", "back it up; the server applies them when it starts"),
        ]
    return [*found, ok(name, f"schema {', '.join(sorted(heads))}, this version's")]


async def _mode(connection: AsyncConnection, mode: Mode) -> Finding:
    marked = (await connection.execute(select(installation.c.mode))).scalar_one_or_none()
    if marked is None:
        return unknown("database-mode", "the database has no mark yet")
    if marked != mode.value:
        return failed(
            "database-mode",
            f"the database was made for {marked} mode, and the settings are for {mode.value} mode",
            "development roots (KMS_DEVELOPMENT_ROOTS) never serve a production database, nor the reverse",
        )
    return ok("database-mode", f"made for {marked} mode")


def _usable(seen: Seen) -> bool:
    """Say whether the tables are those that this version reads, and hold something."""
    current = any(each.name == _SCHEMA and each.status is Status.OK for each in seen.diagnoses)
    return current and not seen.new and not any(each.failed for each in seen.diagnoses)


async def _writable(engine: AsyncEngine) -> Finding:
    """Take the lock that a write would take, and give it back."""
    try:
        async with engine.connect() as connection:
            if is_postgresql(connection):
                # Not in a read-only transaction, as on a standby, nor without the right to write.
                await connection.execute(select(installation.c.id).with_for_update())
            else:
                await connection.exec_driver_sql("BEGIN IMMEDIATE")
            await connection.rollback()
    except (SQLAlchemyError, OSError) as error:
        cause = getattr(error, "orig", None) or error
        return failed(
            "database-writable",
            f"it cannot be written: {cause}",
            "a full or read-only disk, a standby, a file of another user, or a lock that is held for long",
        )
    return ok("database-writable", "it can be written")
