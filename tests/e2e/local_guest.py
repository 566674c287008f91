"""A SIMULATED guest whose operating system is this machine: a real server, its configuration, its services.

configfs-tsm is a mounted file system; the KMS, the commands and what connects to them are processes.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from kms.simulator.hierarchy import AmdHierarchy
from kms.simulator.tsm_fuse import SimulatedTsm
from tests.conformance.own_server import Server, environment
from tests.e2e.rack import Rack
from tests.servers.vault import wait_until
from tests.simulated_tsm import simulated_tsm

WITHIN = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class LocalGuest:
    """The guest. `folder` is one that every user can enter; `config` is its guest.toml, without tables."""

    folder: Path
    server: Server
    tsm: SimulatedTsm

    @property
    def config(self) -> Path:
        return self.folder / "guest.toml"

    def configure(self, tables: str) -> None:
        """Write guest.toml: where the KMS is, and these tables."""
        identity = self.server.data_dir.with_name("kms.id")
        self.config.write_text(
            f'server = "{self.server.url}"\nca = "{self.server.ca}"\nidentity = "@{identity}"\n'
            f'app_document = "{self.folder / "app.json"}"\ndeadline = 50\n'
            f'{tables}\n[evidence]\ntsm = "{self.folder / "tsm"}"\n'
        )

    def fetch(self, key: str) -> bytes:
        """Give a key as `kms guest fetch` gives it."""
        done = subprocess.run(
            command("fetch", "--config", self.config, "--key", key),
            env=environment({}),
            capture_output=True,
            timeout=WITHIN,
            check=True,
        )
        return done.stdout

    @contextmanager
    def service(self, name: str, *options: str | Path) -> "Iterator[Service]":
        """Run `kms guest agent` or `serve` at a path, until the block ends; it must end well."""
        path = self.folder / f"{name}.sock"
        words = command(name, "--config", self.config, "--listen", path, *options)
        with running(words, self.folder / f"{name}.log") as service:
            assert path.is_socket()
            yield service
        assert not path.exists()

    @contextmanager
    def activated(self, name: str, path: Path, mode: int, *options: str) -> "Iterator[Service]":
        """Let systemd's own program listen at `path`, and become the service when somebody comes."""
        log = self.folder / f"{name}.log"
        words = ["systemd-socket-activate", "--listen", str(path), *command(name, "--config", self.config)]
        with log.open("wb") as file:
            process = subprocess.Popen([*words, *options], env=environment({}), stderr=file)
        try:
            wait_until(path.is_socket, within=WITHIN)
            path.chmod(mode)
            yield Service(process, log)
        finally:
            process.terminate()
            try:
                process.wait(WITHIN)
            finally:
                process.kill()
                process.wait()
                path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Service:
    """A running service, and its log."""

    process: "subprocess.Popen[bytes]"
    log: Path

    def lines(self, count: int) -> list[str]:
        """Give the log when it has so many lines: an answer may be read before its line is written."""
        wait_until(lambda: self.log.read_text().count("\n") >= count, within=WITHIN)
        return self.log.read_text().splitlines()

    def line_with(self, text: str) -> str:
        """Give the first line of the log that has this text, as soon as there is one."""
        wait_until(lambda: any(text in line for line in self._whole_lines()), within=WITHIN)
        return next(line for line in self._whole_lines() if text in line)

    def _whole_lines(self) -> list[str]:
        return self.log.read_text().split("\n")[:-1]


def command(name: str, *options: str | Path) -> list[str]:
    """Give the words of a command of `kms guest`."""
    return [sys.executable, "-m", "kms", "guest", name, *map(str, options)]


@contextmanager
def running(words: list[str], log: Path) -> Iterator[Service]:
    """Run a service until the block ends. It says to a service manager, which is here, that it is ready."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, log.open("wb") as file:
        manager.settimeout(WITHIN)
        manager.bind(b"\0kms-notify-%d" % os.getpid())
        settings = {"NOTIFY_SOCKET": f"@kms-notify-{os.getpid()}"}
        process = subprocess.Popen(words, env=environment(settings), stderr=file)
        try:
            try:
                assert manager.recv(100) == b"READY=1"
            except TimeoutError as error:
                raise AssertionError(log.read_text()) from error
            yield Service(process, log)
            process.terminate()
            assert process.wait(WITHIN) == 0, log.read_text()
            assert manager.recv(100) == b"STOPPING=1"
        finally:
            process.kill()
            process.wait(WITHIN)


@contextmanager
def local_guest(
    folder: Path, open_to_all: Path, hierarchy: AmdHierarchy, settings: Mapping[str, str] | None = None
) -> Iterator[LocalGuest]:
    """Start a server whose policy allows one app every kind of key, and launch a guest of that app."""
    rack = Rack(folder, hierarchy, chips=1)
    guest = rack.guest(0)
    with ExitStack() as stack:
        server = stack.enter_context(Server(folder / "data", {**rack.settings, **(settings or {})}))
        with server.client().http as http:
            (folder / "kms.id").write_text(http.get("/v1/identity").json()["identity"])
        (open_to_all / "app.json").write_bytes(guest.document)
        tsm = stack.enter_context(simulated_tsm(open_to_all / "tsm", guest.machine))
        made = LocalGuest(open_to_all, server, tsm)
        made.configure("")
        yield made
        assert tsm.entries == ()
    assert "Traceback" not in server.log_text()
