"""Key work on a server."""

from datetime import datetime, timedelta

from kms.administration.office import Json
from kms.ledger.entries import timestamp
from kms.operators import Actor
from kms.remote_office.connection import Connection
from kms.remote_office.policies import whole_seconds


class RemoteKeys:
    """Implements `kms.administration.office.KeyWork`; see there."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def keys(self, _: Actor) -> Json:
        """Give the epochs and the generations of the identity."""
        return await self._connection.get("/v1/keys")

    async def rotate(self, _: Actor, *, at: datetime | None) -> Json:
        """Make the next epoch."""
        return await self._connection.post("/v1/keys/rotate", {"at": None if at is None else timestamp(at)})

    async def retire(self, _: Actor, epoch: int, *, seen_within: timedelta, force: bool) -> Json:
        """Give keys of an epoch to nobody any more."""
        body = {"seen_within_seconds": whole_seconds(seen_within), "force": force}
        return await self._connection.post(f"/v1/keys/epochs/{epoch}/retire", body)

    async def rotation(self, _: Actor, *, app: str | None, since: timedelta) -> Json:
        """Say which epochs guests took."""
        query = {"app": app, "since_seconds": whole_seconds(since)}
        return await self._connection.get("/v1/keys/rotation", query)

    async def rotate_identity(self, _: Actor) -> Json:
        """Make the next generation of the identity."""
        return await self._connection.post("/v1/keys/identity", {})
