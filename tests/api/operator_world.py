"""The real application with an office and an authentication that tests choose, and no guests."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from typing import Any, cast

import httpx2
from fastapi import FastAPI, Request

from kms.administration.office import Json
from kms.desk import ReleaseDesk
from kms.errors import Unauthenticated
from kms.http.app import create_app
from kms.http.limits import AddressLimiter
from kms.http.places import Places
from kms.http.release_gate import BODIES, ReleaseGate
from kms.http.routes import Readiness
from kms.http.shares import Shares
from kms.http.total_limit import TotalLimit
from kms.keys.apps_ca import AppsCa
from kms.ledger_publishing import PublicLedger
from kms.operators import Actor, Proof, Role
from tests.fake_office import FakeOffice

TOKEN = "kms_op_a-token"
ACTOR = Actor(name="alice", role=Role.OPERATOR, proof=Proof.TOKEN, proof_id="5d1f", client="127.0.0.1")


@dataclass
class Desk:
    """Only what the application itself asks of a desk."""

    development: bool = False
    apps_ca: AppsCa = field(default_factory=lambda: AppsCa.from_prf(bytes(64)))


@dataclass
class _Public:
    """What strangers ask of the ledger, answered by the office too; in the place of a `PublicLedger`."""

    fake: FakeOffice

    async def statement(self) -> Json:
        return await self.fake.statement(ACTOR)

    async def checkpoint(self) -> str:
        return await self.fake.checkpoint(ACTOR)

    async def proof(self, release_id: str) -> Json:
        return await self.fake.proof(ACTOR, release_id)


@dataclass
class Operators:
    """The application, the office behind it, and what happened in which order."""

    app: FastAPI
    fake: FakeOffice
    order: list[str]
    client: httpx2.AsyncClient = field(init=False)

    async def ask(
        self, method: str, path: str, *, token: str | None = TOKEN, **options: Any
    ) -> httpx2.Response:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        headers |= options.pop("headers", {})
        return await self.client.request(method, path, headers=headers, **options)


@cache
def _operators() -> Operators:
    """Make the application once: it keeps nothing of a request."""
    fake, order, numbers = FakeOffice(), list[str](), count(1)

    async def authenticate(request: Request) -> Actor:
        order.append("authenticated")
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            raise Unauthenticated("the token of nobody", details={"secret": "nobody's business"})
        return ACTOR

    async def ready() -> tuple[str, ...]:
        return ()

    app = create_app(
        cast("ReleaseDesk", Desk()),
        readiness=Readiness(reasons=ready),
        limiter=AddressLimiter(1_000_000, 1_000_000, lambda: 0.0),
        gate=ReleaseGate(TotalLimit(1_000_000, 1_000_000, lambda: 0.0), Places(1024), Shares(BODIES)),
        new_request_id=lambda: f"{next(numbers):032x}",
        tls_ca=None,
        office=fake.office,
        ledger=cast("PublicLedger", _Public(fake)),
        authenticate=authenticate,
    )
    return Operators(app, fake, order)


@asynccontextmanager
async def open_operators() -> AsyncIterator[Operators]:
    operators = _operators()
    for each in (operators.fake.answers, operators.fake.calls, operators.order):
        each.clear()
    transport = httpx2.ASGITransport(app=operators.app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="https://kms") as client:
        operators.client = client
        yield operators
