"""Fixtures of real servers, one for each test process."""

import asyncio
from collections.abc import Iterator

import pytest

from kms.database.engine import open_engine
from kms.database.migrate import migrate
from kms.packaged import packaged_folder
from tests.servers.postgresql import PostgresServer
from tests.servers.vault import VaultServer


@pytest.fixture(scope="session")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VaultServer]:
    """A Vault, unsealed. A test that seals or stops it leaves it as it was."""
    server = VaultServer(tmp_path_factory.mktemp("vault"))
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresServer]:
    """A PostgreSQL for databases that live for one test. A test that stops it has one of its own."""
    with PostgresServer(fsync=False) as server:
        yield server


@pytest.fixture(scope="session")
def postgresql_template(postgresql: PostgresServer) -> str:
    """The name of a database with the schema of the code, that others are copies of."""

    async def make(url: str) -> None:
        engine = open_engine(url)
        await migrate(engine, packaged_folder("migrations"))
        await engine.dispose()

    name = "migrated"
    asyncio.run(make(postgresql.create_database(name)))
    return name


@pytest.fixture
def postgresql_url(postgresql: PostgresServer, postgresql_template: str) -> Iterator[str]:
    """The URL of a new database with the schema of the code."""
    with postgresql.fresh_database(postgresql_template) as url:
        yield url
