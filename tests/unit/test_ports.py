"""Ports of servers that are started again on them."""

import socket
from contextlib import closing
from pathlib import Path

import pytest

from tests.servers import ports

pytestmark = pytest.mark.enable_socket


def test_no_client_is_given_one_of_them() -> None:
    ephemeral = Path("/proc/sys/net/ipv4/ip_local_port_range")
    first = int(ephemeral.read_text().split()[0]) if ephemeral.exists() else 32_768
    assert all(1024 < ports.free_port() < first for _ in range(100))


def test_one_that_somebody_has_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(socket.create_server(("127.0.0.1", ports.free_port()))) as server:
        taken = server.getsockname()[1]
        free = ports.free_port()
        drawn = iter([taken - ports._FIRST, free - ports._FIRST])
        monkeypatch.setattr("tests.servers.ports.secrets.randbelow", lambda _: next(drawn))
        assert ports.free_port() == free
