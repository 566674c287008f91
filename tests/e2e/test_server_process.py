"""What only a real process shows: connections that wait, signals, and two starts at once."""

import json
import resource
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import httpx2
import pytest

from tests.conformance.own_server import Server, refuse_to_start

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A policy that allows nobody."""
    folder = tmp_path_factory.mktemp("policies")
    (folder / "revoked.yaml").write_text("kind: revoked\nname: none\n", encoding="utf-8")
    return {"KMS_POLICY_DIR": str(folder)}


@pytest.fixture(scope="module")
def server(settings: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("process") / "data", settings) as server:
        yield server
    assert "Traceback" not in server.log_text()


def trust(server: Server) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(server.ca))


def connect(server: Server, timeout: float = 30.0) -> ssl.SSLSocket:
    plain = socket.create_connection(("127.0.0.1", server.port), timeout)
    return trust(server).wrap_socket(plain, server_hostname="127.0.0.1")


def status_of(server: Server, path: str) -> int:
    return httpx2.get(server.url + path, verify=trust(server), trust_env=False, timeout=10).status_code


def read_to_end(connection: socket.socket) -> bytes:
    received = b""
    try:
        while chunk := connection.recv(65536):
            received += chunk
    except (ConnectionError, ssl.SSLError):
        pass
    return received


def drip(connection: socket.socket, piece: bytes) -> tuple[bytes, float]:
    """Send a byte twice a second until the server has enough; give what it said, and after how long."""
    began = time.monotonic()
    connection.settimeout(0.5)
    while time.monotonic() - began < 40:
        try:
            if piece:
                connection.sendall(piece)
            first = connection.recv(65536)
        except TimeoutError:
            continue
        except (ConnectionError, ssl.SSLError):
            first = b""
        connection.settimeout(5)
        return first + (read_to_end(connection) if first else b""), time.monotonic() - began
    raise AssertionError("the server waits for ever")


class TestConnections:
    def test_lesson_37_idle_connections_lock_nobody_out(
        self, settings: dict[str, str], tmp_path: Path
    ) -> None:
        """More than the server has places for; each newcomer is served all the same."""
        server = Server(tmp_path / "data", settings)
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (400, 400))
        with server, ExitStack() as stack:
            for number in range(600):
                if number % 4:
                    connection = socket.create_connection(("127.0.0.1", server.port), 5)
                else:
                    connection = connect(server, 5)
                stack.enter_context(closing(connection))
                if number % 100 == 99:
                    assert status_of(server, "/readyz") == 200
            assert len(list(Path(f"/proc/{server.process.pid}/fd").iterdir())) < 400

    def test_lesson_37_slow_senders_are_not_waited_for(self, server: Server) -> None:
        """No TLS, a request without an end, a body without an end: each has its deadline, side by side."""
        request = b"POST /v1/releases HTTP/1.1\r\nHost: kms\r\nContent-Length: 1000\r\n\r\n"
        answers: dict[str, tuple[bytes, float]] = {}

        def run(name: str, connection: socket.socket, start: bytes, piece: bytes) -> None:
            with closing(connection):
                if start:
                    connection.sendall(start)
                answers[name] = drip(connection, piece)

        cases = [
            ("silent", socket.create_connection(("127.0.0.1", server.port)), b"", b""),
            ("no request", connect(server), b"", b"\r\n"),
            ("header", connect(server), b"GET /healthz HTTP/1.1\r\nX: ", b"x"),
            ("second header", connect(server), b"GET /healthz HTTP/1.1\r\nHost: k\r\n\r\n", b""),
            ("body", connect(server), request, b" "),
        ]
        # The second request of a connection has the same deadline as the first.
        second, answered = cases[3][1], b""
        second.sendall(cases[3][2])
        while b"}" not in answered:
            answered += second.recv(65536)
        cases[3] = ("second header", second, b"GET /healthz HTTP/1.1\r\nX: ", b"x")
        threads = [threading.Thread(target=run, args=case) for case in cases]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert set(answers) == {case[0] for case in cases}
        for name in ("silent", "no request", "header", "second header"):
            answer, seconds = answers[name]
            assert answer == b"", name
            assert 8 < seconds < 14, (name, seconds)
        answer, seconds = answers["body"]
        assert 13 < seconds < 19
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400")
        assert json.loads(body)["reasons"] == ["body-too-slow"]

    @pytest.mark.parametrize(
        "sent",
        [b"nonsense\r\n\r\n", b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 300_000, b"GET \xff HTTP/1.1\r\n\r\n"],
    )
    def test_what_is_not_http_gets_a_problem_document(self, server: Server, sent: bytes) -> None:
        with closing(connect(server)) as connection:
            connection.sendall(sent)
            head, _, body = read_to_end(connection).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert b"content-type: application/problem+json" in head
        assert json.loads(body)["code"] == "malformed-request"
        assert json.loads(body)["request_id"].encode() in head

    def test_trailers_and_ignored_bodies_do_no_harm(self, server: Server) -> None:
        with closing(connect(server)) as connection:
            connection.sendall(
                b"POST /v1/challenges HTTP/1.1\r\nHost: k\r\nTransfer-Encoding: chunked\r\n\r\n"
                b"3\r\nabc\r\n0\r\nA: b\r\n\r\nGET /healthz HTTP/1.1\r\nHost: k\r\nConnection: close\r\n\r\n"
            )
            answers = read_to_end(connection)
        assert b"HTTP/1.1 201" in answers
        assert b"HTTP/1.1 200" in answers

    def test_those_who_hang_up_leave_nothing_behind(self, server: Server) -> None:
        def descriptors() -> int:
            return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))

        before = descriptors()
        for number in range(200):
            connection = socket.create_connection(("127.0.0.1", server.port), 5)
            if number % 2:
                connection.sendall(b"GET / HTTP/1.1\r\n\r\n")  # no TLS
            connection.close()
        deadline = time.monotonic() + 5
        while descriptors() > before + 5 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert descriptors() <= before + 5


class TestSignals:
    @pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT])
    def test_what_was_begun_ends_well(
        self, settings: dict[str, str], tmp_path: Path, told: signal.Signals
    ) -> None:
        with Server(tmp_path / "data", settings) as server, closing(connect(server)) as idle:
            idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: k\r\n\r\n")
            assert b"200 OK" in idle.recv(65536)
            with closing(connect(server)) as begun:
                begun.sendall(b"POST /v1/releases HTTP/1.1\r\nHost: k\r\nContent-Length: 10\r\n\r\n{")
                time.sleep(0.3)
                server.process.send_signal(told)
                time.sleep(0.5)
                with pytest.raises(ConnectionError):
                    socket.create_connection(("127.0.0.1", server.port), 5)
                assert server.alive()
                begun.sendall(b"}        ")
                answer = read_to_end(begun)
            assert b"HTTP/1.1 400" in answer
            assert b"malformed-request" in answer
            assert server.process.wait(10) == 0
            assert '"stopped"' in server.log_text()
            assert "Traceback" not in server.log_text()


class TestStart:
    @pytest.mark.parametrize("attempt", range(5))
    def test_two_at_once_on_one_folder_share_one_root(
        self, settings: dict[str, str], tmp_path: Path, attempt: int
    ) -> None:
        servers = [Server(tmp_path / "data", settings) for _ in range(2)]
        try:
            for server in servers:
                server.wait_until_ready()
            identities = [
                httpx2.get(f"{server.url}/v1/identity", verify=trust(server), trust_env=False).json()
                for server in servers
            ]
            assert identities[0] == identities[1], attempt
            for server in servers:
                server.stop()
        finally:
            for server in servers:
                server.kill()
        assert {server.process.returncode for server in servers} == {0}
        assert "Traceback" not in servers[0].log_text()

    def test_a_broken_policy_leaves_nothing_behind(self, settings: dict[str, str], tmp_path: Path) -> None:
        (tmp_path / "broken").mkdir()
        (tmp_path / "broken" / "app.yaml").write_text("kind: [", encoding="utf-8")
        refuse_to_start(tmp_path / "data", {**settings, "KMS_POLICY_DIR": "broken"})
        assert not (tmp_path / "data").exists()

    def test_an_address_of_metrics_that_is_taken_is_said(
        self, settings: dict[str, str], tmp_path: Path
    ) -> None:
        """Before anything is made: nobody would notice that the server is not watched."""
        with closing(socket.create_server(("127.0.0.1", 0))) as taken:
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            said = refuse_to_start(tmp_path / "data", {**settings, "KMS_METRICS_LISTEN": address})
        assert f"cannot serve metrics on {address}" in said
        assert "KMS_METRICS_LISTEN" in said
        assert not (tmp_path / "data").exists()

    def test_the_cas_certificate_can_be_handed_out(self, server: Server) -> None:
        assert server.ca.stat().st_mode & 0o777 == 0o644
