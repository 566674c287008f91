"""Fixtures of real servers, one for each test process."""

from collections.abc import Iterator

import pytest

from tests.servers.vault import VaultServer


@pytest.fixture(scope="session")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VaultServer]:
    """A Vault, unsealed. A test that seals or stops it leaves it as it was."""
    server = VaultServer(tmp_path_factory.mktemp("vault"))
    try:
        yield server
    finally:
        server.stop()
