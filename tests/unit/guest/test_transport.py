"""A fetch ends at its deadline, in every phase of an exchange and whatever the server does there."""

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from kms.errors import ConfigurationError
from kms.guest import patience, sockets
from kms.guest.client import KeyClient
from kms.guest.errors import Refused, ServerUnreachable, ServerUntrusted
from kms.guest.transport import Connection, NoAnswer
from kms.simulator.machine import SimulatedMachine
from tests.certificates import Authority, pem
from tests.unit.guest.conftest import DISK, FakeKms
from tests.unit.guest.slow_servers import (
    CHALLENGE,
    Serve,
    after_handshake,
    answer_once,
    drip_handshake,
    endless_continue,
    serving,
    silent,
    silent_after_handshake,
)

pytestmark = pytest.mark.enable_socket

DEADLINE = 3.0  # seconds; a handshake fits into it on a machine that is busy
AT_MOST = 8.0
KEPT_WAITING = 300  # bytes that drip: far longer than that


@contextmanager
def in_time() -> Iterator[None]:
    """What happens here ends soon after its deadline. That it is used: test_client.py, on a fake clock."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < AT_MOST


def key_client(
    url: str, ca: Path, machine: SimulatedMachine, *, deadline: float = DEADLINE, timeout: float = 60.0
) -> KeyClient:
    identity = FakeKms().identity.public_key
    return KeyClient(url, ca_file=ca, identity=identity, source=machine, deadline=deadline, timeout=timeout)


class TestTheDeadlineOfAWholeFetch:
    @pytest.mark.parametrize(
        ("serve", "why"),
        [
            pytest.param(silent, "handshake", id="no handshake"),
            pytest.param(drip_handshake, "handshake", id="a handshake that drips"),
            pytest.param(silent_after_handshake, "answer", id="no answer"),
            pytest.param(
                after_handshake(b"HTTP/1.1 201 " + b"x" * KEPT_WAITING), "answer", id="a status that drips"
            ),
            pytest.param(
                after_handshake(b"HTTP/1.1 201 Created\r\nX: " + b"x" * KEPT_WAITING),
                "answer",
                id="a header that drips",
            ),
            pytest.param(
                after_handshake(b"HTTP/1.1 201 Created\r\nContent-Length: 999\r\n\r\n" + b" " * KEPT_WAITING),
                "answer",
                id="a body that drips",
            ),
            pytest.param(endless_continue, "in time", id="interim answers without an end"),
        ],
    )
    def test_holds_against(
        self, machine: SimulatedMachine, ca: Path, server_tls: ssl.SSLContext, serve: Serve, why: str
    ) -> None:
        with (
            serving(serve, server_tls) as url,
            in_time(),
            pytest.raises(ServerUnreachable, match=why),
        ):
            key_client(url, ca, machine).fetch([DISK])

    def test_holds_where_nobody_takes_the_connection(self, machine: SimulatedMachine, ca: Path) -> None:
        with ExitStack() as stack:
            listener = stack.enter_context(closing(socket.socket()))
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            for _ in range(4):  # a full queue: the kernel answers nobody else
                waiting = stack.enter_context(closing(socket.socket()))
                waiting.setblocking(False)
                waiting.connect_ex(listener.getsockname())
            url = f"https://127.0.0.1:{listener.getsockname()[1]}"
            with (
                in_time(),
                pytest.raises(ServerUnreachable, match="no connection"),
            ):
                key_client(url, ca, machine).fetch([DISK])

    def test_holds_while_a_name_is_looked_up(
        self, machine: SimulatedMachine, ca: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        genuine, over = socket.getaddrinfo, threading.Event()

        def slow(host: str, port: int, *, type: int, flags: int) -> object:  # noqa: A002 - its name there
            if flags != socket.AI_NUMERICHOST:
                over.wait(30)
            return genuine(host, port, type=type, flags=flags)

        monkeypatch.setattr(socket, "getaddrinfo", slow)
        try:
            with (
                in_time(),
                pytest.raises(ServerUnreachable, match="no connection"),
            ):
                key_client("https://kms.invalid", ca, machine).fetch([DISK])
        finally:
            over.set()

    def test_holds_for_what_is_sent(self, ca: Path, server_tls: ssl.SSLContext) -> None:
        over = threading.Event()

        def takes_nothing(connection: socket.socket, tls: ssl.SSLContext, _: threading.Event) -> None:
            with closing(tls.wrap_socket(connection, server_side=True)):
                over.wait(30)

        with serving(takes_nothing, server_tls) as url, Connection(url, ca_file=ca, timeout=60) as connection:
            end = time.monotonic() + DEADLINE
            try:
                with in_time(), pytest.raises(NoAnswer, match="in time"):
                    connection.post("/", {"much": "x" * (16 << 20)}, remaining=lambda: end - time.monotonic())
            finally:
                over.set()


class TestOneExchange:
    def test_has_its_own_time_so_that_another_try_is_possible(
        self, machine: SimulatedMachine, ca: Path, server_tls: ssl.SSLContext
    ) -> None:
        """Behind a balancer the next server may be a better one."""
        servers = iter([drip_handshake])

        def serve(connection: socket.socket, tls: ssl.SSLContext, waiting: threading.Event) -> None:
            next(servers, partial(answer_once, status="403 Forbidden"))(connection, tls, waiting)

        with serving(serve, server_tls) as url, pytest.raises(Refused):
            key_client(url, ca, machine, deadline=60, timeout=2).fetch([DISK])

    def test_is_not_asked_without_time(self, ca: Path, server_tls: ssl.SSLContext) -> None:
        with (
            serving(answer_once, server_tls) as url,
            Connection(url, ca_file=ca, timeout=60) as connection,
            pytest.raises(NoAnswer, match="no time remains"),
        ):
            connection.get("/", remaining=lambda: 0.0)

    def test_is_answered(self, ca: Path, server_tls: ssl.SSLContext) -> None:
        with serving(answer_once, server_tls) as url, Connection(url, ca_file=ca, timeout=60) as connection:
            got = connection.post("/v1/challenges", {}, remaining=lambda: 60.0)
        assert (got.status, got.body) == (201, CHALLENGE)

    def test_a_connection_that_the_server_closed_is_opened_anew(
        self, ca: Path, server_tls: ssl.SSLContext
    ) -> None:
        closed = threading.Event()

        def serve(connection: socket.socket, tls: ssl.SSLContext, waiting: threading.Event) -> None:
            answer_once(connection, tls, waiting)
            closed.set()

        with serving(serve, server_tls) as url, Connection(url, ca_file=ca, timeout=60) as connection:
            for _ in range(3):
                assert connection.get("/", remaining=lambda: 60.0).status == 201
                assert closed.wait(30)
                closed.clear()

    def test_a_name_is_tried_at_each_of_its_addresses(
        self, ca: Path, server_tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with (
            serving(answer_once, server_tls) as url,
            closing(socket.create_server(("127.0.0.1", 0))) as other,
        ):
            free = other.getsockname()
            other.close()
            port = int(url.rpartition(":")[2])
            found = [
                (socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in (free, ("127.0.0.1", port))
            ]
            monkeypatch.setattr(sockets, "_resolve", lambda *_: found)
            with Connection(url, ca_file=ca, timeout=60) as connection:
                assert connection.get("/", remaining=lambda: 60.0).status == 201

    def test_a_certificate_of_another_ca_ends_it(
        self, machine: SimulatedMachine, server_tls: ssl.SSLContext, tmp_path: Path
    ) -> None:
        other = tmp_path / "other.pem"
        other.write_text(pem(Authority("Guest test CA", now=datetime.now(UTC)).certificate))
        with serving(answer_once, server_tls) as url, pytest.raises(ServerUntrusted):
            key_client(url, other, machine, deadline=60).fetch([DISK])

    def test_a_name_that_nobody_has(self, ca: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def unknown(*_: object, **__: object) -> object:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", unknown)
        with (
            Connection("https://kms.invalid", ca_file=ca, timeout=9) as connection,
            pytest.raises(NoAnswer, match="not known"),
        ):
            connection.get("/", remaining=lambda: 9.0)


def test_a_stopped_fetch_has_no_time_left(ca: Path) -> None:
    with Connection("https://127.0.0.1:1", ca_file=ca, timeout=9) as connection:
        server = patience.Patience(connection, deadline=60, stopped=lambda: True)
        with pytest.raises(ServerUnreachable, match="no time remains"):
            server.persist(lambda: server.get("/"))


def test_a_ca_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        Connection("https://kms", ca_file=tmp_path / "missing.pem", timeout=1)
