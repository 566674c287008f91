"""The listener of metrics: one page, and little patience."""

import asyncio
import os
import subprocess
import sys
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kms.errors import ConfigurationError
from kms.telemetry import exposition
from kms.telemetry.exposition import (
    FOLDER_VARIABLE,
    folder_for_workers,
    remove_left_behind,
    serve_metrics,
    worker_ended,
)
from kms.telemetry.metrics import Metrics

pytestmark = pytest.mark.enable_socket
HERE = ("127.0.0.1", 0)


async def exchange(address: tuple[str, int], sent: bytes) -> bytes:
    """Give all that is answered; nothing where the connection is cut off."""
    reader, writer = await asyncio.open_connection(*address)
    with closing(writer), suppress(ConnectionError):
        writer.write(sent)
        return await reader.read()
    return b""


async def test_metrics_and_nothing_else() -> None:
    metrics = Metrics()
    metrics.server.development.set(1)
    async with serve_metrics(HERE, metrics.registry) as address:
        page = await exchange(address, b"GET /metrics?x HTTP/1.1\r\nHost: k\r\n\r\n")
        head, _, body = page.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4")
        assert b"Content-Length: %d\r\n" % len(body) in head
        assert b"\nkms_development_mode 1.0\n" in body
        assert b"_created" not in body
        assert (await exchange(address, b"HEAD /metrics HTTP/1.1\r\n\r\n")).endswith(b"\r\n\r\n")
        for path in (b"/", b"/metrics/", b"/healthz", b"//metrics", b"http://k/metrics"):
            assert (await exchange(address, b"GET %s HTTP/1.1\r\n\r\n" % path)).startswith(b"HTTP/1.1 404 ")
        refused = await exchange(address, b"POST /metrics HTTP/1.1\r\n\r\n")
        assert refused.startswith(b"HTTP/1.1 405 ")
        assert b"\r\nAllow: GET, HEAD\r\n" in refused


async def test_who_says_too_much_or_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "_WITHIN", 0.2)
    async with serve_metrics(HERE, Metrics().registry) as address, asyncio.timeout(5):
        assert await exchange(address, b"") == b""
        assert await exchange(address, b"GET /metrics HTTP/1.1\r\nX: ") == b""
        assert await exchange(address, b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 20_000) == b""
        assert b"kms_ready" in await exchange(address, b"GET /metrics HTTP/1.1\r\n\r\n")


async def test_many_at_once_are_not_served() -> None:
    async with serve_metrics(HERE, Metrics().registry) as address:
        with ExitStack() as stack:
            for _ in range(16):
                _, writer = await asyncio.open_connection(*address)
                stack.enter_context(closing(writer))
            assert await exchange(address, b"GET /metrics HTTP/1.1\r\n\r\n") == b""
        await asyncio.sleep(0.1)
        assert b"kms_ready" in await exchange(address, b"GET /metrics HTTP/1.1\r\n\r\n")


async def test_an_address_that_is_taken_is_said_with_a_remedy() -> None:
    async with serve_metrics(HERE, Metrics().registry) as address:
        with pytest.raises(ConfigurationError, match=r"cannot serve metrics on 127\.0\.0\.1:") as refusal:
            async with serve_metrics(address, Metrics().registry):
                pass
    assert "KMS_METRICS_LISTEN" in refusal.value.remedy


# A worker: it counts, sets gauges of each kind, and says that it has.
WORKER = """
import sys
from kms.telemetry.metrics import Metrics
metrics = Metrics()
metrics.releases.released.labels("milan").inc(int(sys.argv[1]))
metrics.http.seconds.labels("/v1/releases").observe(0.002)
metrics.http.in_flight.set(int(sys.argv[1]))
metrics.server.ready.set(int(sys.argv[1]) > 1)
metrics.server.processes.set(1)
print(flush=True)
sys.stdin.read()
"""


class Worker:
    def __init__(self, number: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"\n"

    def end(self) -> int:
        self.process.communicate(b"")
        return self.process.pid


async def scrape(folder: Path) -> dict[tuple[str, ...], float]:
    async with serve_metrics(HERE, folder) as address:
        page = await exchange(address, b"GET /metrics HTTP/1.1\r\n\r\n")
    families = text_string_to_metric_families(page.partition(b"\r\n\r\n")[2].decode())
    return {
        (sample.name, *sample.labels.values()): sample.value for each in families for sample in each.samples
    }


async def test_workers_are_one_page_and_what_they_counted_outlives_them() -> None:
    with folder_for_workers() as folder:
        assert os.environ[FOLDER_VARIABLE] == str(folder)
        assert folder.stat().st_mode & 0o777 == 0o700
        first, second = Worker(1), Worker(2)
        both = await scrape(folder)
        assert both["kms_releases_total", "milan"] == 3
        assert both["kms_http_request_duration_seconds_count", "/v1/releases"] == 2
        assert both["kms_http_requests_in_flight",] == 3
        assert both["kms_ready",] == 0, "of one that is not ready"
        assert both["kms_processes",] == 2
        worker_ended(folder, first.end())
        left = await scrape(folder)
        assert left["kms_ready",] == 1
        assert left["kms_http_requests_in_flight",] == 2
        for counted in (key for key in both if key[0].endswith(("_total", "_count", "_bucket", "_sum"))):
            assert left[counted] == both[counted], counted
        for _ in range(2):
            worker_ended(folder, Worker(1).end())
        assert len(list(folder.glob("counter_*"))) == 2, "one of who lives, one of all that ended"
        assert (await scrape(folder))["kms_releases_total", "milan"] == 5
        second.end()
    assert FOLDER_VARIABLE not in os.environ
    assert not folder.exists()


def test_what_a_killed_supervisor_left_is_removed_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exposition, "_MEMORY", tmp_path)
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    left = tmp_path / f"kms-metrics-{gone.pid}-abcdefgh"
    others = [
        tmp_path / name for name in (f"kms-metrics-{os.getppid()}-x", "kms-metrics-x", f"else-{gone.pid}-x")
    ]
    for each in (left, *others):
        each.mkdir()
        (each / "counter_1.db").touch()
    with folder_for_workers() as folder:
        assert folder.name.startswith(f"kms-metrics-{os.getpid()}-")
        assert not left.exists()
        assert {folder, *others} == set(tmp_path.iterdir())
    left.mkdir()
    monkeypatch.setattr("kms.telemetry.exposition.os.getuid", lambda: os.geteuid() + 1)
    remove_left_behind(tmp_path)
    assert left.exists(), "it is somebody else's"
