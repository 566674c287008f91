"""Prometheus itself: its programs, and a server of its own on 127.0.0.1 for one test."""

import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.servers.ports import free_port

# Nothing of the environment: neither a proxy nor a name server has a part in this.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def find_program(name: str) -> str:
    """Give the path of `prometheus` or `promtool`, or skip the test."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"there is no {name}, so rules and metrics are not tested: apt-get install prometheus")
    return found


def promtool(*arguments: str) -> str:
    """Run it, and give what it says; the test fails where it does."""
    done = subprocess.run(
        [find_program("promtool"), *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def get(url: str) -> str:
    with _OPENER.open(url, timeout=10) as answer:
        text: str = answer.read().decode()
        return text


class Prometheus:
    """A running Prometheus."""

    def __init__(self, url: str) -> None:
        self._url = url

    def ask(self, path: str, **parameters: str) -> Any:
        """Give the data of an answer of its HTTP API."""
        answer = json.loads(get(f"{self._url}/api/v1/{path}?{urlencode(parameters)}"))
        assert answer["status"] == "success", answer
        return answer["data"]

    def value(self, query: str) -> float | None:
        """Give the value of a query with one series; None where there is none."""
        found = self.ask("query", query=query)["result"]
        assert len(found) < 2, found
        return float(found[0]["value"][1]) if found else None

    def firing(self) -> dict[str, dict[str, Any]]:
        """Give the alerts that fire, by name."""
        alerts = self.ask("alerts")["alerts"]
        return {each["labels"]["alertname"]: each for each in alerts if each["state"] == "firing"}

    def wait_until(self, holds: Callable[[], bool], what: str) -> None:
        """Wait until it sees something."""
        deadline = time.monotonic() + 60
        while not holds():
            assert time.monotonic() < deadline, f"{what} is not seen: {self.ask('targets')}"
            time.sleep(0.2)

    def wait_for_alert(self, name: str) -> dict[str, Any]:
        """Give an alert once it fires."""
        self.wait_until(lambda: name in self.firing(), name)
        return self.firing()[name]


@contextmanager
def prometheus_in(folder: Path, configuration: Mapping[str, object]) -> Iterator[Prometheus]:
    """Run one with a configuration, which is written to the folder, beside its data."""
    port = free_port()
    file = folder / "prometheus.yml"
    file.write_text(json.dumps(configuration))
    command = [
        find_program("prometheus"),
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while not _is_ready(port):
            assert process.poll() is None, (folder / "prometheus.log").read_text()
            assert time.monotonic() < deadline, "Prometheus is not ready"
            time.sleep(0.1)
        yield Prometheus(f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _is_ready(port: int) -> bool:
    try:
        return "Ready" in get(f"http://127.0.0.1:{port}/-/ready")
    except OSError:
        return False
