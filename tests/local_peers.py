"""Processes of other users that connect to Unix sockets of this machine, for tests."""

import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

SOMEBODY: Final = 61234  # a user and a group of nobody's
needs_root: Final = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@contextmanager
def open_folder() -> Iterator[Path]:
    """Give a folder that every user can enter; pytest's own are for one user."""
    with tempfile.TemporaryDirectory(prefix="kms-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def connect(path: Path, name: bytes | None = None) -> socket.socket:
    """Connect as systemd does, from a socket that is bound to an abstract name."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(60)
        if name is not None:
            connection.bind(b"\0" + name)
        connection.connect(str(path))
    except BaseException:
        connection.close()
        raise
    return connection


def read_all(connection: socket.socket) -> bytes:
    """Read until the end."""
    received = b""
    while part := connection.recv(65536):
        received += part
    return received


def in_child(work: Callable[[], object], *, uid: int, groups: tuple[int, ...] = ()) -> int:
    """Do something as another user, in a process of its own; give its exit status."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgroups(groups)
            os.setgid(uid)
            os.setuid(uid)
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
