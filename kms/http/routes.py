"""The guests' routes, health, and the documents about them."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from kms import __version__
from kms.desk import ReleaseDesk
from kms.encoding import b64url
from kms.http.app_routes import app_routes
from kms.http.ca_routes import ca_routes
from kms.http.hot_routes import NO_STORE, ReleaseEndpoints
from kms.http.problems import problem
from kms.http.schemas import (
    ChallengeAnswer,
    IdentityAnswer,
    ReadyAnswer,
    ReleaseAnswer,
    problem_responses,
)
from kms.http.shared_work import SharedWork
from kms.publishing import PublishedKeys, derive_public_halves

# Apps in epochs, some 1500 bytes each. Only what the policy lists gets in, so that strangers cannot push it
# out: as long as there are fewer, each asks the root once.
_MOST_PUBLISHED: Final = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """What `/readyz` asks: each named reason that keeps the server from serving."""

    reasons: Callable[[], Awaitable[tuple[str, ...]]]


def guest_routes(
    desk: ReleaseDesk, endpoints: ReleaseEndpoints, readiness: Readiness, tls_ca: str | None
) -> APIRouter:
    """Make the routes that a guest or anybody may ask."""
    router = APIRouter()
    published = PublishedKeys(desk, SharedWork(partial(derive_public_halves, desk), most=_MOST_PUBLISHED))
    router.include_router(app_routes(published))
    router.include_router(ca_routes(published, desk.apps_ca))

    @router.post(
        "/v1/challenges",
        status_code=201,
        response_model=ChallengeAnswer,
        responses=problem_responses(429, 503),
        summary="Get a challenge",
        description="Any body is ignored. The server keeps nothing of a challenge until it is spent.",
    )
    async def challenges(request: Request) -> Response:
        return await endpoints.challenges(request)

    @router.post(
        "/v1/releases",
        response_model=ReleaseAnswer,
        responses=problem_responses(400, 403, 409, 410, 413, 415, 429, 503),
        summary="Prove what you are and get your keys",
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ReleaseBody"}}},
            }
        },
    )
    async def releases(request: Request) -> Response:
        return await endpoints.releases(request)

    @router.get(
        "/v1/identity",
        response_model=IdentityAnswer,
        responses=problem_responses(429, 503),
        summary="Who this KMS is",
    )
    async def identity() -> Response:
        epochs = await desk.epochs.epochs()
        body = {
            "identity": b64url(desk.identity.public_key),
            "previous": [each.to_json() for each in (await desk.identities.known()).hand_overs],
            "tls_ca": tls_ca,
            "epochs": list(epochs.available(desk.clock())),
            "version": __version__,
            "development": desk.development,
        }
        return JSONResponse(body)

    @router.get("/healthz", summary="The process lives")
    async def healthz() -> Response:
        return JSONResponse({"status": "alive"})

    @router.get(
        "/readyz",
        response_model=ReadyAnswer,
        responses=problem_responses(503),
        summary="The server can release keys, or the named reasons why not",
    )
    async def readyz(request: Request) -> Response:
        reasons = await readiness.reasons()
        if reasons:
            return problem("not-ready", request.state.request_id, reasons=reasons)
        return JSONResponse({"status": "ready", "development": desk.development}, headers=NO_STORE)

    return router
