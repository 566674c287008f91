"""Bringing the database to the schema of this code, on start."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, inspect, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from kms.database.dialect import is_postgresql, triggers_and_views
from kms.database.engine import migrating
from kms.database.schema import installation
from kms.errors import ConfigurationError, LedgerUnavailable

_VERSION_TABLE = "alembic_version"


async def migrate(engine: AsyncEngine, scripts: Path) -> None:
    """Apply the migrations in `scripts` that the database does not have yet, all of them or none.

    One transaction that holds the write lock looks and migrates, so that of two servers that start at once
    the second finds what the first has done.

    Raises:
        ConfigurationError: the database is newer than this code, or is not one of ours; it is unchanged.

    """
    directory = ScriptDirectory(str(scripts))
    known = {script.revision for script in directory.walk_revisions()}
    try:
        async with migrating(engine) as connection:
            tables = set(await connection.run_sync(lambda sync: inspect(sync).get_table_names()))
            found = await connection.run_sync(_versions) if _VERSION_TABLE in tables else set()
            if not found <= known:
                raise ConfigurationError(
                    f"the database has schema {', '.join(sorted(found - known))}, "
                    "newer than this version knows",
                    remedy="run the version of attested-kms that wrote it, or a later one; "
                    "nothing was changed",
                )
            # Other software numbers its migrations 0001 too: the tables tell whose database it is.
            ours = installation.name in tables if found else tables <= {_VERSION_TABLE}
            if not ours:
                raise ConfigurationError(
                    "the database belongs to other software",
                    remedy="set KMS_DATABASE_URL to a database of attested-kms, or to a new file; "
                    "nothing was changed",
                )
            if is_postgresql(connection):
                await _require_unicode(connection)
            if foreign := await connection.run_sync(triggers_and_views):
                raise ConfigurationError(
                    f"the database does things of its own: {', '.join(foreign)}",
                    remedy="drop these triggers and views, and find out who made them; nothing was changed",
                )
            if found != set(directory.get_heads()):
                await connection.run_sync(_upgrade, scripts)
    except LedgerUnavailable as error:
        raise ConfigurationError(
            f"the database cannot be opened or migrated: {error.detail}",
            remedy="is it a database of attested-kms, on a disk that can be written, with space left?",
        ) from error
    except CommandError as error:
        raise ConfigurationError(f"the database cannot be migrated: {error}") from error


async def _require_unicode(connection: AsyncConnection) -> None:
    encoding = (await connection.execute(text("SHOW server_encoding"))).scalar_one()
    if encoding != "UTF8":
        raise ConfigurationError(
            f"the database keeps texts in the encoding {encoding}, which has not all characters",
            remedy="make it anew: CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0",
        )


def _versions(connection: Connection) -> set[str]:
    return {row[0] for row in connection.execute(text(f"SELECT version_num FROM {_VERSION_TABLE}"))}  # noqa: S608


def _upgrade(connection: Connection, scripts: Path) -> None:
    config = Config()
    config.set_main_option("script_location", str(scripts))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
