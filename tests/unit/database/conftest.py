"""Every test of a store runs on both databases."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from kms.database import engine as engine_module
from kms.database.engine import SQLITE_FILE, open_engine, sqlite_url
from kms.database.migrate import migrate
from kms.packaged import packaged_folder
from tests.servers.fixtures import postgresql, postgresql_template, postgresql_url
from tests.servers.postgresql import PostgresServer

__all__ = ["postgresql", "postgresql_template", "postgresql_url"]

OpenAnother = Callable[[], AsyncEngine]


@pytest.fixture(autouse=True)
def _transactions_may_take_their_time(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy machine can stand still for longer than a server may, but where that is what is tested."""
    if not getattr(request.module, "STANDING_STILL", False):
        monkeypatch.setitem(engine_module._SESSION, "idle_in_transaction_session_timeout", "60000")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.enable_socket)])
def dialect(request: pytest.FixtureRequest) -> str:
    """Which of the two databases. What is about one alone is marked with `ON_SQLITE` or `ON_POSTGRESQL`."""
    return str(request.param)


@pytest.fixture(scope="session")
def _migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    async def make(folder: Path) -> None:
        engine = open_engine(sqlite_url(folder))
        await migrate(engine, packaged_folder("migrations"))
        await engine.dispose()

    folder = tmp_path_factory.mktemp("migrated")
    asyncio.run(make(folder))
    return folder / SQLITE_FILE


@pytest.fixture
def empty_url(dialect: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """A new database with nothing in it."""
    if dialect == "sqlite":
        yield sqlite_url(tmp_path)
        return
    server: PostgresServer = request.getfixturevalue("postgresql")
    with server.fresh_database() as url:
        yield url


@pytest.fixture
def database_url(dialect: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A new database with the schema of the code."""
    if dialect == "sqlite":
        shutil.copyfile(request.getfixturevalue("_migrated_file"), tmp_path / SQLITE_FILE)
        return sqlite_url(tmp_path)
    return str(request.getfixturevalue("postgresql_url"))


@pytest.fixture
async def open_another(database_url: str) -> AsyncIterator[OpenAnother]:
    """Opens engines on one migrated database; each is what another server process would have."""
    engines: list[AsyncEngine] = []

    def open_one() -> AsyncEngine:
        engines.append(open_engine(database_url))
        return engines[-1]

    yield open_one
    for engine in engines:
        await engine.dispose()


@pytest.fixture
def engine(open_another: OpenAnother) -> AsyncEngine:
    """A server's connections to a migrated database."""
    return open_another()


@pytest.fixture(autouse=True)
def _clocks_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests set the clock of a server, and nobody that of PostgreSQL; test_clocks.py compares them."""
    monkeypatch.setattr("kms.database.decisions._SKEW", timedelta(days=36500))
