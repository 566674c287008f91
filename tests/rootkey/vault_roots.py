"""Opening and making roots in a test's Vault."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Final

import pytest

from kms.errors import RootKeyUnavailable
from kms.keys.root_messages import Mode
from kms.rootkey import RootAccess, RootProvider, create_provider, open_provider
from tests.servers.vault import VaultServer

NOW: Final = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
QUESTION: Final = [b"question"]


async def make(uri: str, access: RootAccess) -> None:
    """Make a root and close it again."""
    root = await create_provider(uri, access, now=NOW, random=os.urandom)
    await root.close()


@asynccontextmanager
async def opened(uri: str, access: RootAccess) -> AsyncIterator[RootProvider]:
    """Open a root as a server does, for a while."""
    root = await open_provider(uri, access)
    root.start()
    try:
        yield root
    finally:
        await root.close()


@asynccontextmanager
async def new_root(
    vault: VaultServer, scheme: str = "vault-transit", access: RootAccess | None = None
) -> AsyncIterator[RootProvider]:
    """Make a root, by a token that may do so, and open it; with `access`, if given."""
    uri = vault.fresh_uri(scheme)
    makers = vault.access(Mode.PRODUCTION)
    await make(uri, makers)
    async with opened(uri, access or makers) as root:
        yield root


async def reason(root: RootProvider, epoch: int = 1) -> str:
    """Ask, and give the reason why there is no answer."""
    with pytest.raises(RootKeyUnavailable) as caught:
        await root.outputs(epoch, QUESTION)
    return caught.value.reason
