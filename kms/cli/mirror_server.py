"""Serves a mirror until the process is told to stop: the server's own door, with or without TLS.

uvicorn alone waits for ever for the end of a header: 256 requests that never end would shut everybody out
(docs/decisions/0009).
"""

import asyncio
import signal
import socket
import ssl
from collections.abc import Callable
from typing import Final

from starlette.applications import Starlette
from starlette.responses import Response
from typing_extensions import override

from kms.http.connections import HEADER_WITHIN, Door
from kms.http.guarded import GuardedServer

_KEEP_ALIVE: Final = 5  # seconds
_GRACE: Final = 5  # seconds for requests in flight when it is told to stop
_MOST_CONNECTIONS: Final = 256
# Seven of eight places stay for everybody else.
_MOST_OF_ONE_NETWORK: Final = 32
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


async def serve_mirror(
    app: Starlette,
    listener: socket.socket,
    tls: ssl.SSLContext | None,
    *,
    serving: Callable[[], None],
    header_within: float = HEADER_WITHIN,
) -> None:
    """Serve on a bound socket, and close it, until SIGTERM or SIGINT; what has begun ends well.

    `serving` is called once it answers, and a signal would end it well. `header_within` are the seconds from
    a connection, or from the first byte of its next request, to the last header.
    """
    server = _Server(app, listener, tls, serving, header_within)
    loop = asyncio.get_running_loop()
    for each in _SIGNALS:
        loop.add_signal_handler(each, server.stop)
    try:
        await server.serve()
    finally:
        for each in _SIGNALS:
            loop.remove_signal_handler(each)


class _Server(GuardedServer):
    """The mirror's server; it says once it answers."""

    def __init__(
        self,
        app: Starlette,
        listener: socket.socket,
        tls: ssl.SSLContext | None,
        serving: Callable[[], None],
        header_within: float,
    ) -> None:
        super().__init__(
            app,
            listener,
            tls,
            door=Door(most=_MOST_CONNECTIONS, most_of_one=_MOST_OF_ONE_NETWORK),
            malformed=_malformed,
            keep_alive=_KEEP_ALIVE,
            grace=_GRACE,
            header_within=header_within,
        )
        self._serving = serving

    def stop(self) -> None:
        self.should_exit = True

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._serving()


def _malformed() -> Response:
    return Response(status_code=400, headers={"Cache-Control": "no-store"})
