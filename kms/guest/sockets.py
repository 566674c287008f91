"""TCP and TLS that never wait past a deadline, whatever drips in: an address, a handshake, a header.

A socket's timeout is for each read, so a server that sends a byte a second could hold a booting guest for
ever. Here every wait looks at the time that is left for the whole exchange, and looks again ten times a
second, because whoever waits for the keys may give up meanwhile.
"""

import errno
import os
import select
import socket
import ssl
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import wait
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar

import httpcore2
import httpx2
from typing_extensions import override

from kms.guest.threads import in_thread

_LOOK: Final = 0.1  # seconds
# Bytes that TLS is handed between two looks at the time: some 30 ms of work, where all are session tickets.
_AT_ONCE: Final = 16 << 10
_Left: TypeAlias = Callable[[], float]
_Address: TypeAlias = tuple[Any, Any, int, str, Any]  # as socket.getaddrinfo gives it

T = TypeVar("T")


class DeadlineTransport(httpx2.HTTPTransport):
    """HTTPS for an `httpx2.Client`, over these sockets. `left` is what `DeadlineSockets` says of it."""

    def __init__(self, context: ssl.SSLContext, left: _Left) -> None:
        super().__init__(verify=context, trust_env=False)
        # httpx2 has no argument for httpcore2's network backend, which is where a deadline can hold.
        self._pool = httpcore2.ConnectionPool(ssl_context=context, network_backend=DeadlineSockets(left))


class DeadlineSockets(httpcore2.NetworkBackend):
    """Connections that time out when `left`, the seconds that remain, is 0 or less; asked at every wait.

    The timeouts that httpcore2 hands down are for each read, and ignored.
    """

    def __init__(self, left: _Left) -> None:
        self._left = left

    @override
    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        """Connect to the first of the host's addresses that answers; none may use up another one's time."""
        with _told(httpcore2.ConnectTimeout, httpcore2.ConnectError, "no connection in time"):
            addresses = _resolve(host, port, self._left)
            while True:
                share = _share(self._left, len(addresses))
                try:
                    return _Tcp(_connect(addresses.pop(0), share), self._left)
                except OSError:
                    if not addresses:
                        raise


class _Tcp(httpcore2.NetworkStream):
    """A connection without TLS yet: nothing can be sent over it."""

    def __init__(self, connected: socket.socket, left: _Left) -> None:
        self._socket = connected
        self._left = left

    @override
    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.NetworkStream:
        with _told(httpcore2.ConnectTimeout, httpcore2.ConnectError, "no TLS handshake in time"):
            try:
                return _Tls(self._socket, ssl_context, server_hostname, self._left)
            except BaseException:
                self.close()
                raise

    @override
    def close(self) -> None:
        self._socket.close()


class _Tls(httpcore2.NetworkStream):
    """TLS that is handed the network's bytes a little at a time.

    On a socket, one call of OpenSSL goes on for as long as a server sends what TLS keeps to itself: session
    tickets, key updates, requests to shake hands again (SSL_MODE_AUTO_RETRY). It would pass any deadline.
    """

    def __init__(
        self, connected: socket.socket, context: ssl.SSLContext, server_hostname: str | None, left: _Left
    ) -> None:
        self._socket = connected
        self._left = left
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_hostname)
        self._finish(self._tls.do_handshake)

    @override
    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _told(httpcore2.ReadTimeout, httpcore2.ReadError, "no whole answer in time"):
            try:
                return self._finish(partial(self._tls.read, max_bytes))
            except ssl.SSLEOFError:
                # Many servers close without TLS's word for it. What ends too early, HTTP tells by its length.
                return b""

    @override
    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        unsent = memoryview(buffer)
        with _told(httpcore2.WriteTimeout, httpcore2.WriteError, "the request was not taken in time"):
            while unsent:
                unsent = unsent[self._finish(partial(self._tls.write, unsent[:_AT_ONCE])) :]

    @override
    def close(self) -> None:
        self._socket.close()

    @override
    def get_extra_info(self, info: str) -> Any:
        """Say whether an idle connection has something to read: that its end has come."""
        if info != "is_readable":
            return None
        return self._incoming.pending > 0 or _ready(self._socket, select.POLLIN, 0)

    def _finish(self, operation: Callable[[], T]) -> T:
        """Do it, as often as TLS wants to see more of the network first."""
        while self._left() > 0:
            try:
                outcome = operation()
            except ssl.SSLWantReadError:
                self._send()
                self._receive()
            except ssl.SSLError:
                with suppress(OSError):  # the alert that says why; nobody waits for it to be taken
                    self._socket.send(self._outgoing.read())
                raise
            else:
                self._send()
                return outcome
        raise TimeoutError

    def _send(self) -> None:
        unsent = memoryview(self._outgoing.read())
        while unsent:
            _wait(self._socket, select.POLLOUT, self._left)
            unsent = unsent[self._socket.send(unsent) :]

    def _receive(self) -> None:
        _wait(self._socket, select.POLLIN, self._left)
        if received := self._socket.recv(_AT_ONCE):
            self._incoming.write(received)
        else:
            self._incoming.write_eof()


def _resolve(host: str, port: int, left: _Left) -> list[_Address]:
    """Give at least one address. The system's resolver takes no deadline, and cannot be interrupted."""

    def look_up(flags: int) -> list[_Address]:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)

    try:
        return look_up(socket.AI_NUMERICHOST)
    except socket.gaierror:
        pass  # a name
    # A daemon: nothing of ours is in its hands, and the end of a program need not wait for it.
    found = in_thread(lambda: look_up(0), name="attested-kms-resolver", daemon=True)
    while not found.done():
        if (remaining := left()) <= 0:
            raise TimeoutError
        wait([found], min(remaining, _LOOK))
    return found.result()


def _share(left: _Left, among: int) -> _Left:
    """Give one address its part of the time that is left for all of them."""
    spare = max(left(), 0.0) * (1 - 1 / among)
    return lambda: left() - spare


def _connect(address: _Address, left: _Left) -> socket.socket:
    family, kind, protocol, _, place = address
    connecting = socket.socket(family, kind, protocol)
    try:
        connecting.setblocking(False)
        connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = connecting.connect_ex(place)
        if code == errno.EINPROGRESS:
            _wait(connecting, select.POLLOUT, left)
            code = connecting.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
    except BaseException:
        connecting.close()
        raise
    return connecting


def _wait(waiting: socket.socket, event: int, left: _Left) -> None:
    while (remaining := left()) > 0:
        if _ready(waiting, event, min(remaining, _LOOK)):
            return
    raise TimeoutError


def _ready(waiting: socket.socket, event: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(waiting, event)
    return bool(poll.poll(seconds * 1000))


@contextmanager
def _told(late: type[Exception], failed: type[Exception], why: str) -> Iterator[None]:
    """Say in httpcore2's words what went wrong."""
    try:
        yield
    except TimeoutError as error:
        # The system's own, ETIMEDOUT, says more.
        raise late(str(error) or why) from error
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that cannot be looked up
        raise failed(str(error)) from error
