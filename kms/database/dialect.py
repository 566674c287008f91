"""What the two databases say differently."""

from typing import Final

from sqlalchemy import Connection, Table, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from kms.database.schema import metadata

POSTGRESQL: Final = "postgresql"

_OWN_DOINGS: Final = {
    "sqlite": "SELECT type AS kind, name FROM sqlite_master WHERE type IN ('trigger', 'view')",
    POSTGRESQL: """
        WITH ours AS (
          SELECT name, pg_catalog.to_regclass(name) AS found
            FROM pg_catalog.unnest(CAST(:tables AS pg_catalog.text[])) AS name
        ),
        relations AS (
          SELECT oid, relname, relkind, relnamespace FROM pg_catalog.pg_class
            WHERE relnamespace = pg_catalog.to_regnamespace('public')
               OR oid IN (SELECT found FROM ours)
        )
        SELECT 'trigger' AS kind, tgname AS name FROM pg_catalog.pg_trigger
          JOIN relations ON relations.oid = tgrelid WHERE NOT tgisinternal
        UNION ALL
        -- Rules rewrite statements (postgresql.org/docs/current/rules.html); each view has one of its own.
        SELECT 'rule or view', relname FROM pg_catalog.pg_rewrite
          JOIN relations ON relations.oid = ev_class
        UNION ALL
        -- Row security hides rows, and leaves out those that it hides where others are changed.
        SELECT 'row policy', polname FROM pg_catalog.pg_policy
          JOIN relations ON relations.oid = polrelid
        UNION ALL
        -- Who reads a table reads those that inherit from it too.
        SELECT 'child table', pg_class.relname FROM pg_catalog.pg_inherits
          JOIN relations ON relations.oid IN (inhparent, inhrelid)
          JOIN pg_catalog.pg_class ON pg_class.oid = inhrelid
        UNION ALL
        -- Another schema's, kept elsewhere (a foreign table), or in parts.
        SELECT 'no table of this database''s own:', name FROM ours
          JOIN relations ON relations.oid = found
          WHERE relkind <> 'r' OR relnamespace <> pg_catalog.to_regnamespace('public')
    """,
}


def insert_or(connection: AsyncConnection | Connection, table: Table) -> "sqlite.Insert | postgresql.Insert":
    """Give an INSERT with ``on_conflict_do_nothing`` and ``on_conflict_do_update``."""
    return postgresql.insert(table) if is_postgresql(connection) else sqlite.insert(table)


def is_postgresql(connection: AsyncConnection | Connection) -> bool:
    """Say which of the two it is."""
    return connection.dialect.name == POSTGRESQL


def triggers_and_views(connection: Connection) -> list[str]:
    """Name what no migration makes, and what could undo a revocation while it is written."""
    query = text(_OWN_DOINGS[connection.dialect.name])
    if is_postgresql(connection):
        query = query.bindparams(tables=[*metadata.tables, "alembic_version"])
    found = connection.execute(query)
    return [f"{row.kind} {row.name}" for row in found]
