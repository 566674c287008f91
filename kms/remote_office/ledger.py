"""The ledger on a server."""

from urllib.parse import quote

from kms.administration.office import Json
from kms.operators import Actor
from kms.remote_office.connection import Connection
from kms.remote_office.errors import AnswerRejected


class RemoteLedger:
    """Implements `kms.administration.office.LedgerWork`; see there."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def entries(self, _: Actor, *, start: int, limit: int, kind: str | None) -> Json:
        """Give entries from an index on."""
        query = {"from": start, "limit": limit, "kind": kind}
        return await self._connection.get("/v1/ledger/entries", query)

    async def entry(self, _: Actor, which: int | str) -> Json:
        """Give one entry."""
        return await self._connection.get(f"/v1/ledger/entries/{quote(str(which), safe='')}")

    async def statement(self, _: Actor) -> Json:
        """Give the ledger's key."""
        return await self._connection.get("/v1/ledger")

    async def checkpoint(self, _: Actor) -> str:
        """Give the newest checkpoint."""
        answer = await self._connection.ask_bytes("GET", "/ledger/checkpoint")
        try:
            return answer.decode("utf-8")
        except UnicodeDecodeError:
            raise AnswerRejected("the checkpoint is not text") from None

    async def proof(self, _: Actor, release_id: str) -> Json:
        """Prove that a release is in the ledger."""
        return await self._connection.get(f"/v1/ledger/proofs/{quote(release_id, safe='')}")
