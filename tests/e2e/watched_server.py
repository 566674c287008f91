"""A server, and everything that it and the commands beside it write: what is searched for secrets."""

import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx2

from tests.conformance.own_server import Server, environment
from tests.e2e.wire import Notebook
from tests.servers.collector import Collector
from tests.servers.ports import free_port
from tests.servers.prometheus import get

# A defect where an app's secret is in local variables; it shows as soon as a file is there.
DEFECT = """
import sys, threading, time
from pathlib import Path

def break_it():
    while not hasattr(sys.modules.get("kms.app_keys"), "derive"):
        time.sleep(0.05)
    app_keys, sound = sys.modules["kms.app_keys"], sys.modules["kms.app_keys"].derive

    def derive(app_secret, *arguments, **named):
        if Path(__file__).with_name("now").exists():
            raise RuntimeError("a defect")
        return sound(app_secret, *arguments, **named)

    app_keys.derive = derive

threading.Thread(target=break_it, daemon=True).start()
"""


class WatchedServer:
    """A running server with a guest's and an operator's connection to it.

    `planted` is no secret, and is written on purpose where the search must find it.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self.folder = folder
        self.planted = secrets.token_bytes(32)
        self.written: list[tuple[str, bytes]] = []
        self._collector = Collector()
        self._metrics = f"127.0.0.1:{free_port()}"
        self._defect = folder / "defect"
        self._defect.mkdir()
        (self._defect / "sitecustomize.py").write_text(DEFECT)
        self.server = Server(
            folder / "data",
            {
                **settings,
                "KMS_LOG_LEVEL": "debug",
                "KMS_METRICS_LISTEN": self._metrics,
                "KMS_TRACES": self._collector.url,
                "PYTHONPATH": os.pathsep.join([str(self._defect), os.environ.get("PYTHONPATH", "")]),
                # A name that is no setting is repeated in a warning.
                f"KMS_{self.planted.hex().upper()}": "1",
            },
        )
        self.server.wait_until_ready()
        self.notebook = Notebook(self.server.ca)
        self.http = httpx2.Client(base_url=self.server.url, transport=self.notebook, timeout=60)

    def places(self) -> Iterator[tuple[str, bytes]]:
        """Give everything that was written, with where."""
        yield "log", self.server.log.read_bytes()
        for number, answer in enumerate(self.notebook.answers):
            place = f"answer {number}: {answer.status} {answer.path}"
            yield place, answer.headers + answer.body
        yield from self.written
        page = self.metrics()
        yield "metrics", page.encode()
        self._wait_for_spans(page)
        for number, (headers, body) in enumerate(self._collector.sent):
            yield f"trace {number}", headers + body
        yield from self._files()

    def metrics(self) -> str:
        """Give the page of metrics."""
        return get(f"http://{self._metrics}/metrics")

    def _wait_for_spans(self, page: str) -> None:
        """Wait until the collector has every release request that the server has counted."""
        counted = re.findall(r"^kms_(?:releases|refusals)_total{.*} (\S+)$", page, re.MULTILINE)
        deadline = time.monotonic() + 30
        while sum(span.name == "release" for span in self._collector.spans()) < sum(map(float, counted)):
            assert time.monotonic() < deadline, "spans are missing"
            time.sleep(0.2)

    def _files(self) -> Iterator[tuple[str, bytes]]:
        for file in sorted(self.server.data_dir.rglob("*")):
            if file.is_file():
                yield f"file {file.relative_to(self.server.data_dir)}", file.read_bytes()

    def run(self, *command: str, secret_output: bool = False, **settings: str) -> bytes:
        """Run a command beside the server, and keep what it printed; give standard output."""
        done = subprocess.run(
            [sys.executable, "-m", "kms", *command],
            env=environment({**self.server.settings, **settings}),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=120,
            check=False,
        )
        name = f"command {len(self.written)}: kms {' '.join(command[:2])}, status {done.returncode}"
        self.written.append((f"{name}, errors", done.stderr))
        if not secret_output:
            self.written.append((f"{name}, output", done.stdout))
        assert b"Traceback" not in done.stderr, done.stderr
        return done.stdout

    def private_file(self, name: str, content: bytes) -> str:
        path = self.folder / name
        path.touch(mode=0o600)
        path.write_bytes(content)
        return str(path)

    def keep_files(self, when: str) -> None:
        """Keep the files of the data folder as they are now, write-ahead log and all."""
        self.written += [(f"{name}, {when}", content) for name, content in self._files()]

    @contextmanager
    def defect(self) -> Iterator[None]:
        """Let a defect show, for a while."""
        trigger = self._defect / "now"
        trigger.touch()
        try:
            yield
        finally:
            trigger.unlink()

    def end(self) -> None:
        self.http.close()
        self.notebook.end()
        self.server.kill()
        self._collector.stop()
