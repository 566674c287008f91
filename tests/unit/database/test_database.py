"""How the databases are opened and written, and the marks of an installation."""

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from kms.database.engine import open_engine, reading, writing
from kms.database.installation import Installation
from kms.errors import ConfigurationError, LedgerUnavailable
from kms.keys.root_messages import Mode
from kms.packaged import packaged_folder
from tests.unit.database.dialects import ON_SQLITE
from tests.world import NOW

SCRIPTS = packaged_folder("migrations")


class TestEngine:
    @pytest.mark.parametrize(
        "url", ["", "nonsense", "mysql://x/y", "sqlite:///x", "postgresql://h/d", "postgresql+asyncpg://h"]
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

    @ON_SQLITE
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
