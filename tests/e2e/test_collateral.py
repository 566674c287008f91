"""``kms collateral`` over real HTTP: a key distribution service that is asked, a mirror that answers."""

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette

from kms.cli import run
from kms.cli.mirror_server import serve_mirror
from kms.http.tls import LocalTls, server_context
from kms.simulator.chip import SimulatedChip, simulated_chip_id
from kms.simulator.hierarchy import AmdHierarchy
from kms.simulator.kds import SimulatedKds
from kms.simulator.kds_faults import Faults, RetryAfter
from kms.snp import tcb
from kms.snp.endorsement import load_pem
from kms.snp.flags import Signer
from kms.snp.kds_paths import Line, VcekOf
from kms.snp.product import Product
from tests.unit.kds.stock import DAY, Amd, write

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket]

Captured = pytest.CaptureFixture[str]
MILAN = Line(Signer.VCEK, Product.MILAN)


@pytest.fixture(scope="module")
def amd() -> Amd:
    now = datetime.now(UTC)
    return Amd(AmdHierarchy.generate(Product.MILAN, now=now - 30 * DAY, rsa_bits=2048), now)


@pytest.fixture(scope="module")
def chips(amd: Amd) -> list[SimulatedChip]:
    return [
        SimulatedChip.typical(
            amd.hierarchy, chip_id=simulated_chip_id(Product.MILAN, b"%d" % number), now=amd.now - DAY
        )
        for number in range(3)
    ]


@pytest.fixture
def kds(amd: Amd, chips: list[SimulatedChip]) -> Iterator[SimulatedKds]:
    with SimulatedKds([amd.hierarchy], chips) as kds:
        yield kds


@dataclass
class Site:
    """A machine with a database of its own, in `folder`."""

    folder: Path
    environment: dict[str, str]
    capsys: Captured

    def run(self, *argv: str) -> tuple[int, dict[str, Any]]:
        status = run(["collateral", *argv, "--json"])
        document: dict[str, Any] = json.loads(self.capsys.readouterr().out)
        return status, document

    def fetch(self, *argv: str) -> tuple[int, dict[str, str]]:
        """Fetch; give the status, and each path's outcome."""
        status, document = self.run("fetch", "--deadline", "20", *argv)
        return status, {each["path"]: each["outcome"] for each in document["results"]}


@pytest.fixture
def site(
    kds: SimulatedKds, amd: Amd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> Site:
    (tmp_path / "roots.pem").write_bytes(amd.hierarchy.ark.pem)
    environment = {
        "KMS_DATA_DIR": str(tmp_path / "data"),
        "KMS_DEVELOPMENT_ROOTS": str(tmp_path / "roots.pem"),
        "KMS_KDS_URLS": kds.url,
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return Site(tmp_path, environment, capsys)


def path_of(chip: SimulatedChip) -> str:
    return VcekOf(chip.hierarchy.product, chip.chip_id, chip.reported_tcb).path


def levels(chip: SimulatedChip) -> str:
    return ",".join(f"{name}={level}" for name, level in chip.reported_tcb.components().items())


def report(chip: SimulatedChip) -> bytes:
    return chip.launch(bytes(48)).report(bytes(64))


class TestFetch:
    def test_a_fleet_from_its_reports(
        self, site: Site, kds: SimulatedKds, chips: list[SimulatedChip]
    ) -> None:
        """Chain and list once, each certificate once, and nothing twice; then the service may be gone."""
        files = {f"{number}.bin": report(chip) for number, chip in enumerate(chips)}
        folder = write(site.folder / "reports", files)
        argv = [word for name in files for word in ("--report", str(folder / name))]
        wanted = [f"{MILAN.folder}/cert_chain", f"{MILAN.folder}/crl", *map(path_of, chips)]
        assert site.fetch(*argv) == (0, dict.fromkeys(wanted, "stored"))
        assert [kds.served(path) for path in wanted] == [1] * 5
        kds.faults = Faults(down=True)
        assert site.fetch(*argv) == (0, dict.fromkeys(wanted, "stored"))
        counts = {each["role"]: each["count"] for each in site.run("status")[1]["certificates"]}
        assert counts == {"ark": 1, "authority": 1, "leaf": 3}
        status, found = site.run("verify")
        assert (status, len(found["stored"])) == (0, 6)

    @pytest.mark.parametrize("form", ["levels", "hex", "url"])
    def test_one_chip(self, site: Site, chips: list[SimulatedChip], form: str) -> None:
        chip = chips[0]
        raw = tcb.encode(chip.reported_tcb, Product.MILAN).hex()
        argv = ["--chip", chip.chip_id.hex(), "--product", "milan", "--tcb"]
        forms = {
            "levels": [*argv, levels(chip)],
            "hex": [*argv, raw],
            "url": ["--url", f"https://kdsintf.amd.com{path_of(chip)}"],
        }
        status, found = site.fetch(*forms[form])
        assert (status, found[path_of(chip)]) == (0, "stored")

    def test_a_line_alone(self, site: Site) -> None:
        status, found = site.fetch("--line", "vlek/milan", "--line", "vcek/milan")
        assert status == 0
        assert found == {
            f"/{kind}/v1/Milan/{what}": "stored"
            for kind in ("vlek", "vcek")
            for what in ("cert_chain", "crl")
        }

    def test_without_lists(
        self, site: Site, chips: list[SimulatedChip], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """KMS_CRL=off: nobody asks for one, unless it is named."""
        monkeypatch.setenv("KMS_CRL", "off")
        folder = write(site.folder / "reports", {"0": report(chips[0])})
        assert set(site.fetch("--report", str(folder / "0"))[1]) == {
            f"{MILAN.folder}/cert_chain",
            path_of(chips[0]),
        }
        assert site.fetch("--line", "vcek/milan")[1][f"{MILAN.folder}/crl"] == "stored"

    def test_what_does_not_exist(self, site: Site, chips: list[SimulatedChip]) -> None:
        """The service's 404: status 1, and the others are stored."""
        invented = "5a" * 64
        folder = write(site.folder / "reports", {"0": report(chips[0])})
        status, found = site.fetch(
            "--chip", invented, "--product", "milan", "--tcb", levels(chips[0]), "--report", str(folder / "0")
        )
        assert status == 1
        assert [outcome for path, outcome in found.items() if invented in path] == ["unknown"]
        assert found[path_of(chips[0])] == "stored"

    def test_a_service_that_throttles_as_amds_does(
        self, site: Site, kds: SimulatedKds, chips: list[SimulatedChip]
    ) -> None:
        """One certificate in two seconds, else 429: the command waits its turn."""
        kds.faults = Faults(interval=2.0, retry_after=RetryAfter.SECONDS)
        folder = write(site.folder / "reports", {str(n): report(chip) for n, chip in enumerate(chips)})
        argv = [word for path in sorted(folder.iterdir()) for word in ("--report", str(path))]
        status, found = site.fetch(*argv)
        assert (status, set(found.values())) == (0, {"stored"})

    @pytest.mark.parametrize(
        "faults",
        [Faults(down=True), Faults(garbage=True), Faults(failing=1.0)],
        ids=["down", "garbage", "5xx"],
    )
    def test_a_service_that_is_of_no_use(self, site: Site, kds: SimulatedKds, faults: Faults) -> None:
        kds.faults = faults
        status, found = site.run("fetch", "--line", "vcek/milan", "--deadline", "2")
        assert status == 2
        assert {each["outcome"] for each in found["results"]} == {"unavailable"}
        assert site.run("status")[1]["certificates"] == []

    def test_nobody_to_ask(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KMS_KDS_URLS", "none")
        begun = time.monotonic()
        status, found = site.run("fetch", "--line", "vcek/milan")
        assert (status, {each["outcome"] for each in found["results"]}) == (2, {"unavailable"})
        assert time.monotonic() - begun < 10

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"csp_id": "cloud.example"}, "signed by a VLEK"),
            ({"mask_chip_id": True}, "CHIP_ID is masked"),
            ({"report_version": 2}, "--product is needed"),
        ],
        ids=["VLEK", "masked", "version 2"],
    )
    def test_reports_that_do_not_say_enough(
        self, site: Site, chips: list[SimulatedChip], change: dict[str, Any], words: str
    ) -> None:
        chip = replace(chips[0], **change)
        folder = write(site.folder / "reports", {"0": report(chip), "short": report(chip)[:-1]})
        status, found = site.run("fetch", "--report", str(folder / "0"))
        assert status == 2
        assert words in found["error"]["detail"]
        status, found = site.run("fetch", "--report", str(folder / "short"))
        assert (status, found["error"]["code"]) == (2, "unreadable")
        if "report_version" in change:
            assert site.fetch("--report", str(folder / "0"), "--product", "milan")[0] == 0


@dataclass
class Mirror:
    process: "subprocess.Popen[str]"
    url: str

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def get(self, path: str, verify: ssl.SSLContext | bool = True, method: str = "GET") -> httpx2.Response:
        return httpx2.request(method, self.url + path, verify=verify, trust_env=False, timeout=10)

    def end(self, how: signal.Signals) -> tuple[int, str]:
        """Stop it; give the exit status, and standard error."""
        self.process.send_signal(how)
        _, errors = self.process.communicate(timeout=20)
        return self.process.returncode, errors


Start = Callable[..., Mirror]


@pytest.fixture
def start(site: Site) -> Iterator[Start]:
    """Start mirrors, each a process."""
    started: list[subprocess.Popen[str]] = []

    def one(*argv: str) -> Mirror:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("KMS_")}
        process = subprocess.Popen(
            [sys.executable, "-m", "kms", "collateral", "mirror", "--listen", "127.0.0.1:0", *argv],
            env={**inherited, **site.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        said = process.stdout.readline()
        url = said.strip().rpartition(" ")[2]
        assert url.startswith("http"), (said, process.stderr and process.stderr.read())
        return Mirror(process, url)

    yield one
    for process in started:
        process.kill()
        process.communicate()


def whole(port: int, source: str) -> bytes:
    """Ask from an address of this machine."""
    with closing(socket.create_connection(("127.0.0.1", port), 5, (source, 0))) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return read_to_end(connection)


def read_to_end(connection: socket.socket) -> bytes:
    received = b""
    with suppress(ConnectionError):
        while chunk := connection.recv(65536):
            received += chunk
    return received


def is_open(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) != b""
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


def contexts(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Give what a client trusts, and a server that it trusts."""
    tls = LocalTls(folder)
    tls.ensure({"127.0.0.1"}, datetime.now(UTC))
    return ssl.create_default_context(cafile=str(tls.ca)), server_context(tls.certificate, tls.key, "1.2")


class TestMirror:
    def test_another_server_uses_it(
        self, site: Site, chips: list[SimulatedChip], amd: Amd, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An installation whose key distribution service is the mirror of another one."""
        folder = write(site.folder / "reports", {"0": report(chips[0])})
        argv = ["--report", str(folder / "0")]
        site.fetch(*argv)
        mirror = start()
        monkeypatch.setenv("KMS_DATA_DIR", str(site.folder / "other"))
        monkeypatch.setenv("KMS_KDS_URLS", mirror.url)
        status, found = site.fetch(*argv)
        assert (status, set(found.values())) == (0, {"stored"})
        status, found = site.fetch(
            *argv, "--chip", "5a" * 64, "--product", "milan", "--tcb", levels(chips[0])
        )
        assert status == 1
        assert site.run("verify")[0] == 0

    def test_it_serves_what_comes_later(self, site: Site, amd: Amd, start: Start) -> None:
        """It reads the store at every request, and asks nobody itself."""
        mirror = start()
        assert mirror.get("/vcek/v1/Milan/cert_chain").status_code == 404
        site.fetch("--line", "vcek/milan")
        answer = mirror.get("/vcek/v1/Milan/cert_chain")
        assert [each.der for each in load_pem(answer.content)] == [
            amd.hierarchy.ask.certificate,
            amd.hierarchy.ark.certificate,
        ]
        head = mirror.get("/vcek/v1/Milan/cert_chain", method="HEAD")
        assert (head.content, head.headers["content-length"]) == (b"", str(len(answer.content)))
        assert "server" not in answer.headers

    def test_tls(self, site: Site, start: Start) -> None:
        site.fetch("--line", "vcek/milan")
        tls = LocalTls(site.folder / "tls")
        tls.ensure({"127.0.0.1"}, datetime.now(UTC))
        mirror = start("--tls-cert", str(tls.certificate), "--tls-key", str(tls.key))
        assert mirror.url.startswith("https://")
        context = ssl.create_default_context(cafile=str(tls.ca))
        assert mirror.get("/vcek/v1/Milan/crl", verify=context).status_code == 200

    @pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
    def test_it_ends_when_it_is_told(self, start: Start, how: signal.Signals) -> None:
        """At once, with status 0, an idle connection or not."""
        mirror = start()
        with closing(socket.create_connection(("127.0.0.1", mirror.port))):
            mirror.get("/")
            begun = time.monotonic()
            assert mirror.end(how) == (0, "")
        assert time.monotonic() - begun < 10

    def test_a_request_without_an_end(self, start: Start) -> None:
        mirror = start()
        with closing(socket.create_connection(("127.0.0.1", mirror.port), timeout=10)) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 70_000)
            answer = read_to_end(connection)
        assert answer.startswith(b"HTTP/1.1 400")
        with closing(socket.create_connection(("127.0.0.1", mirror.port), timeout=10)) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 413")
        assert mirror.get("/").status_code == 404

    def test_requests_that_never_end_shut_nobody_out(self, start: Start) -> None:
        """One address has its share of the places, whatever it opens; the others keep theirs."""
        mirror = start()
        with ExitStack() as stack:

            def half(source: str) -> socket.socket:
                connection = stack.enter_context(
                    closing(socket.create_connection(("127.0.0.1", mirror.port), 5, (source, 0)))
                )
                connection.sendall(b"GET /vcek")
                return connection

            slow = half("127.0.0.3")  # idle longer than all the others
            mine = [half("127.0.0.1") for _ in range(300)]
            for source in ("127.0.0.2", "127.0.0.1"):
                assert whole(mirror.port, source).startswith(b"HTTP/1.1 404")
            slow.sendall(b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert read_to_end(slow).startswith(b"HTTP/1.1 404")
            # Of 300 and the one that was answered, the last 32 had places.
            assert sum(is_open(connection) for connection in mine) == 31

    @pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
    async def test_a_request_has_a_deadline(self, tmp_path: Path, secure: bool) -> None:
        """From the connection, or the first byte of the next request."""
        trust, tls = contexts(tmp_path / "tls") if secure else (None, None)
        listener, serving = socket.socket(), asyncio.Event()
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        within = 1.0
        server = asyncio.create_task(
            serve_mirror(Starlette(), listener, tls, serving=serving.set, header_within=within)
        )
        await asyncio.wait_for(serving.wait(), 10)
        request, end = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\r\n\r\nNot Found"

        async def closed_after(*parts: bytes, drip: bytes = b"") -> float:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust)
            began = time.monotonic()
            try:
                for part in parts:
                    writer.write(part)
                    if part == request:
                        began = time.monotonic()
                        assert (await reader.readuntil(end)).startswith(b"HTTP/1.1 404")
                while time.monotonic() - began < 10:
                    writer.write(drip)
                    with suppress(TimeoutError):
                        assert await asyncio.wait_for(reader.read(), 0.1) == b""
                        break
            except ConnectionError:
                pass
            finally:
                writer.transport.abort()
            return time.monotonic() - began

        try:
            seconds = await asyncio.gather(
                closed_after(),
                closed_after(b"GET /vcek"),
                closed_after(b"GET / HTTP/1.1\r\nX: ", drip=b"x"),
                closed_after(request, b"GET / HTTP/1.1\r\nX: ", drip=b"x"),
            )
            assert all(within - 0.2 < each < within + 3 for each in seconds), seconds
            # A whole request, again and again, for longer than that.
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust)
            with closing(writer):
                for _ in range(5):
                    writer.write(request)
                    assert (await reader.readuntil(end)).startswith(b"HTTP/1.1 404")
                    await asyncio.sleep(within / 3)
        finally:
            if not server.done():
                signal.raise_signal(signal.SIGTERM)
            await asyncio.wait_for(server, 10)

    def test_an_address_that_is_taken(self, site: Site, start: Start) -> None:
        status, found = site.run("mirror", "--listen", f"127.0.0.1:{start().port}")
        assert (status, found["error"]["code"]) == (2, "configuration")
        assert "Address already in use" in found["error"]["detail"]

    def test_for_programs(self, site: Site) -> None:
        """One JSON document as soon as it listens."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("KMS_")}
        process = subprocess.Popen(
            [sys.executable, "-m", "kms", "collateral", "mirror", "--listen", "127.0.0.1:0", "--json"],
            env={**inherited, **site.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        process.terminate()
        rest, _ = process.communicate(timeout=20)
        assert (process.returncode, rest) == (0, "")
        assert httpx2.URL(json.loads("".join(lines))["url"]).host == "127.0.0.1"


class TestVerify:
    """``kms verify`` of a bare-metal guest's report, which brings no certificates."""

    def verify(self, site: Site, chip: SimulatedChip, *more: str) -> tuple[int, set[str]]:
        (site.folder / "report.bin").write_bytes(report(chip))
        status = run(["verify", "--report", str(site.folder / "report.bin"), "--json", *more])
        document = json.loads(site.capsys.readouterr().out)
        return status, {check["name"] for check in document["checks"] if not check["passed"]}

    def test_the_configured_service_is_asked(
        self, site: Site, kds: SimulatedKds, chips: list[SimulatedChip]
    ) -> None:
        assert self.verify(site, chips[0], "--offline") == (1, {"endorsement-certificate"})
        assert kds.asked() == 0
        assert self.verify(site, chips[0]) == (0, set())
        assert kds.served(path_of(chips[0])) == 1

    def test_the_store_is_asked_first(
        self, site: Site, kds: SimulatedKds, chips: list[SimulatedChip]
    ) -> None:
        (site.folder / "chip.bin").write_bytes(report(chips[0]))
        assert site.fetch("--report", str(site.folder / "chip.bin"))[0] == 0
        kds.faults = Faults(down=True)
        before = len(kds.log)
        assert self.verify(site, chips[0]) == (0, set())
        assert len(kds.log) == before

    def test_a_service_that_is_down_is_said(
        self, site: Site, kds: SimulatedKds, chips: list[SimulatedChip]
    ) -> None:
        kds.faults = Faults(down=True)
        assert self.verify(site, chips[0]) == (1, {"endorsement-certificate"})

    def test_an_altered_certificate_is_not_repaired_from_the_store(
        self, site: Site, chips: list[SimulatedChip]
    ) -> None:
        (site.folder / "chip.bin").write_bytes(report(chips[0]))
        assert site.fetch("--report", str(site.folder / "chip.bin"))[0] == 0
        leaf = bytearray(chips[0].certificates()[0])
        leaf[-1] ^= 1
        (site.folder / "altered.der").write_bytes(leaf)
        status, failed = self.verify(site, chips[0], "--certificates", str(site.folder / "altered.der"))
        assert (status, "leaf-signature" in failed) == (1, True)

    def test_the_store_stays_as_it_is(self, site: Site, amd: Amd, chips: list[SimulatedChip]) -> None:
        (site.folder / "chip.bin").write_bytes(report(chips[0]))
        assert site.fetch("--report", str(site.folder / "chip.bin"))[0] == 0
        before = site.run("status")
        assert self.verify(site, chips[1]) == (0, set())
        assert self.verify(site, chips[2], "--at", (amd.now + 400 * DAY).isoformat())[0] == 0
        assert site.run("status") == before
