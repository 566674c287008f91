"""Connections: who may have one, and for how long it may keep the server waiting.

An idle connection costs its owner nothing. So where there are too many, the one that has been idle longest
gives way to the newcomer, instead of locking the newcomer out; only requests that are being worked on are
never cut off.
"""

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

from starlette.responses import Response
from typing_extensions import override
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from kms.buckets import Buckets
from kms.http.client_certificates import tls_extension
from kms.http.limits import LONG_BODY, MAX_LONG_BODY
from kms.http.observing import LIMITED_BY

HANDSHAKE_WITHIN: Final = 10.0  # seconds, for TLS
HEADER_WITHIN: Final = 10.0  # seconds, from the connection or the first byte of a request to its last header
# Of an answer that does not fit into the system's buffers, so much must be taken in so many seconds. A slow
# reader is served; one who takes nothing would hold a connection, the answer and whoever makes it.
_LEAST_TAKEN: Final = 64 << 10
WRITE_WITHIN: Final = 20.0
_NOT_HEARD_FOR: Final = 1.0  # seconds: the shortest Retry-After
_LAST_REQUEST_WITHIN: Final = 1.0  # seconds, of a server that stops, for who came just before
_MOST_HEADER: Final = 64 << 10
# A body of `limits.MAX_BODY` in chunks of a few bytes is some MiB of wire; what is longer is no such body.
_MOST_WIRE: Final = 8 << 20
_MOST_LONG_WIRE: Final = MAX_LONG_BODY + _MOST_WIRE


class Occupant(Protocol):
    """A connection as the door sees it."""

    @property
    def network(self) -> str:
        """What `kms.addresses.network_of` gives for its address."""
        ...

    @property
    def idle(self) -> bool:
        """Whether no complete request of it is being worked on."""
        ...

    def drop(self) -> None:
        """Cut it off."""
        ...


class Door:
    """Counts connections: at most `most` in all, and `most_of_one` of one network."""

    def __init__(self, *, most: int, most_of_one: int) -> None:
        self._most = most
        self._most_of_one = most_of_one
        # Dictionaries for their order: whoever did something last stands last.
        self._all: dict[Occupant, None] = {}
        self._by_network: dict[str, dict[Occupant, None]] = {}

    def admit(self, newcomer: Occupant) -> bool:
        """Let a connection in, at the cost of an idle one if need be; say whether there was room."""
        own = self._by_network.get(newcomer.network, {})
        if len(own) >= self._most_of_one and not self._drop_idle(own):
            return False
        if len(self._all) >= self._most and not self.make_room():
            return False
        self._all[newcomer] = None
        self._by_network.setdefault(newcomer.network, {})[newcomer] = None
        return True

    def make_room(self) -> bool:
        """Cut off the connection that has been idle longest; say whether there was one."""
        return self._drop_idle(self._all)

    def active(self, occupant: Occupant) -> None:
        """Note that a connection was answered just now."""
        if occupant in self._all:
            for group in (self._all, self._by_network[occupant.network]):
                del group[occupant]
                group[occupant] = None

    def leave(self, occupant: Occupant) -> None:
        """Forget a connection."""
        if occupant in self._all:
            del self._all[occupant]
            own = self._by_network[occupant.network]
            del own[occupant]
            if not own:
                del self._by_network[occupant.network]

    def _drop_idle(self, group: dict[Occupant, None]) -> bool:
        longest = next((occupant for occupant in group if occupant.idle), None)
        if longest is None:
            return False
        self.leave(longest)
        longest.drop()
        return True


class Connection(HttpToolsProtocol):
    """uvicorn's connection, with deadlines and sizes for what precedes a request, and a place at the door.

    `accepted` is the socket, which stands for the connection while there is no TLS yet. `malformed` makes
    the answer to what is not HTTP. `stopping` says whether answers are the last of their connections, and
    `fruitless` counts connections that came to nothing, by network. In seconds: `header_within`, as
    `HEADER_WITHIN`; `write_within`, as `WRITE_WITHIN`.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        *,
        accepted: socket.socket,
        network: str,
        door: Door,
        malformed: Callable[[], Response],
        stopping: Callable[[], bool] = lambda: False,
        fruitless: Buckets | None = None,
        header_within: float = HEADER_WITHIN,
        write_within: float = WRITE_WITHIN,
    ) -> None:
        super().__init__(config, server_state, app_state={}, _loop=asyncio.get_running_loop())
        self._accepted = accepted
        self._network = network
        self._door = door
        self._malformed = malformed
        self._stopping = stopping
        self._fruitless = fruitless
        self._header_within = header_within
        self._write_within = write_within
        self._late: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._in_header = False
        self._heard = 0  # bytes since the last complete header
        self._tls: dict[object, object] | None = None

    @property
    def network(self) -> str:
        """The network of its address."""
        return self._network

    @property
    def idle(self) -> bool:
        """Whether no complete request is being worked on."""
        request = self._request
        return request is None or request.response_complete or request.more_body

    def drop(self) -> None:
        """Cut it off, without the farewells of TLS that a silent peer would not answer."""
        if self.transport is not None:
            self.transport.abort()
            return
        with suppress(OSError):  # already gone
            self._accepted.shutdown(socket.SHUT_RDWR)

    def came_to_nothing(self) -> None:
        """Count it as one that made work and asked nothing."""
        if self._fruitless is not None:
            self._fruitless.retry_after(self._network)

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._tls = tls_extension(transport.get_extra_info("ssl_object"))
        self._expect_header(_LAST_REQUEST_WITHIN if self._stopping() else self._header_within)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._header_is_there()
        self._no_more_to_take()
        self._door.leave(self)
        if self._request is None:
            self.came_to_nothing()
        super().connection_lost(exc)

    @override
    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._heard += len(data)
        request = self._request
        if self._late is None and (request is None or request.response_complete):
            self._expect_header(self._header_within)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._in_header and self._heard > _MOST_HEADER:
            self.send_400_response("")
        elif self._heard > (_MOST_LONG_WIRE if self._long_body else _MOST_WIRE):
            self.drop()

    @override
    def on_message_begin(self) -> None:
        self._in_header = True
        super().on_message_begin()
        if self._tls is not None:
            self.scope["extensions"] = {"tls": self._tls}

    @override
    def on_header(self, name: bytes, value: bytes) -> None:
        # After the body come trailers, which nobody reads; kept, they would cost many times what they are.
        if self._in_header:
            super().on_header(name, value)

    @override
    def on_headers_complete(self) -> None:
        self._in_header = False
        self._heard = 0
        self._header_is_there()
        super().on_headers_complete()
        if self._stopping() and self._request is not None:
            self._request.keep_alive = False

    @override
    def on_response_complete(self) -> None:
        self._door.active(self)
        super().on_response_complete()
        request = self._request
        limited = request is not None and LIMITED_BY in request.scope.get("state", {})
        if limited and not self.transport.is_closing():
            # Whoever does not wait as told is not heard for a while: saying no again and again is work too.
            self.flow.pause_reading()
            self.loop.call_later(_NOT_HEARD_FOR, self._hear_again)

    @override
    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reading()

    @override
    def resume_writing(self) -> None:
        self._no_more_to_take()
        super().resume_writing()

    @override
    def shutdown(self) -> None:
        """Answer what has begun, and end. Who connected or began to ask just now may ask this once."""
        if self._request is None or self._in_header:
            self._header_is_there()
            self._expect_header(_LAST_REQUEST_WITHIN)
        else:
            super().shutdown()

    @override
    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP with a problem document, as everything else."""
        response = self._malformed()
        headers = b"".join(
            b"%s: %s\r\n" % pair for pair in (*response.raw_headers, (b"connection", b"close"))
        )
        self.transport.write(b"HTTP/1.1 400 Bad Request\r\n" + headers + b"\r\n" + bytes(response.body))
        self.transport.close()

    @override
    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: strangers would fill the log."""

    @property
    def _request(self) -> RequestResponseCycle | None:
        # uvicorn declares it as always there; before the first request it is not.
        return self.cycle

    @property
    def _long_body(self) -> bool:
        """Whether the route that reads the body lets it be long (`kms.http.limits.read_long_body`)."""
        request = self._request
        return request is not None and bool(request.scope.get("state", {}).get(LONG_BODY))

    def _expect_header(self, within: float) -> None:
        self._late = self.loop.call_later(within, self.drop)

    def _header_is_there(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _hear_again(self) -> None:
        if not self.transport.is_closing():
            self.flow.resume_reading()

    def _expect_reading(self) -> None:
        self._no_more_to_take()
        left = self.transport.get_write_buffer_size()
        self._unread = self.loop.call_later(self._write_within, self._look_at_reading, left)

    def _look_at_reading(self, left: int) -> None:
        if left - self.transport.get_write_buffer_size() < _LEAST_TAKEN:
            self.drop()
        else:
            self._expect_reading()

    def _no_more_to_take(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
