"""`/v1/ca`: whom to trust in order to trust guests."""

from typing import Any, ClassVar, Final, cast

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from kms.errors import MalformedRequest
from kms.http import app_routes, examples
from kms.http.limits import InFlight
from kms.http.parameters import Parameter, read_query
from kms.http.schemas import Shape, problem_responses
from kms.identifiers import AppId
from kms.keys.apps_ca import AppsCa
from kms.keys.certificates import to_pem
from kms.publishing import PublishedKeys

_MOST_AT_ONCE: Final = 64  # as of the other routes that publish
_APP_ID: Final[Parameter[AppId | None]] = Parameter(
    name="app_id",
    read=AppId.from_hex,
    default=None,
    description="an app's id, hex; absent: only the CA above all apps",
    schema=app_routes.APP_ID.schema,
    example=examples.APP_ID,
)
_PEM: Final = "-----BEGIN CERTIFICATE-----\n…\n-----END CERTIFICATE-----\n"


class CaAnswer(Shape):
    """Certificates of CAs. The last three members are there where an app was named."""

    apps_ca: str = Field(description="PEM; it certifies the CAs of all apps")
    app_id: str | None = None
    epoch: int | None = None
    app_ca: str | None = Field(None, description="PEM; it certifies the guests of this app in this epoch")

    example: ClassVar[dict[str, Any]] = {
        "apps_ca": _PEM,
        "app_id": examples.APP_ID,
        "epoch": 1,
        "app_ca": _PEM,
    }


def ca_routes(keys: PublishedKeys, ca_of_all: AppsCa) -> APIRouter:
    """Make the route that publishes the CAs of apps' certificates."""
    router = APIRouter()
    in_flight = InFlight(_MOST_AT_ONCE)
    apps_ca = to_pem(ca_of_all.certificate)

    @router.get(
        "/v1/ca",
        response_model=CaAnswer,
        responses=problem_responses(400, 404, 429, 503),
        summary="The CAs of apps' certificates",
        description="To accept the guests of one app only, trust its CA alone and not the CA above it.",
        openapi_extra={"parameters": [_APP_ID.describe("query"), app_routes.EPOCH.describe("query")]},
    )
    async def ca(request: Request) -> Response:
        values = read_query((_APP_ID, app_routes.EPOCH), request)
        app_id = cast("AppId | None", values[_APP_ID])
        epoch = cast("int | None", values[app_routes.EPOCH])
        body: dict[str, object] = {"apps_ca": apps_ca}
        if app_id is not None:
            with in_flight.place():
                chosen, app_ca = await keys.app_ca(app_id, epoch)
            body |= {"app_id": app_id.hex(), "epoch": chosen, "app_ca": app_ca}
        elif epoch is not None:
            raise MalformedRequest("query: `epoch` goes with `app_id`")
        return JSONResponse(body, headers={"Cache-Control": "no-store"})

    return router
