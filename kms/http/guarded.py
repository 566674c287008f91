"""uvicorn behind our own door (docs/decisions/0009): the same for the server and for the mirror."""

import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Final

import uvicorn
from starlette.responses import Response
from starlette.types import ASGIApp
from typing_extensions import override

from kms.buckets import Buckets
from kms.http.accepting import Acceptor
from kms.http.connections import HEADER_WITHIN, WRITE_WITHIN, Connection, Door

_BACKLOG: Final = 2048


class GuardedServer(uvicorn.Server):
    """Serves an application on a bound socket, with our own acceptor, and without handling signals.

    uvicorn raises the signal that stopped it once more, which would end the process before its work is done:
    whoever runs it sets `should_exit`, or overrides `on_tick`. `tls` None is plain HTTP. `malformed` answers
    what is not HTTP. In seconds: `keep_alive`, `grace` for requests in flight at the end, `header_within`,
    `write_within`. `fruitless` limits connections that come to nothing, by network. Once it is `stopping`,
    each answer is the last of its connection.
    """

    def __init__(
        self,
        app: ASGIApp,
        listener: socket.socket,
        tls: ssl.SSLContext | None,
        *,
        door: Door,
        malformed: Callable[[], Response],
        keep_alive: int,
        grace: int,
        header_within: float = HEADER_WITHIN,
        write_within: float = WRITE_WITHIN,
        fruitless: Buckets | None = None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="off",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                # A header would let anybody choose the address that is limited and recorded.
                proxy_headers=False,
                timeout_keep_alive=keep_alive,
                timeout_graceful_shutdown=grace,
            )
        )
        self._listener = listener
        self._door = door
        self._malformed = malformed
        self._header_within = header_within
        self._write_within = write_within
        self._fruitless = fruitless
        self.stopping = False
        self._acceptor = Acceptor(listener, tls, door, self._connection, fruitless)

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        self.servers = []
        self._listener.setblocking(False)
        self._listener.listen(_BACKLOG)
        self._acceptor.start()
        self.started = True

    @override
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.stopping = True
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
            malformed=self._malformed,
            stopping=lambda: self.stopping,
            fruitless=self._fruitless,
            header_within=self._header_within,
            write_within=self._write_within,
        )
