"""A small service on a Unix socket: bounded, each connection by itself, until it is told to stop."""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from typing import Final

from kms.guest.unix_sockets import Peer, notify, peer_of

# A refused connection costs nothing, but a table of descriptors that is full stays so for a while.
_PAUSE: Final = 1.0  # seconds
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_log: Final = logging.getLogger(__name__)

Handle = Callable[[socket.socket, Peer], Awaitable[None]]


class LocalService:
    """Hands each connection to `handle`, at most `at_most` at once; the others wait in the socket's backlog.

    `handle` gets the connection (non-blocking) and who is at the other end; the connection is closed when it
    returns. With `idle`, the service ends when nobody came for so many seconds. After SIGTERM or SIGINT it
    takes no more connections and ends with the last one that it has; a second one does what it does to any
    process.
    """

    def __init__(
        self, listener: socket.socket, handle: Handle, *, at_most: int, idle: float | None = None
    ) -> None:
        self._listener = listener
        self._handle = handle
        self._at_most = at_most
        self._idle = idle
        self._running: set[asyncio.Task[None]] = set()
        self._accepting = False
        self._ended = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Serve until it ends."""
        loop = asyncio.get_running_loop()
        self._listener.setblocking(False)
        for number in _SIGNALS:
            loop.add_signal_handler(number, self.stop)
        try:
            self._resume()
            self._wait_for_more()
            notify("READY=1", os.environ)
            await self._ended.wait()
            notify("STOPPING=1", os.environ)
            # Whoever connects now waits for the next that takes this socket, where systemd keeps it.
            self._pause()
            if self._running:
                await asyncio.wait(self._running)
        finally:
            self._pause()
            self._forget_timer()
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    def stop(self) -> None:
        """Take no more connections, and end with the last one."""
        self._ended.set()
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.remove_signal_handler(number)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            _log.warning("no connection can be taken: %s", error.strerror)
            self._pause()
            asyncio.get_running_loop().call_later(_PAUSE, self._resume)
            return
        task = asyncio.create_task(self._serve(connection))
        self._running.add(task)
        task.add_done_callback(self._done)
        self._forget_timer()
        if len(self._running) >= self._at_most:
            self._pause()

    async def _serve(self, connection: socket.socket) -> None:
        with connection:
            connection.setblocking(False)
            try:
                await self._handle(connection, peer_of(connection))
            except OSError as error:
                _log.info("the other end is gone: %s", error.strerror or "it was too slow")

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # One connection must not end the service; the traceback shows no values.
            _log.error("a connection failed", exc_info=error)
        self._resume()
        if not self._running:
            self._wait_for_more()

    def _resume(self) -> None:
        if not self._accepting and not self._ended.is_set() and len(self._running) < self._at_most:
            asyncio.get_running_loop().add_reader(self._listener, self._accept)
            self._accepting = True

    def _pause(self) -> None:
        if self._accepting:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._accepting = False

    def _wait_for_more(self) -> None:
        if self._idle is not None and not self._ended.is_set():
            self._timer = asyncio.get_running_loop().call_later(self._idle, self._ended.set)

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


async def send_all(connection: socket.socket, content: bytes | bytearray, *, within: float) -> None:
    """Send all of it. Raises `TimeoutError` after `within` seconds, or another `OSError`."""
    async with asyncio.timeout(within):
        await asyncio.get_running_loop().sock_sendall(connection, content)
