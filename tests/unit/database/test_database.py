"""The schema, its migrations, and the marks of an installation, on a real SQLite file."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from kms.database.engine import SQLITE_FILE, open_engine, reading, sqlite_url, writing
from kms.database.installation import Installation
from kms.database.migrate import migrate
from kms.database.schema import metadata
from kms.errors import ConfigurationError, LedgerUnavailable
from kms.keys.root_messages import Mode
from kms.packaged import packaged_folder
from tests.world import NOW

SCRIPTS = packaged_folder("migrations")


@pytest.fixture
async def empty(tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    engine = open_engine(sqlite_url(tmp_path))
    yield engine
    await engine.dispose()


@pytest.fixture
async def engine(empty: AsyncEngine) -> AsyncEngine:
    await migrate(empty, SCRIPTS)
    return empty


class TestMigrations:
    async def test_the_migrated_schema_is_the_one_of_the_code(self, engine: AsyncEngine) -> None:
        def differences(connection: Connection) -> list[object]:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            return list(compare_metadata(context, metadata))

        async with engine.connect() as connection:
            assert await connection.run_sync(differences) == []

    async def test_migrating_twice_changes_nothing(self, engine: AsyncEngine) -> None:
        await Installation(engine, lambda: NOW).mark(Mode.PRODUCTION)
        await migrate(engine, SCRIPTS)
        await Installation(engine, lambda: NOW).mark(Mode.PRODUCTION)

    async def test_up_and_down_and_up(self, engine: AsyncEngine) -> None:
        def down(connection: Connection) -> list[str]:
            config = Config()
            config.set_main_option("script_location", str(SCRIPTS))
            config.attributes["connection"] = connection
            command.downgrade(config, "base")
            return sorted(inspect(connection).get_table_names())

        async with engine.connect() as connection:
            assert await connection.run_sync(down) == ["alembic_version"]
        await migrate(engine, SCRIPTS)
        async with engine.connect() as connection:
            tables = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
        assert set(tables) == {*metadata.tables, "alembic_version"}

    async def test_a_newer_database_is_refused_and_left_alone(self, engine: AsyncEngine) -> None:
        async with engine.begin() as connection:
            await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        with pytest.raises(ConfigurationError, match="newer") as refused:
            await migrate(engine, SCRIPTS)
        assert "9999" in refused.value.detail
        assert refused.value.remedy

    @pytest.mark.parametrize(
        "statements",
        [
            ["CREATE TABLE customers (id INTEGER)"],
            # Other software numbers its migrations from 0001 too.
            [
                "CREATE TABLE customers (id INTEGER)",
                "CREATE TABLE alembic_version (version_num VARCHAR(32))",
                "INSERT INTO alembic_version VALUES ('0001')",
            ],
            ["CREATE TABLE customers (id INTEGER)", "CREATE TABLE alembic_version (version_num VARCHAR(32))"],
        ],
    )
    async def test_the_database_of_other_software_is_refused_and_left_alone(
        self, empty: AsyncEngine, statements: list[str]
    ) -> None:
        async with empty.begin() as connection:
            for statement in statements:
                await connection.execute(text(statement))
        with pytest.raises(ConfigurationError, match="other software"):
            await migrate(empty, SCRIPTS)
        async with empty.connect() as connection:
            tables = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
        assert set(tables) <= {"customers", "alembic_version"}

    async def test_two_that_migrate_at_once_both_find_it_done(self, tmp_path: Path) -> None:
        engines = [open_engine(sqlite_url(tmp_path)) for _ in range(4)]
        await asyncio.gather(*(migrate(engine, SCRIPTS) for engine in engines))
        for engine in engines:
            await engine.dispose()

    async def test_a_file_that_is_no_database(self, tmp_path: Path) -> None:
        (tmp_path / SQLITE_FILE).write_bytes(b"not a database, but long enough to look at" * 100)
        engine = open_engine(sqlite_url(tmp_path))
        with pytest.raises(ConfigurationError, match="cannot be opened or migrated"):
            await migrate(engine, SCRIPTS)
        await engine.dispose()


class TestEngine:
    @pytest.mark.parametrize(
        "url", ["", "nonsense", "mysql://x/y", "sqlite:///x", "postgresql+asyncpg://h/d"]
    )
    def test_other_databases_are_not_promised(self, url: str) -> None:
        with pytest.raises(ConfigurationError):
            open_engine(url)

    @pytest.mark.parametrize(
        "url",
        [
            "sqlite+aiosqlite://",
            "sqlite+aiosqlite:///",
            "sqlite+aiosqlite:///:memory:",
            "sqlite+aiosqlite:///file:x?mode=memory&uri=true",
            "sqlite+aiosqlite:///file:x",
            "sqlite+aiosqlite:////tmp/x?nolock=1",
        ],
    )
    def test_a_record_in_memory_is_refused(self, url: str) -> None:
        with pytest.raises(ConfigurationError, match="names no file"):
            open_engine(url)

    async def test_a_commit_is_durable_and_waits_for_others(self, engine: AsyncEngine) -> None:
        async with reading(engine) as connection:
            for pragma, value in (
                ("journal_mode", "wal"),
                ("synchronous", 2),
                ("foreign_keys", 1),
                ("busy_timeout", 10000),
            ):
                assert (await connection.execute(text(f"PRAGMA {pragma}"))).scalar_one() == value

    async def test_a_transaction_that_fails_leaves_no_trace(self, engine: AsyncEngine) -> None:
        insert = text("INSERT INTO spent_challenges (challenge, expires_at) VALUES (:challenge, 1)")

        async def spend_twice() -> None:
            async with writing(engine) as connection:
                await connection.execute(insert, {"challenge": b"a"})
                await connection.execute(insert, {"challenge": b"a"})

        with pytest.raises(LedgerUnavailable):
            await spend_twice()
        async with reading(engine) as connection:
            count = await connection.execute(text("SELECT count(*) FROM spent_challenges"))
            assert count.scalar_one() == 0

    @pytest.mark.parametrize("table", ["installation", "active_policy"])
    async def test_what_is_one_row_stays_one_row(self, engine: AsyncEngine, table: str) -> None:
        columns = {
            "installation": "(id, mode, created_at) VALUES (2, 'x', 'x')",
            "active_policy": "(id, revision, sequence) VALUES (2, 'x', 1)",
        }[table]
        with pytest.raises(IntegrityError):
            async with engine.begin() as connection:
                await connection.execute(text(f"INSERT INTO {table} {columns}"))


class TestInstallation:
    @pytest.mark.parametrize("mode", list(Mode))
    async def test_lesson_38_a_mark_is_made_once_and_holds(self, engine: AsyncEngine, mode: Mode) -> None:
        installation = Installation(engine, lambda: NOW)
        await installation.mark(mode)
        await installation.mark(mode)
        [other] = set(Mode) - {mode}
        with pytest.raises(ConfigurationError, match=f"made for {mode.value} mode"):
            await installation.mark(other)

    async def test_check_values_are_remembered_and_never_replaced(self, engine: AsyncEngine) -> None:
        installation = Installation(engine, lambda: NOW)
        assert await installation.check_values() == {}
        await installation.remember_check_values({1: b"a" * 32, 2: b"b" * 32})
        with pytest.raises(ConfigurationError, match="another root key"):
            await installation.remember_check_values({3: b"c" * 32, 1: b"x" * 32})
        assert await installation.check_values() == {1: b"a" * 32, 2: b"b" * 32}
