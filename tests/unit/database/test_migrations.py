"""The schema and the ways to it and back, on both databases, with rows in it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Integer, LargeBinary, MetaData, Table, inspect, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from kms.database import engine as engine_module
from kms.database.engine import SQLITE_FILE, migrating, open_engine, sqlite_url, writing
from kms.database.installation import Installation
from kms.database.migrate import migrate
from kms.database.schema import metadata
from kms.errors import ConfigurationError, LedgerUnavailable
from kms.keys.root_messages import Mode
from kms.packaged import packaged_folder
from tests.servers.postgresql import PostgresServer
from tests.unit.database.dialects import ON_POSTGRESQL, ON_SQLITE, make_trigger
from tests.world import NOW

SCRIPTS = packaged_folder("migrations")
VERSIONS = sorted(script.revision for script in ScriptDirectory(str(SCRIPTS)).walk_revisions())
BEFORE_THE_LEDGER = "0004"
RECORDED = {"decisions": "decision", "operator_actions": "action"}


@pytest.fixture
async def empty(empty_url: str) -> AsyncIterator[AsyncEngine]:
    engine = open_engine(empty_url)
    yield engine
    await engine.dispose()


async def move(engine: AsyncEngine, to: Callable[[Config, str], None], version: str) -> None:
    def run(connection: Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(SCRIPTS))
        config.attributes["connection"] = connection
        to(config, version)

    async with migrating(engine) as connection:
        await connection.run_sync(run)


async def tables_of(engine: AsyncEngine) -> set[str]:
    async with migrating(engine) as connection:
        return set(await connection.run_sync(lambda sync: inspect(sync).get_table_names()))


async def content(engine: AsyncEngine) -> dict[str, list[dict[str, Any]]]:
    """Give every row of every table, in the order of the primary keys."""

    def read(connection: Connection) -> dict[str, list[dict[str, Any]]]:
        found = MetaData()
        found.reflect(connection)
        return {
            name: [dict(row) for row in connection.execute(_ordered(table)).mappings()]
            for name, table in found.tables.items()
        }

    async with migrating(engine) as connection:
        return await connection.run_sync(read)


def _ordered(table: Table) -> Any:
    return select(table).order_by(*table.primary_key.columns)


async def fill(engine: AsyncEngine) -> None:
    """Put two rows into every table that may have them, with a value in every column."""

    def write(connection: Connection) -> None:
        found = MetaData()
        found.reflect(connection)
        for name, table in found.tables.items():
            if name not in {"alembic_version", "entries"}:
                numbers = (1,) if name in {"installation", "active_policy"} else (1, 2)
                connection.execute(table.insert(), [_row(table, number) for number in numbers])
        if "entries" in found.tables:
            # One for each decision and action.
            ids = [
                row["id"]
                for name in RECORDED
                for row in connection.execute(_ordered(found.tables[name])).mappings()
            ]
            rows = [_row(found.tables["entries"], place) | {"id": each} for place, each in enumerate(ids, 1)]
            connection.execute(found.tables["entries"].insert(), rows)

    # Without limits: reading all that there is takes a loaded machine longer than a transaction may idle.
    async with migrating(engine) as connection:
        await connection.run_sync(write)


def _row(table: Table, number: int) -> dict[str, object]:
    return {column.name: _value(column.type, f"{table.name} {column.name}", number) for column in table.c}


def _value(kind: object, name: str, number: int) -> object:
    if isinstance(kind, Integer):
        return number
    if isinstance(kind, LargeBinary):
        return f"{name} {number}".encode()
    length = getattr(kind, "length", None) or 64
    return f"{number} {name}"[:length]


async def test_the_migrated_schema_is_the_one_of_the_code(engine: AsyncEngine) -> None:
    def differences(connection: Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, metadata))

    async with migrating(engine) as connection:
        assert await connection.run_sync(differences) == []


async def test_migrating_twice_changes_nothing(engine: AsyncEngine) -> None:
    await Installation(engine, lambda: NOW).mark(Mode.PRODUCTION)
    before = await content(engine)
    await migrate(engine, SCRIPTS)
    assert await content(engine) == before


async def test_down_to_nothing_and_up(engine: AsyncEngine) -> None:
    await fill(engine)
    await move(engine, command.downgrade, "base")
    assert await tables_of(engine) == {"alembic_version"}
    await migrate(engine, SCRIPTS)
    assert await tables_of(engine) == {*metadata.tables, "alembic_version"}


@pytest.mark.parametrize(("start", "end"), list(permutations(VERSIONS, 2)))
async def test_from_every_version_to_every_other_with_rows_and_back(
    empty: AsyncEngine, start: str, end: str
) -> None:
    await move(empty, command.upgrade, start)
    await fill(empty)
    before = await content(empty)
    there, back = command.upgrade, command.downgrade
    if start > end:
        there, back = back, there
    await move(empty, there, end)
    between = await content(empty)
    assert between["alembic_version"] == [{"version_num": end}]
    # What a version does not change it keeps.
    for name, rows in between.items():
        if name in before and before[name] and rows and before[name][0].keys() == rows[0].keys():
            assert rows == before[name] or name == "alembic_version"
    await move(empty, back, start)
    after = await content(empty)
    assert after["alembic_version"] == [{"version_num": start}]
    assert after.keys() == before.keys()
    assert after["spent_challenges"] == before["spent_challenges"]


async def test_what_was_recorded_before_the_ledger_is_in_it_in_order_and_comes_back(
    empty: AsyncEngine,
) -> None:
    await move(empty, command.upgrade, BEFORE_THE_LEDGER)
    rows = {
        "decisions": [("d2", "2026-01-02"), ("d1", "2026-01-04"), ("d0", "2026-01-04")],
        "operator_actions": [("a2", "2026-01-01"), ("a1", "2026-01-03"), ("a0", "2026-01-03")],
    }
    await _record(empty, rows)
    before = await content(empty)
    await migrate(empty, SCRIPTS)
    recorded = (await content(empty))["entries"]
    assert [(each["place"], each["id"], each["kind"]) for each in recorded] == [
        (1, "a2", "action"),
        (2, "d2", "decision"),
        (3, "a0", "action"),
        (4, "a1", "action"),
        (5, "d0", "decision"),
        (6, "d1", "decision"),
    ]
    by_id = {row["id"]: (RECORDED[name], row["entry"], row["salt"]) for name in rows for row in before[name]}
    assert {each["id"]: (each["kind"], each["entry"], each["salt"]) for each in recorded} == by_id
    # Nobody has sealed them yet: that needs the root key.
    assert {(each["server"], each["mac"]) for each in recorded} == {("", None)}
    await move(empty, command.downgrade, BEFORE_THE_LEDGER)
    assert await content(empty) == {**before, "alembic_version": [{"version_num": BEFORE_THE_LEDGER}]}


async def _record(engine: AsyncEngine, rows: Mapping[str, list[tuple[str, str]]]) -> None:
    def write(connection: Connection) -> None:
        found = MetaData()
        found.reflect(connection)
        for name, recorded in rows.items():
            table = found.tables[name]
            for entry_id, at in recorded:
                row = _row(table, 1) | {"id": entry_id, "decided_at": at, "at": at}
                row |= {"entry": f"entry of {entry_id}".encode(), "salt": f"salt of {entry_id}".encode()}
                columns = {key: value for key, value in row.items() if key in table.c}
                connection.execute(table.insert().values(columns))

    # Without limits: reading all that there is takes a loaded machine longer than a transaction may idle.
    async with migrating(engine) as connection:
        await connection.run_sync(write)


async def test_a_migration_that_fails_leaves_everything_as_it_was(
    empty: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await move(empty, command.upgrade, BEFORE_THE_LEDGER)
    await fill(empty)
    async with empty.begin() as connection:
        # Of two entries of one id only one could move.
        await connection.execute(text("UPDATE operator_actions SET id = 'same' WHERE id LIKE '1%'"))
        await connection.execute(text("UPDATE decisions SET id = 'same' WHERE id LIKE '1%'"))
    before = await content(empty)
    with pytest.raises(ConfigurationError, match="cannot be opened or migrated"):
        await migrate(empty, SCRIPTS)
    assert await content(empty) == before


async def test_several_that_migrate_at_once_all_find_it_done(empty_url: str) -> None:
    engines = [open_engine(empty_url) for _ in range(4)]
    await asyncio.gather(*(migrate(engine, SCRIPTS) for engine in engines))
    assert await tables_of(engines[0]) == {*metadata.tables, "alembic_version"}
    for engine in engines:
        await engine.dispose()


async def test_a_newer_database_is_refused_and_left_alone(engine: AsyncEngine) -> None:
    async with migrating(engine) as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    before = await content(engine)
    with pytest.raises(ConfigurationError, match="newer") as refused:
        await migrate(engine, SCRIPTS)
    assert "9999" in refused.value.detail
    assert refused.value.remedy
    assert await content(engine) == before


VERSION_TABLE = "CREATE TABLE alembic_version (version_num VARCHAR(32))"


@pytest.mark.parametrize(
    "statements",
    [
        [],
        # Other software numbers its migrations from 0001 too.
        [VERSION_TABLE, "INSERT INTO alembic_version VALUES ('0001')"],
        [VERSION_TABLE],
    ],
)
async def test_the_database_of_other_software_is_refused_and_left_alone(
    empty: AsyncEngine, statements: list[str]
) -> None:
    async with empty.begin() as connection:
        for statement in ("CREATE TABLE customers (id INTEGER)", *statements):
            await connection.execute(text(statement))
    with pytest.raises(ConfigurationError, match="other software"):
        await migrate(empty, SCRIPTS)
    assert await tables_of(empty) <= {"customers", "alembic_version"}


@pytest.mark.parametrize("what", ["trigger", "view"])
async def test_a_database_that_does_things_of_its_own_is_refused(engine: AsyncEngine, what: str) -> None:
    if what == "trigger":
        await make_trigger(engine, "BEFORE UPDATE ON operators", None)
    else:
        async with migrating(engine) as connection:
            await connection.execute(text("CREATE VIEW shown AS SELECT * FROM decisions"))
    with pytest.raises(ConfigurationError, match=r"things of its own: .*(t|shown)"):
        await migrate(engine, SCRIPTS)


@ON_POSTGRESQL
@pytest.mark.parametrize(
    "statement",
    [
        "CREATE RULE undo AS ON UPDATE TO operators DO INSTEAD NOTHING",
        "CREATE POLICY undo ON operators USING (revoked_at IS NULL)",
    ],
)
async def test_rules_and_row_policies_are_noticed_too(engine: AsyncEngine, statement: str) -> None:
    async with migrating(engine) as connection:
        await connection.execute(text(statement))
    with pytest.raises(ConfigurationError, match=r"things of its own: .*(undo|operators)"):
        await migrate(engine, SCRIPTS)


@ON_POSTGRESQL
async def test_a_database_that_has_not_all_characters_is_refused(
    dialect: str, postgresql: PostgresServer
) -> None:
    way = "ENCODING 'SQL_ASCII' TEMPLATE template0 LOCALE_PROVIDER libc LOCALE 'C'"
    postgresql.sql(f"CREATE DATABASE old {way}")
    engine = open_engine(postgresql.url_of("old"))
    with pytest.raises(ConfigurationError, match="SQL_ASCII"):
        await migrate(engine, SCRIPTS)
    assert await tables_of(engine) == set()
    await engine.dispose()
    postgresql.drop_database("old")


@ON_POSTGRESQL
async def test_a_migration_may_take_longer_than_a_request(
    empty: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record of years is moved in one statement."""
    monkeypatch.setitem(engine_module._SESSION, "statement_timeout", "200")
    slow = text("SELECT pg_sleep(1)")
    monkeypatch.setattr("kms.database.migrate._upgrade", lambda connection, _: connection.execute(slow))
    await migrate(empty, SCRIPTS)
    with pytest.raises(LedgerUnavailable):
        async with writing(empty) as connection:
            await connection.execute(slow)


@ON_SQLITE
async def test_a_file_that_is_no_database(tmp_path: Path, dialect: str) -> None:
    (tmp_path / SQLITE_FILE).write_bytes(b"not a database, but long enough to look at" * 100)
    engine = open_engine(sqlite_url(tmp_path))
    with pytest.raises(ConfigurationError, match="cannot be opened or migrated"):
        await migrate(engine, SCRIPTS)
    await engine.dispose()
