"""The two requests of a release, answered in front of the framework's routing.

A release is a challenge and a release request, and they are nearly all that a server is ever asked. What the
framework does for every route (matching, dependencies, validation) costs as much as a signature check and
decides nothing here: bodies are read by `kms.strict_json`. `kms.http.routes` registers the same two functions
with the framework, which describes them and answers whatever else comes to their paths.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeAlias

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from kms.desk import Refused, ReleaseDesk, Submission
from kms.encoding import b64url, whole_seconds
from kms.errors import KmsError, MalformedRequest
from kms.http.limits import MAX_BODY
from kms.http.problems import problem
from kms.http.release_gate import ReleaseGate
from kms.release import issue_challenge, release
from kms.strict_json import Fields, JsonError, dump_json, parse

_log = structlog.get_logger("kms.release")

NO_STORE: Final = {"Cache-Control": "no-store"}

Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]


class ReleaseEndpoints:
    """Answers requests for challenges and for releases of one desk."""

    def __init__(self, desk: ReleaseDesk, gate: ReleaseGate) -> None:
        self._desk = desk
        self._gate = gate

    async def challenges(self, _: Request) -> Response:
        """Give a challenge; the body is not even read."""
        challenge = issue_challenge(self._desk)
        return _json(
            {"challenge": b64url(challenge.raw), "expires_at": whole_seconds(challenge.expires_at)}, 201
        )

    async def releases(self, request: Request) -> Response:
        """Release keys, or refuse with reasons.

        Raises:
            KmsError: as `kms.release.release` and `ReleaseGate.admitted`.

        """
        async with self._gate.admitted(request) as body:
            outcome = await release(self._desk, _submission(request, body))
        if isinstance(outcome, Refused):
            _log.info("refused", request_id=outcome.release_id, code=outcome.code, reasons=outcome.reasons)
            return problem(outcome.code, outcome.release_id, reasons=outcome.reasons)
        _log.info("released", request_id=outcome.release_id, policy=outcome.policy_revision)
        return _json(
            {
                "release_id": outcome.release_id,
                "suite": outcome.suite,
                "sealed": b64url(outcome.sealed),
                "boot_info": outcome.boot_info.to_json(),
                "policy_revision": outcome.policy_revision,
                "receipt": dict(outcome.receipt),
                "development": outcome.development,
            },
            200,
        )


class HotRoutes:
    """Middleware that answers some POST requests by `endpoints` (by path), and leaves the rest to `app`.

    `failed` makes the answer to an error of ours, `hung_up` the one that nobody reads any more: the same that
    the framework would call.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        endpoints: Mapping[str, Endpoint],
        failed: Callable[[Request, Exception], Awaitable[Response]],
        hung_up: Callable[[Request, Exception], Awaitable[Response]],
    ) -> None:
        self._app = app
        self._endpoints = endpoints
        self._failed = failed
        self._hung_up = hung_up

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        endpoint = None
        if scope["type"] == "http" and scope["method"] == "POST":
            endpoint = self._endpoints.get(scope["path"])
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            response = await endpoint(request)
        except KmsError as error:
            response = await self._failed(request, error)
        except ClientDisconnect as error:
            response = await self._hung_up(request, error)
        await response(scope, receive, send)


def _json(body: dict[str, object], status: int) -> Response:
    return Response(dump_json(body), status, headers=NO_STORE, media_type="application/json")


def _submission(request: Request, body: bytes) -> Submission:
    try:
        fields = Fields(parse(body), "body", MalformedRequest)
    except JsonError as error:
        raise MalformedRequest(f"body: {error}") from error
    submission = Submission(
        release_id=request.state.request_id,
        client=request.client.host if request.client else "unknown",
        request=fields.base64("request", at_most=MAX_BODY),
        evidence=fields.take("evidence"),
    )
    fields.end()
    return submission
