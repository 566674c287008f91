"""Accepts connections: the door first, then TLS with a deadline, then HTTP."""

import asyncio
import socket
import ssl
import struct
from collections.abc import Callable
from typing import Final

import structlog

from kms.addresses import network_of
from kms.background import Background
from kms.http.connections import HANDSHAKE_WITHIN, Connection, Door

_log = structlog.get_logger("kms.http")

_FAREWELL_WITHIN: Final = 2.0  # seconds; a silent peer must not hold up the end of its connection
_WAIT_FOR_FILES: Final = 0.1  # seconds


class Acceptor:
    """Accepts on a listening, non-blocking socket, which it owns; without a `context` there is no TLS.

    uvicorn counts and limits connections only after their TLS handshake, for which it would wait a minute.
    """

    def __init__(
        self,
        listener: socket.socket,
        context: ssl.SSLContext | None,
        door: Door,
        make_connection: Callable[[socket.socket, str], Connection],
    ) -> None:
        self._listener = listener
        self._context = context
        self._door = door
        self._make_connection = make_connection
        self._greetings: set[asyncio.Task[None]] = set()
        self._accepting = Background("acceptor", self._accept)

    def start(self) -> None:
        """Start accepting."""
        self._accepting.start()

    async def stop(self) -> None:
        """Accept nobody any more, and forget whoever has not finished the TLS handshake."""
        await self._accepting.stop()
        self._listener.close()
        for greeting in self._greetings:
            greeting.cancel()
        await asyncio.gather(*self._greetings, return_exceptions=True)

    async def _accept(self) -> None:
        try:
            accepted, address = await asyncio.get_running_loop().sock_accept(self._listener)
        except OSError as error:
            # Out of files or memory, or a peer that has gone already.
            _log.warning("not-accepted", cause=error.strerror, made_room=self._door.make_room())
            await asyncio.sleep(_WAIT_FOR_FILES)
            return
        connection = self._make_connection(accepted, network_of(address[0]))
        if not self._door.admit(connection):
            # Reset: a farewell would keep state for each.
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            accepted.close()
            return
        greeting = asyncio.create_task(self._greet(accepted, connection))
        self._greetings.add(greeting)
        greeting.add_done_callback(self._greetings.discard)

    async def _greet(self, accepted: socket.socket, connection: Connection) -> None:
        secure = self._context is not None  # asyncio takes deadlines of TLS only with TLS
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection,
                accepted,
                ssl=self._context,
                ssl_handshake_timeout=HANDSHAKE_WITHIN if secure else None,
                ssl_shutdown_timeout=_FAREWELL_WITHIN if secure else None,
            )
        except OSError:
            self._door.leave(connection)  # it speaks no TLS, or too slowly
        except BaseException:
            self._door.leave(connection)
            raise
