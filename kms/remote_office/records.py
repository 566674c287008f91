"""The record, evidence and images on a server."""

from datetime import datetime
from urllib.parse import quote

from kms.administration.office import Json
from kms.encoding import b64url
from kms.ledger.entries import timestamp
from kms.operator_ports import RecordFilter
from kms.operators import Actor
from kms.remote_office.connection import Connection
from kms.strict_json import JsonValue


class RemoteRecords:
    """Implements `kms.administration.office.RecordWork`; see there."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def releases(self, _: Actor, wanted: RecordFilter, *, limit: int) -> Json:
        """Give decisions, newest first."""
        query = {
            "since": _time(wanted.since),
            "until": _time(wanted.until),
            "app": wanted.app,
            "image": wanted.image,
            "chip": wanted.chip,
            "outcome": wanted.outcome,
            "code": wanted.code,
            "before": wanted.before,
            "limit": limit,
        }
        return await self._connection.get("/v1/releases", query)

    async def release(self, _: Actor, release_id: str) -> Json:
        """Give one recorded decision."""
        return await self._connection.get(f"/v1/releases/{quote(release_id, safe='')}")

    async def explain(self, _: Actor, release_id: str) -> Json:
        """Explain a recorded decision."""
        return await self._connection.get(f"/v1/releases/{quote(release_id, safe='')}/explanation")

    async def verify(
        self, _: Actor, evidence: JsonValue, *, request: bytes | None, at: datetime | None
    ) -> Json:
        """Judge evidence."""
        body = {
            "evidence": evidence,
            "request": None if request is None else b64url(request),
            "at": _time(at),
        }
        return await self._connection.post("/v1/verifications", body)


class RemoteImages:
    """Implements `kms.administration.office.ImageWork`; see there."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def images(self, _: Actor, *, after: str | None, limit: int) -> Json:
        """Give the images."""
        return await self._connection.get("/v1/images", {"after": after, "limit": limit})

    async def measurements(self, _: Actor, name: str, *, after: str | None, limit: int) -> Json:
        """Give an image's measurements."""
        path = f"/v1/images/{quote(name, safe='')}/measurements"
        return await self._connection.get(path, {"after": after, "limit": limit})


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else timestamp(moment)
