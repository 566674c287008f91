"""Opens a server's office."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import httpx2

from kms.administration.office import Json, Office
from kms.operators import Actor, Role
from kms.remote_office.connection import Connection
from kms.remote_office.keys import RemoteKeys
from kms.remote_office.ledger import RemoteLedger
from kms.remote_office.policies import RemotePolicies, whole_seconds
from kms.remote_office.records import RemoteImages, RemoteRecords


@asynccontextmanager
async def open_remote(
    url: str, *, token: str, ca: Path | None, transport: httpx2.AsyncBaseTransport | None = None
) -> AsyncIterator[Office]:
    """Open the office of the server at `url` (``https://HOST:PORT``), as whoever the token is of.

    The `Actor` that an office's methods take is not looked at here: the server decides who asks. `ca` is the
    PEM file of the only CA that may speak for the server; None: the system's CAs. `transport` is for tests.
    What each method raises is what it raises on the server, and what `Connection.ask` says.

    Raises:
        ConfigurationError: the address is not HTTPS, or the CA file or the token cannot be used.

    """
    async with Connection(url, token=token, ca=ca, transport=transport) as connection:
        yield Office(
            policies=RemotePolicies(connection),
            records=RemoteRecords(connection),
            images=RemoteImages(connection),
            operators=RemoteOperators(connection),
            keys=RemoteKeys(connection),
            ledger=RemoteLedger(connection),
        )


class RemoteOperators:
    """Implements `kms.administration.office.OperatorWork`; see there."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def operators(self, _: Actor, *, after: str | None, limit: int) -> Json:
        """Give the operators."""
        return await self._connection.get("/v1/operators", {"after": after, "limit": limit})

    async def add(
        self, _: Actor, name: str, role: Role, *, life: timedelta | None, subject: str | None
    ) -> Json:
        """Add an operator."""
        body = {
            "name": name,
            "role": role.value,
            "life_seconds": None if life is None else whole_seconds(life),
            "subject": subject,
        }
        return await self._connection.post("/v1/operators", body)

    async def revoke(self, _: Actor, name: str) -> Json:
        """End an operator's access."""
        return await self._connection.ask("DELETE", f"/v1/operators/{quote(name, safe='')}")

    async def actions(self, _: Actor, *, before: str | None, limit: int) -> Json:
        """Give what operators did."""
        return await self._connection.get("/v1/operators/actions", {"before": before, "limit": limit})
