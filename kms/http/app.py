"""The application: routes inside, and around them what holds for every response."""

from asyncio import to_thread
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Final

import structlog
from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars
from typing_extensions import override

from kms import __version__
from kms.administration.office import Office
from kms.desk import ReleaseDesk
from kms.errors import KmsError, RateLimited, TooLarge, Unavailable
from kms.http.docs_page import docs_page
from kms.http.hot_routes import HotRoutes, ReleaseEndpoints
from kms.http.ledger_routes import ledger_routes
from kms.http.limits import BODY_TOO_SLOW, AddressLimiter, ServerBusy, is_plain_json
from kms.http.observing import LIMITED_BY
from kms.http.operator_endpoint import SECURITY, Authenticate
from kms.http.operator_routes import operator_routes
from kms.http.problems import problem, problem_of, problem_of_status
from kms.http.release_gate import ReleaseGate
from kms.http.routes import Readiness, guest_routes
from kms.http.schemas import ReleaseBody, Shape
from kms.ledger_publishing import PublicLedger
from kms.strict_json import compact_json

_log = structlog.get_logger("kms.http")
_REF: Final = "#/components/schemas/{model}"
_NOT_LIMITED: Final = frozenset({"/healthz", "/readyz"})


def create_app(
    desk: ReleaseDesk,
    *,
    readiness: Readiness,
    limiter: AddressLimiter,
    gate: ReleaseGate,
    new_request_id: Callable[[], str],
    tls_ca: str | None,
    office: Office | None = None,
    ledger: PublicLedger | None = None,
    authenticate: Authenticate | None = None,
) -> FastAPI:
    """Make the application for one desk. Operators have routes where there is an office that knows them."""
    # The framework's own telemetry would keep request bodies within reach of exporters: off. Each part is
    # named, else it looks for exporters anew at every request, at a fifth of the cost of a signature.
    app = _Application(
        title="Attested KMS",
        version=__version__,
        description="Releases keys to confidential guests that can prove what they are.",
        telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
        redirect_slashes=False,
        # The framework's pages load their scripts from elsewhere; `docs_page` loads nothing.
        docs_url=None,
        redoc_url=None,
        # And it would write the document anew for every stranger who asks.
        openapi_url=None,
    )
    endpoints = ReleaseEndpoints(desk, gate)
    app.include_router(guest_routes(desk, endpoints, readiness, tls_ca))
    if ledger is not None:
        app.include_router(ledger_routes(ledger))
    shapes: set[type[Shape]] = {ReleaseBody}
    security: Mapping[str, Mapping[str, str]] = {}
    if office is not None and authenticate is not None:
        routes = operator_routes(office, authenticate)
        app.include_router(routes.router)
        shapes |= routes.shapes
        security = SECURITY

    # Made once, and beside the event loop: the document is some hundred kilobytes.
    document = cache(lambda: Response(compact_json(app.openapi()), media_type="application/json"))
    page = cache(lambda: docs_page(app.openapi()))

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return await to_thread(document)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return await to_thread(page)

    app.add_exception_handler(KmsError, _on_kms_error)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_bug)
    hot = HotRoutes(
        app.framework,
        endpoints={"/v1/challenges": endpoints.challenges, "/v1/releases": endpoints.releases},
        failed=_on_kms_error,
        hung_up=_on_disconnect,
    )
    app.entrance = _EveryResponse(
        hot, limiter=limiter, new_request_id=new_request_id, development=desk.development
    )
    _describe(app, shapes, security)
    return app


def response_marks(request_id: str, *, development: bool) -> list[tuple[bytes, bytes]]:
    """Give the headers that every response has."""
    marks = [(b"kms-request-id", request_id.encode("ascii"))]
    if development:
        marks.append((b"kms-development", b"true"))
    return marks


class _Application(FastAPI):
    """The framework behind an `entrance` of ours: what that answers never passes the framework's layers."""

    entrance: ASGIApp

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.entrance(scope, receive, send)

    async def framework(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve as the framework does."""
        await super().__call__(scope, receive, send)


class _EveryResponse:
    """Request id, development mark, rate limit and media type: for every request, before any route."""

    def __init__(
        self, app: ASGIApp, *, limiter: AddressLimiter, new_request_id: Callable[[], str], development: bool
    ) -> None:
        self._app = app
        self._limiter = limiter
        self._new_request_id = new_request_id
        self._development = development

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = self._new_request_id()
        scope.setdefault("state", {})["request_id"] = request_id
        # A task of its own serves each request: what is logged on the way, wherever, says whose it is.
        bind_contextvars(request_id=request_id)
        marks = response_marks(request_id, development=self._development)

        started = False

        async def send_marked(message: Message) -> None:
            nonlocal started
            started = True
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *marks]
            await send(message)

        try:
            refused = self._refuse(scope, request_id)
            await (refused or self._app)(scope, receive, send_marked)
        except Exception as error:  # noqa: BLE001 -- the outermost shell of a request
            # A bug of ours is answered with a bare problem document, and the log says where it was.
            _log.error("failed", request_id=request_id, exc_info=error)
            if not started:
                await problem("internal", request_id)(scope, receive, send_marked)

    def _refuse(self, scope: Scope, request_id: str) -> Response | None:
        client = scope.get("client")
        if scope["path"] not in _NOT_LIMITED and client is not None:
            wait = self._limiter.retry_after(client[0])
            if wait is not None:
                scope["state"][LIMITED_BY] = "address"
                return problem("rate-limited", request_id, headers={"Retry-After": str(int(wait) + 1)})
        # Operators' routes look at it themselves, once they know who asks.
        if scope["path"] == "/v1/releases" and not is_plain_json(scope["headers"]):
            return problem("unsupported-media-type", request_id)
        return None


async def _on_kms_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, KmsError):
        raise error
    log = _log.warning if isinstance(error, Unavailable) else _log.info
    log(
        "not-served",
        request_id=request.state.request_id,
        code=error.code,
        reason=error.reason,
        detail=error.detail,
    )
    if isinstance(error, RateLimited | ServerBusy):
        setattr(request.state, LIMITED_BY, error.reason.removesuffix("-rate-limited"))
    known = getattr(request.state, "operator", None) is not None
    response = problem_of(error, request.state.request_id, to_operator=known)
    if isinstance(error, TooLarge) or error.reason == BODY_TOO_SLOW:
        # The rest of the body is not read, so the connection cannot be used again.
        response.headers["Connection"] = "close"
    return response


async def _on_disconnect(request: Request, _: Exception) -> Response:
    # Nobody reads this answer; it keeps a peer that hangs up from looking like a failure of ours.
    return problem("malformed-request", request.state.request_id)


async def _on_bug(request: Request, _: Exception) -> Response:
    # The framework raises it again after this answer: `_EveryResponse` logs it.
    return problem("internal", request.state.request_id)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    response = problem_of_status(status, request.state.request_id)
    if isinstance(error, HTTPException) and error.headers and "Allow" in error.headers:
        # The framework names the methods of one route; the document knows all that there are of its path.
        path = getattr(request.scope.get("route"), "path_format", "")
        described = (method.upper() for method in request.app.openapi()["paths"].get(path, ()))
        response.headers["Allow"] = ", ".join(described) or error.headers["Allow"]
    return response


def _describe(app: FastAPI, shapes: Iterable[type[Shape]], security: Mapping[str, Mapping[str, str]]) -> None:
    """Add to the OpenAPI document what no route takes or returns by itself: models, and security schemes."""

    def openapi() -> dict[str, object]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title, version=app.version, description=app.description, routes=app.routes
            )
            components = schema.setdefault("components", {})
            models = components.setdefault("schemas", {})
            for shape in sorted(shapes, key=lambda each: each.__name__):
                model = shape.model_json_schema(ref_template=_REF)
                models.update(model.pop("$defs", {}))
                models[shape.__name__] = model
            components["securitySchemes"] = dict(security)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # the documented way to extend it
