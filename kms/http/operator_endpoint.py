"""What every operators' route does, in this order: who asks, with which parameters, the body, the answer.

A route is declared with its parameters and shapes, and the OpenAPI document is made of the same declaration,
so that what is described is what is read.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, TypeVar, cast

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from kms.administration.office import Json
from kms.errors import MalformedRequest
from kms.http.limits import (
    MAX_BODY,
    InFlight,
    declared_length,
    is_plain_json,
    read_body,
    read_long_body,
)
from kms.http.operator_schemas import OperatorProblem
from kms.http.parameters import Parameter, read_path, read_query
from kms.http.problems import KINDS, MEDIA_TYPE
from kms.http.schemas import Shape
from kms.operators import Actor, Permission
from kms.strict_json import Fields, JsonError, parse

T = TypeVar("T")

# Who asks, by the request's headers and TLS alone. Raises `Unauthenticated`.
Authenticate: TypeAlias = Callable[[Request], Awaitable[Actor]]

SECURITY: Final[Mapping[str, Mapping[str, str]]] = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "a token of `kms operator add`, or of the OpenID Connect provider",
    },
    "mutualTLS": {"type": "mutualTLS", "description": "a client certificate of a known subject"},
}
_JSON: Final = "application/json"
_NO_STORE: Final = {"Cache-Control": "no-store"}
_MOST_LONG_BODIES: Final = 2
_ALWAYS: Final = ("malformed-request", "unauthenticated", "forbidden", "rate-limited", "ledger-unavailable")
_WITH_BODY: Final = ("too-large", "unsupported-media-type", "server-busy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """An authenticated operator's request: its parameters by `[...]`, and its body."""

    actor: Actor
    _parameters: Mapping[Parameter[Any], object] = field(repr=False)
    _request: Request = field(repr=False)
    _long_bodies: InFlight = field(repr=False)

    def __getitem__(self, parameter: Parameter[T]) -> T:
        return cast("T", self._parameters[parameter])

    async def body(self) -> Fields:
        """Read a body of at most `MAX_BODY` bytes.

        Raises:
            MalformedRequest, TooLarge: it is not a JSON object, or too long.

        """
        _require_json(self._request)
        return _fields(await read_body(self._request))

    @asynccontextmanager
    async def long_body(self) -> AsyncIterator[Fields]:
        """Read a body that may hold a whole policy; one that is long has a place while the context lasts.

        Only who may change policies may send a long one: a viewer must not keep operators from it.

        Raises:
            ServerBusy: `_MOST_LONG_BODIES` are being worked on.
            MalformedRequest, TooLarge: it is not a JSON object, or longer than `MAX_LONG_BODY`.

        """
        _require_json(self._request)
        length = declared_length(self._request)
        short = not self.actor.may(Permission.CHANGE_POLICY) or (length is not None and length <= MAX_BODY)
        with nullcontext() if short else self._long_bodies.place():
            yield _fields(await (read_body if short else read_long_body)(self._request), long_texts=True)


Handler: TypeAlias = Callable[[Asked], Awaitable[Json]]


class OperatorRoutes:
    """Collects the routes in `router`, and in `shapes` the models that FastAPI does not find by itself."""

    def __init__(self, authenticate: Authenticate) -> None:
        self.router = APIRouter(tags=["operators"])
        self.shapes: set[type[Shape]] = {OperatorProblem}
        self._authenticate = authenticate
        self._long_bodies = InFlight(_MOST_LONG_BODIES)

    def route(
        self,
        method: str,
        path: str,
        answer: type[Shape],
        *,
        summary: str,
        description: str | None = None,
        parameters: Sequence[Parameter[Any]] = (),
        body: type[Shape] | None = None,
        refusals: Sequence[str] = (),
        status: int = 200,
    ) -> Callable[[Handler], Handler]:
        """Register a handler. `refusals` are the codes (of `KINDS`) that only some routes answer with."""
        in_path = tuple(each for each in parameters if f"{{{each.name}" in path)
        in_query = tuple(each for each in parameters if each not in in_path)
        codes = (*_ALWAYS, *refusals, *(("not-found",) if in_path else ()), *(_WITH_BODY if body else ()))
        extra: dict[str, Any] = {
            "security": [{scheme: []} for scheme in SECURITY],
            "parameters": [
                *(each.describe("path") for each in in_path),
                *(each.describe("query") for each in in_query),
            ],
        }
        if body is not None:
            self.shapes.add(body)
            extra["requestBody"] = {"required": True, "content": {_JSON: _content(body, body.example)}}

        def register(handler: Handler) -> Handler:
            async def endpoint(request: Request) -> Response:
                # A path that can name nothing is not there, whoever asks.
                values = read_path(in_path, request)
                actor = await self._authenticate(request)
                # From here on a refusal may say why (`kms.http.problems.problem_of`).
                request.state.operator = actor
                values |= read_query(in_query, request)
                asked = Asked(
                    actor=actor, _parameters=values, _request=request, _long_bodies=self._long_bodies
                )
                return _answer(await handler(asked), status)

            self.router.add_api_route(
                path,
                endpoint,
                methods=[method],
                name=handler.__name__,
                status_code=status,
                response_model=answer,
                summary=summary,
                description=description,
                responses={
                    status: {
                        "description": "Done",
                        "content": {_JSON: {"example": answer.example}},
                    },
                    **_problems(codes),
                },
                openapi_extra=extra,
            )
            return handler

        return register


def _answer(answer: Json, status: int) -> Response:
    # In ASCII: a record that somebody damaged may hold what has no UTF-8 form.
    return Response(json.dumps(answer), status, media_type="application/json", headers=_NO_STORE)


def _content(shape: type[Shape], example: Mapping[str, object]) -> dict[str, object]:
    return {"schema": {"$ref": f"#/components/schemas/{shape.__name__}"}, "example": example}


def _problems(codes: Sequence[str]) -> dict[int | str, dict[str, Any]]:
    """Describe the problem documents of these codes, one response a status."""
    by_status: dict[int, list[str]] = {}
    for code in dict.fromkeys(codes):
        by_status.setdefault(KINDS[code].status, []).append(code)
    return {
        status: {
            "description": "; ".join(f"{code}: {KINDS[code].title}" for code in named),
            "content": {MEDIA_TYPE: _content(OperatorProblem, OperatorProblem.of(named[0]))},
        }
        for status, named in sorted(by_status.items())
    }


def _require_json(request: Request) -> None:
    # The type must be said: a web page can send what has none, or a form's, in the name of an operator whose
    # browser holds a client certificate; for JSON the browser asks the server first (CORS preflight).
    if not is_plain_json(request.headers.raw, said=True):
        raise HTTPException(415)


def _fields(body: bytes, *, long_texts: bool = False) -> Fields:
    try:
        return Fields(parse(body, long_texts=long_texts), "body", MalformedRequest)
    except JsonError as error:
        raise MalformedRequest(f"body: {error}") from None
