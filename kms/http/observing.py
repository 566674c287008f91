"""What was asked for, how it was answered and how long that took: told to whoever measures, by template."""

from collections.abc import Callable
from time import perf_counter
from typing import Final, TypeAlias

from starlette.types import ASGIApp, Message, Receive, Scope, Send

# The route template, the status, the seconds until the answer was out (of a release's two requests only), and
# what was counted of a request that came too often. None: there was no such thing.
Report: TypeAlias = Callable[[str | None, int | None, float | None, str | None], None]

LIMITED_BY: Final = "limited_by"  # member of a request's state, set by who turns it away
# Answered in front of the framework's routing, which therefore names no template for them.
HOT_PATHS: Final = frozenset({"/v1/challenges", "/v1/releases"})


class Observed:
    """Wraps a whole application, and reports each request when it is done.

    Only templates are reported: paths are what strangers write.
    """

    def __init__(self, app: ASGIApp, report: Report) -> None:
        self._app = app
        self._report = report
        self.in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status: int | None = None

        async def send_noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        began = perf_counter()
        self.in_flight += 1
        try:
            await self._app(scope, receive, send_noting)
        finally:
            self.in_flight -= 1
            limited_by = scope.get("state", {}).get(LIMITED_BY)
            if scope["method"] == "POST" and scope["path"] in HOT_PATHS:
                self._report(scope["path"], status, perf_counter() - began, limited_by)
            else:
                # Left there by the framework's router (starlette.routing.Router).
                route = getattr(scope.get("route"), "path_format", None)
                self._report(route, status, None, limited_by)
