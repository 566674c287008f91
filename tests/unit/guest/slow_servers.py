"""Servers on 127.0.0.1 that keep a client waiting in one phase of an exchange, over genuine TLS."""

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import TypeAlias

PACE = 0.1  # seconds between two bytes
CHALLENGE = json.dumps({"challenge": "AAAA"}).encode()

Serve: TypeAlias = Callable[[socket.socket, ssl.SSLContext, threading.Event], None]
"""What is done with a connection; the event is set once the client waits as it is meant to."""


@contextmanager
def serving(serve: Serve, tls: ssl.SSLContext, *, waiting: threading.Event | None = None) -> Iterator[str]:
    """Let `serve` do as it likes with each connection, in a thread of its own; give the server's URL."""
    stopped, waiting = threading.Event(), waiting or threading.Event()
    threads: list[threading.Thread] = []

    def one(connection: socket.socket) -> None:
        # Whoever leaves a server in the middle resets the connection.
        with closing(connection), suppress(OSError):
            connection.settimeout(60)
            serve(connection, tls, waiting)

    def accept() -> None:
        while not stopped.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                continue
            threads.append(threading.Thread(target=one, args=(connection,)))
            threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            stopped.set()
            accepting.join()
            for thread in threads:
                thread.join()


def drip(send: Callable[[bytes], object], text: bytes, waiting: threading.Event) -> None:
    for byte in text:
        send(bytes([byte]))
        waiting.set()
        time.sleep(PACE)


def drip_handshake(connection: socket.socket, tls: ssl.SSLContext, waiting: threading.Event) -> None:
    """A genuine handshake, a byte at a time."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = tls.wrap_bio(incoming, outgoing, server_side=True)
    incoming.write(connection.recv(65536))
    with suppress(ssl.SSLWantReadError):
        server.do_handshake()
    drip(connection.sendall, outgoing.read(), waiting)


def after_handshake(text: bytes) -> Serve:
    def serve(connection: socket.socket, tls: ssl.SSLContext, waiting: threading.Event) -> None:
        with closing(tls.wrap_socket(connection, server_side=True)) as server:
            server.recv(65536)
            drip(server.sendall, text, waiting)

    return serve


def silent(connection: socket.socket, _: ssl.SSLContext, waiting: threading.Event) -> None:
    while connection.recv(65536):
        waiting.set()


def silent_after_handshake(connection: socket.socket, tls: ssl.SSLContext, waiting: threading.Event) -> None:
    with closing(tls.wrap_socket(connection, server_side=True)) as server:
        while server.recv(65536):
            waiting.set()


def endless_continue(connection: socket.socket, tls: ssl.SSLContext, waiting: threading.Event) -> None:
    with closing(tls.wrap_socket(connection, server_side=True)) as server:
        while True:
            server.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)
            waiting.set()


def answer_once(
    connection: socket.socket, tls: ssl.SSLContext, _: threading.Event, *, status: str = "201 Created"
) -> None:
    """Answer, and close without a word before."""
    with closing(tls.wrap_socket(connection, server_side=True)) as server:
        # Whole, with the body of a POST: who closes with something unread resets the connection.
        request = server.recv(65536)
        while not request.endswith(b"{}" if request.startswith(b"POST") else b"\r\n\r\n"):
            more = server.recv(65536)
            if not more:
                return
            request += more
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(CHALLENGE)}\r\n\r\n"
        server.sendall(head.encode() + CHALLENGE)
