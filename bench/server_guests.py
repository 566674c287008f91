"""Guests that cost as little as they can: signed requests made beforehand, sent over kept-alive TLS.

On a small machine the load shares the processors with the server. So nothing is made or read here while the
clock runs, but the status of each answer: one thread, one loop over non-blocking connections.
"""

import selectors
import socket
import ssl
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Final

_HOST: Final = "127.0.0.1"
_READ: Final = 1 << 16
_PATIENCE: Final = 30.0  # seconds without any answer
_HEADER_END: Final = b"\r\n\r\n"
_LENGTH: Final = b"content-length: "
CHALLENGE: Final = b"POST /v1/challenges HTTP/1.1\r\nHost: kms\r\nContent-Length: 0\r\n\r\n"


class WrongAnswer(Exception):
    """The server did not do what it was measured for."""


def http_post(path: str, body: bytes) -> bytes:
    """Give the exact bytes of a request with a JSON body."""
    head = f"POST {path} HTTP/1.1\r\nHost: kms\r\nContent-Type: application/json\r\n"
    return head.encode("ascii") + b"Content-Length: %d\r\n\r\n" % len(body) + body


@dataclass(frozen=True, slots=True)
class Slice:
    """What was done in a stretch of time: seconds of each release, of its two requests together."""

    seconds: float
    latencies: tuple[float, ...]

    @property
    def rate(self) -> float:
        """Releases a second."""
        return len(self.latencies) / self.seconds


class Guests:
    """Connections to a server, each of which asks for a challenge, then for a release, and so on."""

    def __init__(self, port: int, ca: Path, number: int) -> None:
        context = ssl.create_default_context(cafile=str(ca))
        self._selector = selectors.DefaultSelector()
        self._all: list[_Connection] = []
        for _ in range(number):
            plain = socket.create_connection((_HOST, port), timeout=_PATIENCE)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            secure = context.wrap_socket(plain, server_hostname="localhost")
            secure.setblocking(False)
            connection = _Connection(secure)
            self._all.append(connection)
            self._selector.register(secure, selectors.EVENT_READ, connection)

    def release(self, requests: Sequence[bytes]) -> Slice:
        """Send each of these requests once, with a request for a challenge before it.

        Raises:
            WrongAnswer: one was answered with another status than 201 and 200.

        """
        waiting = deque(requests)
        latencies: list[float] = []
        began = perf_counter()
        for connection in self._all[: len(waiting)]:
            connection.ask([(CHALLENGE, b"201"), (waiting.popleft(), b"200")])
        while len(latencies) < len(requests):
            for connection in self._answered():
                if connection.exchanges:
                    connection.send_next()
                    continue
                latencies.append(perf_counter() - connection.began)
                if waiting:
                    connection.ask([(CHALLENGE, b"201"), (waiting.popleft(), b"200")])
        return Slice(perf_counter() - began, tuple(latencies))

    def challenges(self, number: int) -> list[bytes]:
        """Ask for so many challenges, and give the bodies of the answers."""
        bodies: list[bytes] = []
        asked = 0
        for connection in self._all[:number]:
            connection.ask([(CHALLENGE, b"201")])
            asked += 1
        while len(bodies) < number:
            for connection in self._answered():
                bodies.append(connection.body)
                if asked < number:
                    connection.ask([(CHALLENGE, b"201")])
                    asked += 1
        return bodies

    def close(self) -> None:
        """Hang up."""
        self._selector.close()
        for connection in self._all:
            connection.secure.close()

    def _answered(self) -> Iterable["_Connection"]:
        ready = self._selector.select(_PATIENCE)
        if not ready:
            raise WrongAnswer("the server does not answer")
        for key, _ in ready:
            connection: _Connection = key.data
            if connection.read():
                yield connection


class _Connection:
    __slots__ = ("_expected", "_got", "_length", "began", "body", "exchanges", "secure")

    def __init__(self, secure: ssl.SSLSocket) -> None:
        self.secure = secure
        self.exchanges: list[tuple[bytes, bytes]] = []
        self.began = 0.0
        self.body = b""
        self._expected = b""
        self._got = b""
        self._length = 0

    def ask(self, exchanges: list[tuple[bytes, bytes]]) -> None:
        self.exchanges = exchanges
        self.began = perf_counter()
        self.send_next()

    def send_next(self) -> None:
        request, self._expected = self.exchanges.pop(0)
        self._got, self._length = b"", 0
        # Shorter than any socket's buffer, which is empty: the server waits for this request.
        if self.secure.send(request) != len(request):
            raise WrongAnswer("a request did not fit into the socket's buffer")

    def read(self) -> bool:
        """Read what is there; say whether the answer is whole."""
        try:
            self._got += self.secure.recv(_READ)
        except ssl.SSLWantReadError:
            return False
        if not self._length:
            end = self._got.find(_HEADER_END)
            if end < 0:
                if not self._got:
                    raise WrongAnswer("the server hung up")
                return False
            if self._got[9:12] != self._expected:
                raise WrongAnswer(self._got.decode("latin-1"))
            start = self._got.lower().find(_LENGTH, 0, end + 2) + len(_LENGTH)
            self._length = end + len(_HEADER_END) + int(self._got[start : self._got.index(b"\r", start)])
        if len(self._got) < self._length:
            return False
        self.body = self._got[self._got.index(_HEADER_END) + len(_HEADER_END) :]
        return True
