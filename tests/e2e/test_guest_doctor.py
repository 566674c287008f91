"""``kms guest doctor`` and the way to the server: every step with a fault of its own, on real sockets."""

import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from kms.encoding import b64url
from kms.guest.config import GuestConfig
from kms.guest.doctor import Finding, Status
from kms.guest.doctor.network import STEPS, way_to_server
from kms.keys.hand_over import hand_overs
from kms.keys.identity import Identity
from kms.simulator.chip import SimulatedChip, simulated_chip_id
from kms.simulator.firmware import build_firmware
from kms.simulator.hierarchy import AmdHierarchy
from kms.simulator.machine import SimulatedMachine, describe
from kms.simulator.tsm_fuse import Faults
from kms.snp.product import Product
from tests.certificates import SERVER, Authority, pem, write
from tests.conformance.own_server import Server
from tests.simulated_tsm import needs_fuse, simulated_tsm

pytestmark = pytest.mark.enable_socket

OURS, THEIRS = Identity.from_prf(b"\x01" * 64), Identity.from_prf(b"\x02" * 64)
NOW = datetime.now(UTC)
# Seconds for each step.
PATIENCE = 30.0  # with servers that answer: more than they need on a machine that is busy
SHORT = 2.0  # with those that never do
AT_MOST = 15.0  # in all; shorter than what drips here


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("ca", now=NOW)


@pytest.fixture(scope="module")
def ca(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("doctor") / "ca.pem"
    path.write_text(pem(authority.certificate))
    return path


@dataclass
class Answers:
    """What a server says that is none of ours."""

    identity: dict[str, Any] = field(
        default_factory=lambda: {"identity": b64url(OURS.public_key), "previous": []}
    )
    ready: tuple[int, dict[str, Any]] = (200, {"status": "ready", "development": False})
    date: str = format_datetime(NOW, usegmt=True)

    def __call__(self, connection: socket.socket) -> None:
        """Answer one request after the other, as long as the connection is kept."""
        with connection.makefile("rb") as reader:
            while first := reader.readline():
                while reader.readline().strip():
                    pass
                status, body = self.ready if b" /readyz " in first else (200, self.identity)
                text = json.dumps(body).encode()
                head = f"HTTP/1.1 {status} x\r\nDate: {self.date}\r\nContent-Length: {len(text)}\r\n\r\n"
                connection.sendall(head.encode() + text)


@contextmanager
def listening(behave: Callable[[socket.socket], None], tls: ssl.SSLContext | None) -> Iterator[int]:
    """Let a server on this machine treat each connection as told; give its port."""

    def serve(plain: socket.socket) -> None:
        with plain, suppress(OSError):  # the client goes when it has seen enough
            plain.settimeout(60)
            if tls is None:
                behave(plain)
            else:
                with tls.wrap_socket(plain, server_side=True) as connection:
                    behave(connection)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                thread = threading.Thread(target=serve, args=(connection,))
                threads.append(thread)
                thread.start()

    threads: list[threading.Thread] = []
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for thread in threads:
                thread.join()


def context_of(authority: Authority, folder: Path, *, life: timedelta = timedelta(days=1)) -> ssl.SSLContext:
    issued = write(folder, "server", authority.issue("kms", usages=[SERVER], life=life))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(issued)
    return context


def drip(connection: socket.socket, start: bytes) -> None:
    """Send a byte ten times a second, for longer than anybody waits here."""
    connection.sendall(start)
    for _ in range(200):
        time.sleep(0.1)
        connection.sendall(b"x")


def go(
    port: int, ca: Path, *, host: str = "127.0.0.1", within: float = PATIENCE, **changes: Any
) -> dict[str, Finding]:
    """Go the way; in time, whatever happens."""
    now = changes.pop("now", time.time)
    config = GuestConfig(server=f"https://{host}:{port}", ca=ca, **({"identity": OURS.public_key} | changes))
    began = time.monotonic()
    found = way_to_server(config, now=now, within=within)
    assert time.monotonic() - began < AT_MOST, "a step took longer than it may"
    assert tuple(each.name for each in found) == STEPS, "every step is told, in order"
    return {each.name: each for each in found}


def first_failure(found: dict[str, Finding]) -> Finding:
    """Give what failed; the steps before it went well, those after it were not made."""
    names = [name for name in STEPS if found[name].status is not Status.OK]
    assert all(found[name].status is Status.UNKNOWN for name in names[1:])
    assert found[names[0]].failed
    assert found[names[0]].remedy
    return found[names[0]]


class TestBeforeAnAnswer:
    def test_nobody_listens(self, ca: Path) -> None:
        with closing(socket.socket()) as unused:
            unused.bind(("127.0.0.1", 0))
            failure = first_failure(go(unused.getsockname()[1], ca))
        assert failure.name == "server-connect"
        assert "refused" in failure.detail

    def test_connections_are_not_taken(self, ca: Path) -> None:
        """As behind a firewall that drops: the queue of the listener is full, and nobody empties it."""
        with closing(socket.socket()) as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            with closing(socket.create_connection(listener.getsockname())):
                failure = first_failure(go(listener.getsockname()[1], ca, within=SHORT))
        assert failure.name == "server-connect"
        assert "no connection within 2 s" in failure.detail

    @pytest.mark.parametrize("start", [b"", b"\x16\x03\x03\x40\x00"])
    def test_a_handshake_that_drips(self, ca: Path, start: bytes) -> None:
        def behave(connection: socket.socket) -> None:
            if start:
                drip(connection, start)
            else:
                while connection.recv(4096):
                    pass

        with listening(behave, None) as port:
            failure = first_failure(go(port, ca, within=SHORT))
        assert failure.name == "server-tls"
        assert "no TLS handshake within 2 s" in failure.detail

    def test_a_server_without_tls(self, ca: Path) -> None:
        with listening(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad\r\n\r\n"), None) as port:
            failure = first_failure(go(port, ca))
        assert failure.name == "server-tls"
        assert "HTTPS" in failure.remedy

    def test_another_authority(self, ca: Path, tmp_path: Path) -> None:
        with listening(Answers(), context_of(Authority("other", now=NOW), tmp_path)) as port:
            failure = first_failure(go(port, ca))
        assert failure.name == "server-tls"
        assert "CA file" in failure.remedy

    def test_another_name(self, authority: Authority, ca: Path, tmp_path: Path) -> None:
        with listening(Answers(), context_of(authority, tmp_path)) as port:
            failure = first_failure(go(port, ca, host="localhost"))
        assert failure.name == "server-tls"
        assert "KMS_TLS_NAMES" in failure.remedy

    def test_a_certificate_that_ended_asks_for_the_clock(
        self, authority: Authority, ca: Path, tmp_path: Path
    ) -> None:
        with listening(Answers(), context_of(authority, tmp_path, life=timedelta(days=-1))) as port:
            failure = first_failure(go(port, ca, now=lambda: 0.0))
        assert failure.name == "server-tls"
        assert failure.remedy == "is this machine's clock right? It shows 1970-01-01 00:00 UTC"


class TestAnswers:
    @pytest.fixture
    def tls(self, authority: Authority, tmp_path: Path) -> ssl.SSLContext:
        return context_of(authority, tmp_path)

    @pytest.mark.parametrize(
        "start", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n", b""]
    )
    def test_an_answer_that_drips(self, ca: Path, tls: ssl.SSLContext, start: bytes) -> None:
        with listening(lambda connection: drip(connection, start), tls) as port:
            failure = first_failure(go(port, ca, within=SHORT))
        assert failure.name == "server-identity"

    def test_an_answer_without_end(self, ca: Path, tls: ssl.SSLContext) -> None:
        def behave(connection: socket.socket) -> None:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + bytes(4 << 20))

        with listening(behave, tls) as port:
            failure = first_failure(go(port, ca))
        assert failure.detail == "GET /v1/identity: an answer without end"

    def test_an_impostor_of_the_same_authority(self, ca: Path, tls: ssl.SSLContext) -> None:
        impostor = Answers({"identity": b64url(THEIRS.public_key), "previous": []})
        with listening(impostor, tls) as port:
            found = go(port, ca)
        assert [name for name, each in found.items() if each.failed] == ["server-identity"]
        assert b64url(THEIRS.public_key) in found["server-identity"].detail

    def test_a_hand_over_leads_to_the_new_identity_and_not_back(self, ca: Path, tls: ssl.SSLContext) -> None:
        signed = [each.to_json() for each in hand_overs([OURS, THEIRS], [NOW])]
        handed_over = Answers({"identity": b64url(THEIRS.public_key), "previous": signed})
        with listening(handed_over, tls) as port:
            assert go(port, ca)["server-identity"].status is Status.WARNING
            assert go(port, ca, identity=b"\x03" * 32)["server-identity"].failed
        stayed = Answers({"identity": b64url(OURS.public_key), "previous": signed})
        with listening(stayed, tls) as port:
            assert go(port, ca, identity=THEIRS.public_key)["server-identity"].failed

    def test_no_pin_is_a_warning(self, ca: Path, tls: ssl.SSLContext) -> None:
        with listening(Answers(), tls) as port:
            assert go(port, ca, identity=None)["server-identity"].status is Status.WARNING

    @pytest.mark.parametrize("identity", [{}, {"identity": "AA", "previous": [1]}, {"identity": 1}])
    def test_something_else_than_a_kms(self, ca: Path, tls: ssl.SSLContext, identity: dict[str, Any]) -> None:
        with listening(Answers(identity), tls) as port:
            assert go(port, ca)["server-identity"].failed

    def test_a_server_that_is_not_ready_says_why(self, ca: Path, tls: ssl.SSLContext) -> None:
        problem = {"code": "not-ready", "reasons": ["root-unavailable", "\x1b[2J"]}
        with listening(Answers(ready=(503, problem)), tls) as port:
            found = go(port, ca)["server-ready"]
        assert found.detail == "GET /readyz: 503 not-ready (root-unavailable)"
        assert found.failed

    def test_a_server_of_developers(self, ca: Path, tls: ssl.SSLContext) -> None:
        with listening(Answers(ready=(200, {"development": True})), tls) as port:
            assert go(port, ca)["server-ready"].status is Status.WARNING

    @pytest.mark.parametrize(
        ("ahead", "status"), [(0, Status.OK), (50, Status.OK), (90, Status.WARNING), (-90, Status.WARNING)]
    )
    def test_clocks_that_differ(self, ca: Path, tls: ssl.SSLContext, ahead: int, status: Status) -> None:
        with listening(Answers(), tls) as port:
            found = go(port, ca, now=lambda: NOW.timestamp() - ahead)
        assert found["server-clock"].status is status

    @pytest.mark.parametrize("date", ["yesterday", "Sun, 06 Nov 99999 08:49:37 GMT", ""])
    def test_a_server_without_a_clock(self, ca: Path, tls: ssl.SSLContext, date: str) -> None:
        with listening(Answers(date=date), tls) as port:
            assert go(port, ca)["server-clock"].status is Status.UNKNOWN


WORKLOAD = b"services: {}\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("doctor")
    (folder / "policy").mkdir()
    (folder / "policy" / "revoked.yaml").write_text("kind: revoked\nname: none\n", encoding="utf-8")
    with Server(folder / "data", {"KMS_POLICY_DIR": str(folder / "policy")}) as server:
        yield server


@pytest.fixture(scope="module")
def document() -> bytes:
    compose_hash = sha256(WORKLOAD).hexdigest()
    return json.dumps({"version": 1, "app_id": "a1" * 20, "compose_hash": compose_hash}).encode()


@pytest.fixture(scope="module")
def machine(document: bytes) -> SimulatedMachine:
    # 2048 bits: nothing but the time to make them differs.
    hierarchy = AmdHierarchy.generate(Product.MILAN, now=NOW, rsa_bits=2048)
    chip = SimulatedChip.typical(hierarchy, chip_id=simulated_chip_id(Product.MILAN, b"d"), now=NOW)
    description = describe(firmware=build_firmware(seed=b"doctor"), kernel=b"kernel")
    return SimulatedMachine.launch(chip, description, app_document=document)


@pytest.mark.slow
@needs_fuse
class TestWhole:
    """The command, a real server, and a SIMULATED configfs-tsm behind real system calls."""

    @pytest.fixture
    def examine(self, server: Server, document: bytes, tmp_path: Path) -> Callable[[], dict[str, Any]]:
        """Run the command on a guest of this server; give each check by its name."""
        (tmp_path / "app.json").write_bytes(document)
        (tmp_path / "workload").write_bytes(WORKLOAD)
        config = tmp_path / "guest.toml"
        config.write_text(
            f'server = "{server.url}"\nca = "{server.ca}"\n'
            f'identity = "{identity_of(server)}"\n'
            f'app_document = "{tmp_path / "app.json"}"\nworkload = "{tmp_path / "workload"}"\n'
            f'[evidence]\ntsm = "{tmp_path / "tsm"}"\n'
        )

        def run() -> dict[str, Any]:
            command = [sys.executable, "-m", "kms", "guest", "doctor", "--json", "--config", str(config)]
            done = subprocess.run(command, capture_output=True, timeout=60, check=False)
            assert not done.stderr
            answer = json.loads(done.stdout)
            failures = [each for each in answer["checks"] if each["status"] == "failed"]
            assert answer["healthy"] is not bool(failures)
            assert done.returncode == (1 if failures else 0)
            return {each["name"]: each for each in answer["checks"]}

        return run

    def test_all_that_is_not_this_test_machine_is_well(
        self, examine: Callable[[], dict[str, Any]], machine: SimulatedMachine, tmp_path: Path
    ) -> None:
        with simulated_tsm(tmp_path / "tsm", machine) as tsm:
            found = examine()
            assert tsm.entries == ()
        parts = ("configuration", "configfs-tsm", "left-behind", "evidence", "app-document", "workload")
        assert {name: found[name]["status"] for name in (*parts, *STEPS)} == dict.fromkeys(
            (*parts, *STEPS), "ok"
        )
        assert machine.guest.measurement.hex() in found["evidence"]["detail"]

    @pytest.mark.parametrize(
        ("faults", "reason"),
        [
            (Faults(provider="tdx_guest"), "tsm-provider"),
            (Faults(generation_step=2), "tsm-generation"),
            (Faults(cut=100), "report-malformed"),
            (Faults(other_report_data=True), "report-data-mismatch"),
            (Faults(deny_mkdir=True), "tsm-not-permitted"),
        ],
    )
    def test_hardware_with_a_fault(
        self,
        examine: Callable[[], dict[str, Any]],
        machine: SimulatedMachine,
        tmp_path: Path,
        faults: Faults,
        reason: str,
    ) -> None:
        with simulated_tsm(tmp_path / "tsm", machine, faults) as tsm:
            found = examine()
            assert tsm.entries == ()
        assert found["evidence"]["status"] == "failed"
        assert reason in found["evidence"]["detail"]
        assert found["app-document"]["status"] == found["workload"]["status"] == "unknown"
        assert found["server-ready"]["status"] == "ok"

    def test_another_document_and_another_workload(
        self, examine: Callable[[], dict[str, Any]], machine: SimulatedMachine, tmp_path: Path
    ) -> None:
        with simulated_tsm(tmp_path / "tsm", machine):
            (tmp_path / "workload").write_bytes(b"evil")
            assert examine()["workload"]["status"] == "failed"
            (tmp_path / "app.json").write_bytes(b"{}")
            assert examine()["app-document"]["status"] == "failed"


def identity_of(server: Server) -> str:
    with closing(server.client()) as client:
        return b64url(client.identity)
