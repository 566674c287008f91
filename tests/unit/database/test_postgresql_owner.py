"""PostgreSQL: what other schemas, settings of the database and roles without rights can do to us."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import insert, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from kms.database.dialect import triggers_and_views
from kms.database.engine import open_engine, reading, writing
from kms.database.schema import installation
from tests.servers.postgresql import PostgresServer
from tests.unit.database.conftest import OpenAnother
from tests.unit.database.dialects import ON_POSTGRESQL, make_trigger
from tests.unit.database.ledger_room import LedgerRoom
from tests.world import NOW

pytestmark = ON_POSTGRESQL


@pytest.fixture
async def room(engine: AsyncEngine, tmp_path: Path) -> LedgerRoom:
    async with writing(engine) as connection:  # the row that every server makes at its start
        row = {"id": 1, "mode": "development", "created_at": "2026-01-01T00:00:00Z"}
        await connection.execute(insert(installation).values(row))
    return LedgerRoom(engine, tmp_path)


async def own_doings(engine: AsyncEngine) -> list[str]:
    async with reading(engine) as connection:
        return await connection.run_sync(triggers_and_views)


async def test_a_schema_of_the_users_name_hides_no_trigger(
    room: LedgerRoom, open_another: OpenAnother
) -> None:
    await make_trigger(room.engine, "BEFORE UPDATE ON public.active_policy", None)
    await room.by_hand("CREATE SCHEMA kms")
    await room.by_hand("CREATE TABLE kms.entries (LIKE public.entries)")
    assert await own_doings(open_another()) == ["trigger t"]
    await room.record(0)
    assert await room.rows("SELECT count(*) AS found FROM public.entries") == [{"found": 1}]


async def test_child_tables_are_named(room: LedgerRoom) -> None:
    assert await own_doings(room.engine) == []
    await room.by_hand("CREATE SCHEMA evil")
    await room.by_hand("CREATE TABLE evil.more () INHERITS (public.entries)")
    assert await own_doings(room.engine) == ["child table more"]


async def test_a_table_in_parts_is_none_of_ours(room: LedgerRoom) -> None:
    await room.by_hand("DROP TABLE rate_takings")
    await room.by_hand("CREATE TABLE rate_takings (server text) PARTITION BY LIST (server)")
    assert await own_doings(room.engine) == ["no table of this database's own: rate_takings"]


async def test_a_search_path_of_the_database_overrides_no_lock(
    room: LedgerRoom, open_another: OpenAnother, database_url: str
) -> None:
    await room.by_hand("CREATE SCHEMA evil")
    for name in ("pg_advisory_xact_lock", "pg_try_advisory_xact_lock"):
        await room.by_hand(
            f"CREATE FUNCTION evil.{name}(int, int) RETURNS boolean LANGUAGE sql AS 'SELECT true'"
        )
    await room.by_hand("CREATE TABLE evil.installation (LIKE public.installation)")
    database = database_url.rsplit("/", 1)[1]
    await room.by_hand(f'ALTER DATABASE "{database}" SET search_path = evil, public, pg_catalog')
    first, second = LedgerRoom(open_another(), Path()), open_another()
    async with writing(first.engine):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5), writing(second):
                pass
    async with reading(second) as connection:
        shown = (await connection.execute(text("SHOW search_path"))).scalar()
    assert shown == "public, pg_temp"


@asynccontextmanager
async def stranger(
    postgresql: PostgresServer, database_url: str, *, lock: int
) -> AsyncIterator[AsyncConnection]:
    """Connect as a role without any right, and take an advisory lock for good."""
    postgresql.sql("DROP ROLE IF EXISTS stranger", database="postgres")
    postgresql.sql("CREATE ROLE stranger LOGIN", database="postgres")
    engine = open_engine(database_url.replace("kms@", "stranger@"))
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        right = text("SELECT has_table_privilege('installation', 'SELECT')")
        assert (await connection.execute(right)).scalar() is False
        await connection.execute(text(f"SELECT pg_advisory_lock(1263358769, {lock})"))
        yield connection
    await engine.dispose()


async def test_a_role_without_rights_stops_no_writer(
    room: LedgerRoom, postgresql: PostgresServer, database_url: str
) -> None:
    async with stranger(postgresql, database_url, lock=1):
        async with asyncio.timeout(2):
            await room.record(0)
    assert (await room.sequence()).taken == 1


async def test_a_role_without_rights_stops_the_sequencing_for_seconds(
    room: LedgerRoom, postgresql: PostgresServer, database_url: str
) -> None:
    clock = [NOW]
    room.sequencer._clock = lambda: clock[0]
    async with stranger(postgresql, database_url, lock=2):
        await room.record(0, 2)
        assert (await room.round()).taken == 0
        clock[0] += timedelta(seconds=4)
        assert (await room.round()).taken == 0
        clock[0] += timedelta(seconds=1)
        assert (await room.round()).taken == 2
        # What comes next is waited for anew.
        await room.record(2)
        assert (await room.round()).taken == 0
