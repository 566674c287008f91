"""The HTTP side of the SIMULATED key distribution service, and the faults of its connections.

The standard library's server, one thread for each connection: it stands some hundred clients at once, and a
thread can do to its connection what no framework would.
"""

import contextlib
import itertools
import socket
import socketserver
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from typing_extensions import override

from kms.simulator.kds_faults import Faults
from kms.simulator.kds_log import RequestLog
from kms.simulator.kds_replies import Replies, Reply
from kms.snp.kds_paths import Wanted, parse_path

SIMULATION_HEADER: Final = "KDS-Simulation"

_BACKLOG: Final = 1024  # a rack's guests come at once
_POLL: Final = 0.05  # seconds until a stop is noticed
_PIECE: Final = 1 << 16
_DRIPS: Final = 10  # pieces a second of a body that drips
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 seconds: close() sends RST


class KdsServer(socketserver.ThreadingTCPServer):
    """Listens on a free port of 127.0.0.1. `faults` is asked anew for every request."""

    # So that a stop waits for every connection, and nothing of one test reaches the next.
    daemon_threads = False
    block_on_close = True
    allow_reuse_address = True
    request_queue_size = _BACKLOG

    def __init__(self, replies: Replies, log: RequestLog, faults: Callable[[], Faults]) -> None:
        self.replies = replies
        self.log = log
        self.faults = faults
        self.defect: BaseException | None = None
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._reset: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(_POLL,), daemon=True)

    @property
    def port(self) -> int:
        """The port it listens on."""
        port: int = self.socket.getsockname()[1]
        return port

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stop answering, end every connection, and wait until each is over."""
        self._stopping.set()
        self.shutdown()
        self._thread.join()
        with self._lock:
            for connection in self._open:
                # Its thread may be waiting for the client: now both sides read the end.
                _shut(connection)
        self.server_close()

    def pause(self, seconds: float) -> None:
        """Wait; when the server stops, as if the client had left."""
        if self._stopping.wait(seconds):
            raise ConnectionAbortedError("the simulated KDS stops")

    def reset(self, connection: socket.socket) -> None:
        """Have a connection end with RST, as from a host that is gone."""
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        with self._lock:
            self._reset.add(connection)

    @override
    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        with self._lock:
            self._open.add(connection)
        return connection, address

    @override
    def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        if not isinstance(request, socket.socket):
            return
        with self._lock:
            self._open.discard(request)
            polite = request not in self._reset
            self._reset.discard(request)
        if polite:
            _shut(request)
        self.close_request(request)

    @override
    def handle_error(
        self, request: socket.socket | tuple[bytes, socket.socket], client_address: object
    ) -> None:
        error = sys.exception()
        # A client that left is none of ours; anything else is a defect of the simulation.
        if not isinstance(error, OSError):
            self.defect = self.defect or error


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "SimulatedKDS"
    sys_version = ""
    # Head and body are two writes: with Nagle's algorithm the second waits for the client's delayed ACK.
    disable_nagle_algorithm = True
    server: KdsServer

    def do_GET(self) -> None:
        server, faults = self.server, self.server.faults()
        wanted = _wanted(self.path)
        number = server.log.arrived(self.path, wanted)
        if faults.latency:
            server.pause(faults.latency)
        if faults.down:
            self.close_connection = True
            server.reset(self.connection)
            return
        reply = server.replies.to(wanted, faults)
        # Noted before the last byte: who has the answer can count on it being counted.
        server.log.answered(number, reply.status, genuine=reply.genuine)
        try:
            self._send_head(reply, endless=faults.oversized and reply.status == 200)
            self._send_body(reply, faults)
        except OSError:
            server.log.answered(number, reply.status, genuine=False)
            raise

    def _send_head(self, reply: Reply, *, endless: bool) -> None:
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.document.content_type)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if endless:
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(len(reply.document.body)))
        self.end_headers()

    def _send_body(self, reply: Reply, faults: Faults) -> None:
        body: Iterator[bytes] = iter([reply.document.body])
        if reply.status == 200 and faults.oversized:
            body = itertools.repeat(bytes(_PIECE))
        elif reply.status == 200 and faults.cut:
            body = iter([reply.document.body[: len(reply.document.body) // 2]])
            self.close_connection = True
        for piece in body:
            if faults.drip is None:
                self.wfile.write(piece)
            else:
                self._drip(piece, faults.drip)

    def _drip(self, piece: bytes, rate: float) -> None:
        length = max(1, int(rate / _DRIPS))
        for start in range(0, len(piece), length):
            self.server.pause(length / rate)
            self.wfile.write(piece[start : start + length])

    @override
    def end_headers(self) -> None:
        self.send_header(SIMULATION_HEADER, "true")
        super().end_headers()

    @override
    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: the log is for whoever asks."""


def _wanted(target: str) -> Wanted | None:
    try:
        url = urlsplit(target)
        pairs = parse_qsl(url.query, keep_blank_values=True)
    except ValueError:
        return None
    query = dict(pairs)
    return parse_path(url.path, query) if len(query) == len(pairs) else None


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the client was faster
        connection.shutdown(socket.SHUT_RDWR)
