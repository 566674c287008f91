"""`/ledger/` and `/v1/ledger`: the ledger as anybody may follow it.

Below `/ledger/` stands what https://c2sp.org/tlog-tiles describes, so that clients of transparency logs can
read it: a checkpoint, tiles of hashes, and bundles of entries, which here are salted digests.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from kms.http.ledger_schemas import LedgerAnswer, ProofAnswer
from kms.http.limits import InFlight
from kms.http.operator_parameters import RELEASE_ID
from kms.http.parameters import read_path, read_query
from kms.http.schemas import problem_responses
from kms.ledger.tiles import TILE_WIDTH, TileInvalid, TileName
from kms.ledger_publishing import PublicLedger
from kms.strict_json import JsonValue

# A proof is some twenty questions to the database, over the ten connections that releases need as well: the
# most that strangers may have of these at once. Who comes then is told to come back.
_MOST_AT_ONCE: Final = 4
_BYTES: Final = "application/octet-stream"
# C2SP: a tile never changes, and a partial one is only ever asked for by its width: it is of no use for long.
_FULL: Final = {"Cache-Control": "public, max-age=31536000, immutable"}
_PARTIAL: Final = {"Cache-Control": "public, max-age=60"}
# Kept by nobody unasked: who follows the log must see where it is now.
_NEWEST: Final = {"Cache-Control": "no-cache"}
_TILE: Final = {
    "name": "tile",
    "in": "path",
    "required": True,
    "description": "a level from 0 to 63 or `entries`, the number in groups of three digits, and for a"
    " partial tile its width: 0/x001/x234/067.p/17",
    "schema": {"type": "string"},
    "example": "0/000.p/17",
}


def ledger_routes(ledger: PublicLedger) -> APIRouter:
    """Make the routes of the ledger that take no credentials."""
    router = APIRouter(tags=["ledger"])
    in_flight = InFlight(_MOST_AT_ONCE)

    @router.get(
        "/ledger/checkpoint",
        response_class=PlainTextResponse,
        responses=problem_responses(400, 404, 429, 503),
        summary="The newest checkpoint of the ledger, a signed note",
        description="A signed note (c2sp.org/signed-note) as c2sp.org/tlog-checkpoint has it.",
    )
    async def checkpoint(request: Request) -> Response:
        read_query((), request)
        with in_flight.place():
            return PlainTextResponse(await ledger.checkpoint(), headers=_NEWEST)

    @router.get(
        "/ledger/tile/{tile:path}",
        response_class=Response,
        responses={200: {"content": {_BYTES: {}}}, **problem_responses(400, 404, 429, 503)},
        summary="A tile of the ledger's tree, or a bundle of its entries' digests",
        description="As c2sp.org/tlog-tiles has it. A tile has one path; every other is not there.",
        openapi_extra={"parameters": [_TILE]},
    )
    async def tile(request: Request) -> Response:
        name = _tile_name(request)
        read_query((), request)
        with in_flight.place():
            body = await ledger.tile(name)
        headers = _FULL if name.width == TILE_WIDTH else _PARTIAL
        return Response(body, media_type=_BYTES, headers=headers)

    def publish(
        path: str,
        answer: type[LedgerAnswer | ProofAnswer],
        give: Callable[[Request], Awaitable[dict[str, JsonValue]]],
        *,
        summary: str,
        description: str,
        parameters: tuple[dict[str, object], ...] = (),
    ) -> None:
        async def endpoint(request: Request) -> Response:
            with in_flight.place():
                return JSONResponse(await give(request), headers=_NEWEST)

        responses: dict[int | str, dict[str, Any]] = {
            200: {"description": "Done", "content": {"application/json": {"example": answer.example}}}
        }
        router.add_api_route(
            path,
            endpoint,
            methods=["GET"],
            name=give.__name__,
            response_model=answer,
            responses=responses | problem_responses(400, 404, 429, 503),
            summary=summary,
            description=description,
            openapi_extra={"parameters": [*parameters]},
        )

    async def statement(request: Request) -> dict[str, JsonValue]:
        read_query((), request)
        return await ledger.statement()

    async def proof(request: Request) -> dict[str, JsonValue]:
        values = read_path((RELEASE_ID,), request)
        read_query((), request)
        return await ledger.proof(cast("str", values[RELEASE_ID]))

    publish(
        "/v1/ledger",
        LedgerAnswer,
        statement,
        summary="The ledger's origin, key and size",
        description="The KMS identity signs the key: who pins the identity need pin nothing else.",
    )
    publish(
        "/v1/ledger/proofs/{release_id}",
        ProofAnswer,
        proof,
        summary="The proof that a release is in the ledger",
        description="While only the receipt promises it: 404 with the reason not-in-a-checkpoint-yet.",
        parameters=(RELEASE_ID.describe("path"),),
    )
    return router


def _tile_name(request: Request) -> TileName:
    """Read a tile's name from the path as it was sent: one with escapes is another text for the same."""
    path = f"tile/{request.path_params['tile']}"
    try:
        name = TileName.parse(path)
    except TileInvalid:
        raise HTTPException(404) from None
    if request.scope.get("raw_path", b"").partition(b"?")[0] != f"/ledger/{path}".encode("ascii"):
        raise HTTPException(404)
    return name
