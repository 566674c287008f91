"""Accepts connections: the door first, then TLS with a deadline, then HTTP."""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Callable
from typing import Final

import structlog

from kms.addresses import network_of
from kms.background import Background
from kms.buckets import Buckets
from kms.http.connections import HANDSHAKE_WITHIN, Connection, Door
from kms.http.shares import Shares

_log = structlog.get_logger("kms.http")

_FAREWELL_WITHIN: Final = 2.0  # seconds; a silent peer must not hold up the end of its connection
_WAIT_FOR_FILES: Final = 0.1  # seconds
_MORE_IN_ONE_TURN: Final = 15  # not all that wait: other worker processes accept too
# As many as are made in a second or two; more would only make each other wait, and then all be too late.
_MOST_HANDSHAKES: Final = 1024
_MOST_LAST: Final = 4096  # more than wait at once; a flood must not keep a server from stopping
_LAST_GREETINGS_WITHIN: Final = 1.0  # seconds


class Acceptor:
    """Accepts on a listening, non-blocking socket, which it owns; without a `context` there is no TLS.

    uvicorn counts and limits connections only after their TLS handshake, for which it would wait a minute.
    A handshake costs more than most requests, so a network has a share of those that are being made, and
    none while too many connections of it came to nothing (`fruitless`, by network).
    """

    def __init__(
        self,
        listener: socket.socket,
        context: ssl.SSLContext | None,
        door: Door,
        make_connection: Callable[[socket.socket, str], Connection],
        fruitless: Buckets | None,
    ) -> None:
        self._listener = listener
        self._context = context
        self._door = door
        self._make_connection = make_connection
        self._fruitless = fruitless
        self._handshakes = Shares(_MOST_HANDSHAKES)
        self._greetings: set[asyncio.Task[None]] = set()
        self._accepting = Background("acceptor", self._accept)

    def start(self) -> None:
        """Start accepting."""
        self._accepting.start()

    async def stop(self) -> None:
        """Accept who has connected already, and nobody else; forget whose TLS handshake takes long."""
        await self._accepting.stop()
        self._accept_more(_MOST_LAST)
        self._listener.close()
        if self._greetings:
            await asyncio.wait(self._greetings, timeout=_LAST_GREETINGS_WITHIN)
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
        self._admit(accepted, address)
        # Under load a turn of the event loop is long, and one connection each would be few.
        self._accept_more(_MORE_IN_ONE_TURN)

    def _accept_more(self, most: int) -> None:
        """Accept who is waiting already."""
        with contextlib.suppress(OSError):
            for _ in range(most):
                self._admit(*self._listener.accept())

    def _admit(self, accepted: socket.socket, address: tuple[str, int]) -> None:
        accepted.setblocking(False)
        connection = self._make_connection(accepted, network_of(address[0]))
        if not self._welcome(connection):
            # Reset: a farewell would keep state for each.
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            accepted.close()
            return
        greeting = asyncio.create_task(self._greet(accepted, connection))
        self._greetings.add(greeting)
        greeting.add_done_callback(self._greetings.discard)

    def _welcome(self, connection: Connection) -> bool:
        """Take a share of the handshakes and a place at the door; say whether there were both."""
        if self._fruitless is not None and not self._fruitless.has(connection.network):
            return False
        if not self._handshakes.take(connection.network):
            return False
        if self._door.admit(connection):
            return True
        self._handshakes.give_back(connection.network)
        return False

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
            connection.came_to_nothing()
        except BaseException:
            self._door.leave(connection)
            raise
        finally:
            self._handshakes.give_back(connection.network)
