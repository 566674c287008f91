"""What servers tell each other about heavy networks, chips and apps: `kms.rate_sharing.Takings`."""

from collections.abc import Mapping

from sqlalchemy import and_, delete, insert, or_, select
from sqlalchemy.ext.asyncio import AsyncEngine

from kms.database.engine import reading
from kms.database.schema import rate_takings


class RateTakings:
    """Small statements, each by itself: a row more or less makes no difference, so nothing is locked."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def tell(self, server: str, period: int, taken: Mapping[str, int]) -> None:
        """Write what was taken; see `kms.rate_sharing.Takings.tell`."""
        rows = [
            {"server": server, "bucket": name, "period": period, "taken": tokens}
            for name, tokens in taken.items()
        ]
        async with reading(self._engine) as connection:
            await connection.execute(insert(rate_takings).values(rows))

    async def forget(self, server: str, before: int, *, others_before: int) -> None:
        """Remove what is old; see `kms.rate_sharing.Takings.forget`."""
        table = rate_takings.c
        old = or_(and_(table.server == server, table.period < before), table.period < others_before)
        async with reading(self._engine) as connection:
            await connection.execute(delete(rate_takings).where(old))

    async def told(
        self, server: str, after: Mapping[str, int], *, since: int
    ) -> Mapping[tuple[str, int], Mapping[str, int]]:
        """Give what others have written; see `kms.rate_sharing.Takings.told`."""
        table = rate_takings.c
        query = select(table.server, table.period, table.bucket, table.taken).where(
            table.period >= since,
            table.server != server,
            *(or_(table.server != other, table.period > last) for other, last in after.items()),
        )
        found: dict[tuple[str, int], dict[str, int]] = {}
        async with reading(self._engine) as connection:
            for row in await connection.execute(query):
                found.setdefault((row.server, row.period), {})[row.bucket] = row.taken
        return found
