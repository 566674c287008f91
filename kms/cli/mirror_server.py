"""Serves a mirror until the process is told to stop: the server's own door, with or without TLS.

uvicorn alone waits for ever for the end of a header: 256 requests that never end would shut everybody out
(docs/decisions/0009).
"""

import asyncio
import contextlib
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Final

import uvicorn
from starlette.applications import Starlette
from starlette.responses import Response
from typing_extensions import override

from kms.http.accepting import Acceptor
from kms.http.connections import HEADER_WITHIN, Connection, Door

_KEEP_ALIVE: Final = 5  # seconds
_GRACE: Final = 5  # seconds for requests in flight when it is told to stop
_BACKLOG: Final = 2048
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


class _Server(uvicorn.Server):
    """uvicorn with our own door, and without its own signal handling: it raises the signal once more."""

    def __init__(
        self,
        app: Starlette,
        listener: socket.socket,
        tls: ssl.SSLContext | None,
        serving: Callable[[], None],
        header_within: float,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                # A header would let anybody choose the address that is limited.
                proxy_headers=False,
                timeout_keep_alive=_KEEP_ALIVE,
                timeout_graceful_shutdown=_GRACE,
            )
        )
        self._listener = listener
        self._serving = serving
        self._header_within = header_within
        self._door = Door(most=_MOST_CONNECTIONS, most_of_one=_MOST_OF_ONE_NETWORK)
        self._acceptor = Acceptor(listener, tls, self._door, self._connection)

    def stop(self) -> None:
        self.should_exit = True

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        self.servers = []
        self._listener.setblocking(False)
        self._listener.listen(_BACKLOG)
        self._acceptor.start()
        self.started = True
        self._serving()

    @override
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._acceptor.stop()
        await super().shutdown(sockets)

    @override
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def _connection(self, accepted: socket.socket, network: str) -> Connection:
        return Connection(
            self.config,
            self.server_state,
            accepted=accepted,
            network=network,
            door=self._door,
            malformed=_malformed,
            header_within=self._header_within,
        )


def _malformed() -> Response:
    return Response(status_code=400, headers={"Cache-Control": "no-store"})
