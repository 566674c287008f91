"""The public routes of the ledger leave the database to those who need keys."""

import asyncio
from typing import cast

import httpx2
import pytest
from fastapi import FastAPI

from kms.http.ledger_routes import ledger_routes
from kms.http.limits import ServerBusy
from kms.ledger_publishing import PublicLedger


class _Slow:
    """A ledger whose database has not answered yet."""

    def __init__(self) -> None:
        self.waiting = 0
        self.answer = asyncio.Event()

    async def checkpoint(self) -> str:
        self.waiting += 1
        await self.answer.wait()
        return "note"


async def test_few_strangers_at_once_have_the_database_and_the_next_is_told_at_once() -> None:
    app, ledger = FastAPI(), _Slow()
    app.include_router(ledger_routes(cast("PublicLedger", ledger)))
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="https://kms") as client:
        strangers = [asyncio.create_task(client.get("/ledger/checkpoint")) for _ in range(4)]
        async with asyncio.timeout(5):
            while ledger.waiting < 4:  # noqa: ASYNC110 -- what is tested has no event for it
                await asyncio.sleep(0.01)
            with pytest.raises(ServerBusy):
                await client.get("/ledger/checkpoint")
        ledger.answer.set()
        assert {each.status_code for each in await asyncio.gather(*strangers)} == {200}
        assert (await client.get("/ledger/checkpoint")).text == "note"
