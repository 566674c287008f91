"""Ports on 127.0.0.1 for servers that tests start."""

import secrets
import socket
from contextlib import closing
from typing import Final

# Below those that systems give to clients (32768 on Linux, 49152 elsewhere): no connection takes the port of
# a server while that is down, to be started again on it.
_FIRST: Final = 20_000
_COUNT: Final = 10_000


def free_port() -> int:
    """Give a port that nobody has now."""
    while True:
        port = _FIRST + secrets.randbelow(_COUNT)
        with closing(socket.socket()) as probe:
            # As servers do: connections of one that has ended do not keep it.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
