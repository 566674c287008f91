"""What is published of an app's keys, for anybody who asks."""

import re
from collections.abc import Awaitable, Callable
from typing import Final, cast

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from kms.http import examples
from kms.http.limits import InFlight
from kms.http.parameters import Parameter, read_path, read_query
from kms.http.schemas import SignedBody, problem_responses
from kms.identifiers import AppId
from kms.keys.signed import Signed
from kms.publishing import PublishedKeys

_EPOCH: Final = re.compile(r"[1-9][0-9]{0,14}")  # below 2^53
# Answers come from memory but for the first of an app. While the root or the database is slow, strangers
# that wait for it wait for each other, not guests for them.
_MOST_AT_ONCE: Final = 64


def _epoch(text: str) -> int:
    if not _EPOCH.fullmatch(text):
        raise ValueError("must be a number, 1 or more")
    return int(text)


APP_ID: Final[Parameter[AppId]] = Parameter(
    name="app_id",
    read=AppId.from_hex,
    description="the app's id, hex",
    schema={"type": "string", "pattern": "^([0-9a-f]{40}|[0-9a-f]{64})$"},
    example=examples.APP_ID,
)
EPOCH: Final[Parameter[int | None]] = Parameter(
    name="epoch",
    read=_epoch,
    default=None,
    description="a key epoch; absent: the one that the app's guests get",
    schema={"type": "integer", "minimum": 1},
    example=1,
)


def app_routes(keys: PublishedKeys) -> APIRouter:
    """Make the routes that publish apps' keys."""
    router = APIRouter()
    in_flight = InFlight(_MOST_AT_ONCE)

    def publish(
        path: str, give: Callable[[AppId, int | None], Awaitable[Signed]], *, summary: str, description: str
    ) -> None:
        async def endpoint(request: Request) -> Response:
            values = read_path((APP_ID,), request) | read_query((EPOCH,), request)
            with in_flight.place():
                signed = await give(cast("AppId", values[APP_ID]), cast("int | None", values[EPOCH]))
            # Dated, and gone when the app is revoked: nobody may keep it.
            return JSONResponse(signed.to_json(), headers={"Cache-Control": "no-store"})

        router.add_api_route(
            path,
            endpoint,
            methods=["GET"],
            name=give.__name__,
            response_model=SignedBody,
            responses=problem_responses(400, 404, 429, 503),
            summary=summary,
            description=description,
            openapi_extra={"parameters": [APP_ID.describe("path"), EPOCH.describe("query")]},
        )

    publish(
        "/v1/apps/{app_id}/env-key",
        keys.env_key,
        summary="The public key to seal an app's environment to",
        description="Signed by the KMS identity and dated. `kms env seal` asks this.",
    )
    publish(
        "/v1/apps/{app_id}/signing-key",
        keys.signing_key,
        summary="The public key that an app signs with",
        description="The KMS identity's statement, as the app's guests get it with their key.",
    )
    return router
