"""Serves a mirror with uvicorn, until the process is told to stop."""

import asyncio
import contextlib
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Final

import uvicorn
from starlette.applications import Starlette
from typing_extensions import override

_KEEP_ALIVE: Final = 5  # seconds
_GRACE: Final = 5  # seconds for requests in flight when it is told to stop
_MOST_AT_ONCE: Final = 256
_LONGEST_REQUEST: Final = 8 * 1024  # bytes of request line and headers
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


async def serve_mirror(
    app: Starlette, listener: socket.socket, tls: ssl.SSLContext | None, *, serving: Callable[[], None]
) -> None:
    """Serve on a bound socket until SIGTERM or SIGINT; what has begun ends well.

    `serving` is called once it answers, and a signal would end it well.
    """
    server = _Server(
        uvicorn.Config(
            app,
            http="h11",  # the parser that bounds headers
            h11_max_incomplete_event_size=_LONGEST_REQUEST,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_MOST_AT_ONCE,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=_GRACE,
            ssl_context_factory=None if tls is None else lambda config, default: tls,
        ),
        serving,
    )
    loop = asyncio.get_running_loop()
    for each in _SIGNALS:
        loop.add_signal_handler(each, server.stop)
    try:
        await server.serve(sockets=[listener])
    finally:
        for each in _SIGNALS:
            loop.remove_signal_handler(each)


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling: it raises the signal once more when it is done."""

    def __init__(self, config: uvicorn.Config, serving: Callable[[], None]) -> None:
        super().__init__(config)
        self._serving = serving

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._serving()

    def stop(self) -> None:
        self.should_exit = True

    @override
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
