"""What the two databases say differently."""

from typing import Final

from sqlalchemy import Connection, Table, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

POSTGRESQL: Final = "postgresql"

_OWN_DOINGS: Final = {
    "sqlite": "SELECT type AS kind, name FROM sqlite_master WHERE type IN ('trigger', 'view')",
    # Rules rewrite statements (postgresql.org/docs/current/rules.html); each view has one of its own.
    POSTGRESQL: """
        SELECT 'trigger' AS kind, tgname AS name FROM pg_trigger
          JOIN pg_class ON pg_class.oid = tgrelid
          WHERE NOT tgisinternal AND relnamespace = current_schema()::regnamespace
        UNION ALL
        SELECT 'rule or view', relname FROM pg_rewrite
          JOIN pg_class ON pg_class.oid = ev_class
          WHERE relnamespace = current_schema()::regnamespace
        UNION ALL
        -- Row security hides rows, and leaves out those that it hides where others are changed.
        SELECT 'row policy', polname FROM pg_policy
          JOIN pg_class ON pg_class.oid = polrelid
          WHERE relnamespace = current_schema()::regnamespace
    """,
}


def insert_or(connection: AsyncConnection, table: Table) -> "sqlite.Insert | postgresql.Insert":
    """Give an INSERT with ``on_conflict_do_nothing`` and ``on_conflict_do_update``."""
    return postgresql.insert(table) if is_postgresql(connection) else sqlite.insert(table)


def is_postgresql(connection: AsyncConnection) -> bool:
    """Say which of the two it is."""
    return connection.dialect.name == POSTGRESQL


def triggers_and_views(connection: Connection) -> list[str]:
    """Name what no migration makes, and what could undo a revocation while it is written."""
    found = connection.execute(text(_OWN_DOINGS[connection.dialect.name]))
    return [f"{row.kind} {row.name}" for row in found]
