"""Tests that are about one of the two databases alone, and what the two say differently in tests."""

from collections.abc import Sequence

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from kms.database.dialect import is_postgresql

_POSTGRESQL = pytest.param("postgresql", marks=pytest.mark.enable_socket)

# SQLite is a file, and keeps a value of any type in any column.
ON_SQLITE = pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
ON_POSTGRESQL = pytest.mark.parametrize("dialect", [_POSTGRESQL], indirect=True)


def values(name: str, on_both: Sequence[object], *, on_sqlite: Sequence[object] = ()) -> pytest.MarkDecorator:
    """Try values on both databases, and those that PostgreSQL does not take on SQLite only."""
    cases = [pytest.param("sqlite", value, id=f"sqlite-{value!r:.40}") for value in (*on_both, *on_sqlite)]
    cases += [
        pytest.param("postgresql", value, marks=pytest.mark.enable_socket, id=f"postgresql-{value!r:.40}")
        for value in on_both
    ]
    return pytest.mark.parametrize(("dialect", name), cases, indirect=["dialect"])


async def make_trigger(engine: AsyncEngine, when: str, statement: str | None) -> None:
    """Make the database do `statement` at each row `when` (``AFTER INSERT ON …``), or lose the row."""
    async with engine.begin() as connection:
        for each in _trigger(connection, when, statement):
            await connection.execute(text(each))


def _trigger(connection: AsyncConnection, when: str, statement: str | None) -> list[str]:
    if not is_postgresql(connection):
        return [f"CREATE TRIGGER t {when} BEGIN {statement or 'SELECT RAISE(IGNORE)'}; END"]
    body = "RETURN NULL" if statement is None else f"{statement}; RETURN NEW"
    return [
        f"CREATE FUNCTION t() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body}; END $$",
        f"CREATE TRIGGER t {when} FOR EACH ROW EXECUTE FUNCTION t()",
    ]
