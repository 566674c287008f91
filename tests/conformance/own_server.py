"""The real server as a process of its own: `python -m kms serve`, configured by environment variables."""

import os
import signal
import sqlite3
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx2

from tests.conformance.own_client import Client
from tests.servers.ports import free_port

START_TIMEOUT = 60.0


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with these settings and no other of the server's."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("KMS_")}
    return {**inherited, **settings}


class Server:
    """A running server over a data folder; the folder outlives it."""

    def __init__(self, data_dir: Path, settings: Mapping[str, str]) -> None:
        self.data_dir = data_dir
        self.port = free_port()
        self.settings = {
            "KMS_DATA_DIR": str(data_dir),
            "KMS_LISTEN": f"127.0.0.1:{self.port}",
            "KMS_METRICS_LISTEN": "off",
            "KMS_RATE_LIMIT": "100000/s",
            **settings,
        }
        self.log = data_dir.with_suffix(".log")
        data_dir.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "kms", "serve"],
                cwd=data_dir.parent,
                env=environment(self.settings),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def ca(self) -> Path:
        return self.data_dir / "tls" / "ca.pem"

    def client(self) -> Client:
        return Client(self.url, self.ca)

    def wait_until_ready(self) -> Self:
        """Return when /readyz says 200."""
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            status = self.process.poll()
            assert status is None, f"the server ended with {status}:\n{self.log_text()[-4000:]}"
            if self.ca.exists() and self._ready():
                return self
            time.sleep(0.05)
        raise AssertionError(f"the server is not ready:\n{self.log_text()[-4000:]}")

    def _ready(self) -> bool:
        try:
            trust = ssl.create_default_context(cafile=str(self.ca))
            response = httpx2.get(f"{self.url}/readyz", verify=trust, trust_env=False)
        except (OSError, httpx2.TransportError):
            return False
        return response.status_code == 200

    def log_text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """End the process as a power cut would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> None:
        """Ask the process to end, and insist after a while."""
        if self.alive():
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.kill()
                raise

    def __enter__(self) -> Self:
        try:
            return self.wait_until_ready()
        except BaseException:
            self.kill()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


@contextmanager
def running(data_dir: Path, settings: Mapping[str, str]) -> Iterator[tuple[Server, Client]]:
    """Run a server and a client of it; the server's log may not show a crash."""
    with Server(data_dir, settings) as server:
        client = server.client()
        try:
            yield server, client
        finally:
            client.close()
    assert "Traceback" not in server.log_text(), server.log_text()[-4000:]


def refuse_to_start(data_dir: Path, settings: Mapping[str, str], timeout: float = 30) -> str:
    """Start a server that must not start; return its only message, with exit status and form checked."""
    log = data_dir.with_suffix(".log")
    before = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    server = Server(data_dir, settings)
    try:
        status = server.process.wait(timeout)
    except subprocess.TimeoutExpired as error:
        raise AssertionError(f"the server started:\n{server.log_text()[-4000:]}") from error
    finally:
        server.kill()
    text = server.log_text()[len(before) :]
    assert status not in (0, None), text
    assert status > 0, f"ended by signal {-status}"
    assert "Traceback" not in text, text
    assert 0 < len(text) < 4000, text
    return text


def audit_release_ids(data_dir: Path) -> set[str]:
    """Return the ids of all releases in the audit record, read from the embedded database itself."""
    with closing(sqlite3.connect(data_dir / "kms.sqlite3")) as database:
        rows = database.execute("select id from decisions where outcome = 'released'").fetchall()
    return {str(row[0]) for row in rows}
