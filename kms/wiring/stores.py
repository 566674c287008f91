"""The opened database, and what everything is made with: clock and ids."""

import os
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy.ext.asyncio import AsyncEngine

from kms.database.collateral import CollateralDatabase
from kms.database.engine import open_engine
from kms.database.installation import Installation
from kms.database.migrate import migrate
from kms.keys.root_messages import Mode
from kms.packaged import packaged_folder
from kms.preflight import checked_database_url
from kms.settings import Settings
from kms.start_lock import alone_in


def utc_now() -> datetime:
    """Give the server's clock."""
    return datetime.now(UTC)


def new_id() -> str:
    """Give a release or request id: 32 hex digits that sort by time (RFC 9562 section 5.7, version 7)."""
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds << 80) | secrets.randbits(80)
    value = value & ~(0xF << 76) | (0x7 << 76)
    value = value & ~(0x3 << 62) | (0x2 << 62)
    return f"{value:032x}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """The opened database, for the server and for commands that change its state."""

    engine: AsyncEngine
    installation: Installation
    collateral: CollateralDatabase


def mode_of(settings: Settings) -> Mode:
    """Give the mode that roots and databases are marked with."""
    return Mode.DEVELOPMENT if settings.development else Mode.PRODUCTION


@asynccontextmanager
async def open_stores(settings: Settings) -> AsyncIterator[Stores]:
    """Make the data folder, open the database, bring it to this version, and check its mark.

    Raises:
        ConfigurationError: any of it cannot be done; nothing was changed that must not be.

    """
    url = checked_database_url(settings)
    keep_files_private()
    async with AsyncExitStack() as stack:
        async with alone_in(settings.data_dir):
            stores = await open_stores_in(url, settings, stack)
        yield stores


async def open_stores_in(url: str, settings: Settings, stack: AsyncExitStack) -> Stores:
    """Open the database until the stack closes; the caller holds the start lock."""
    engine = open_engine(url)
    stack.push_async_callback(engine.dispose)
    await migrate(engine, packaged_folder("migrations"))
    stores = Stores(
        engine=engine,
        installation=Installation(engine, utc_now),
        collateral=CollateralDatabase(engine, utc_now),
    )
    await stores.installation.mark(mode_of(settings))
    return stores


def keep_files_private() -> None:
    """Let nobody else read what this process writes."""
    # The database holds the audit record; SQLite creates its files with the process's umask.
    os.umask(0o077)
