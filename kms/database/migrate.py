"""Bringing the database to the schema of this code, on start."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from kms.errors import ConfigurationError

_VERSION_TABLE = "alembic_version"


async def migrate(engine: AsyncEngine, scripts: Path) -> None:
    """Apply the migrations in `scripts` that the database does not have yet.

    Raises:
        ConfigurationError: the database is newer than this code, or is not one of ours.

    """
    known = {script.revision for script in ScriptDirectory(str(scripts)).walk_revisions()}
    try:
        async with engine.begin() as connection:
            found = await connection.run_sync(_versions)
        if not found <= known:
            raise ConfigurationError(
                f"the database has schema {', '.join(sorted(found - known))}, newer than this version knows",
                remedy="run the version of attested-kms that wrote it, or a later one; nothing was changed",
            )
        async with engine.connect() as connection:
            await connection.run_sync(_upgrade, scripts)
    except SQLAlchemyError as error:
        # The driver's message may hold the path; the class says what kind of failure it is.
        cause = getattr(error, "orig", None) or error
        raise ConfigurationError(
            f"the database cannot be opened or migrated: {cause}",
            remedy="is it a database of attested-kms, on a disk that can be written, with space left?",
        ) from error
    except CommandError as error:
        raise ConfigurationError(f"the database cannot be migrated: {error}") from error


def _versions(connection: Connection) -> set[str]:
    if not inspect(connection).has_table(_VERSION_TABLE):
        return set()
    return {row[0] for row in connection.execute(text(f"SELECT version_num FROM {_VERSION_TABLE}"))}  # noqa: S608


def _upgrade(connection: Connection, scripts: Path) -> None:
    config = Config()
    config.set_main_option("script_location", str(scripts))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
