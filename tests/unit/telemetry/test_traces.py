"""Traces, as a collector gets them."""

import socket
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, closing

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from structlog.testing import capture_logs

from kms.errors import ConfigurationError
from kms.ports import Step
from kms.settings import Settings, load_settings
from kms.snp.product import Product
from kms.telemetry.metrics import Metrics
from kms.telemetry.releases import Releases
from kms.telemetry.traces import Traces
from kms.wiring.telemetry import open_releases
from tests.servers.collector import Collector
from tests.servers.ports import free_port

pytestmark = pytest.mark.enable_socket
ID = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.stop()


def attributes(span: Span) -> dict[str, str]:
    return {each.key: each.value.string_value for each in span.attributes}


async def follow(traces: Traces, code: str | None = None, number: int = 1) -> None:
    releases = Releases(Metrics(), traces)
    for _ in range(number):
        progress = releases.follow(ID)
        for step in (Step.RECEIVE, Step.VERIFY, Step.RECORD):
            progress.at(step)
            time.sleep(0.002)  # noqa: ASYNC251 -- a step that takes a while
        progress.end(code, Product.MILAN, ())


async def test_a_release_is_a_span_with_its_steps_inside(collector: Collector) -> None:
    traces = Traces(collector.url, server="kms-1", lost=lambda _: None)
    before = time.time_ns()
    await follow(traces)
    await traces.stop()
    root, *steps = sorted(
        collector.spans(), key=lambda span: (span.name != "release", span.start_time_unix_nano)
    )
    assert root.name == "release"
    assert root.parent_span_id == b""
    assert attributes(root) == {
        "kms.request_id": ID,
        "kms.outcome": "released",
        "kms.product": "milan",
    }
    assert [span.name for span in steps] == ["receive", "verify", "record"]
    assert {span.parent_span_id for span in steps} == {root.span_id}
    assert {span.trace_id for span in steps} == {root.trace_id}
    assert all(span.end_time_unix_nano - span.start_time_unix_nano > 1_500_000 for span in steps)
    assert steps[0].start_time_unix_nano == root.start_time_unix_nano
    assert steps[-1].end_time_unix_nano == root.end_time_unix_nano
    assert [span.end_time_unix_nano for span in steps[:-1]] == [
        span.start_time_unix_nano for span in steps[1:]
    ]
    assert before - 1_000_000 <= root.start_time_unix_nano < time.time_ns()
    [resource] = collector.requests()[0].resource_spans
    named = {each.key: each.value.string_value for each in resource.resource.attributes}
    assert named["service.name"] == "attested-kms"
    assert named["service.instance.id"] == "kms-1"


@pytest.mark.parametrize(("code", "status"), [("policy-denied", 0), ("ledger-unavailable", 2)])
async def test_a_refusal_is_no_error_of_ours(collector: Collector, code: str, status: int) -> None:
    traces = Traces(collector.url, server="kms-1", lost=lambda _: None)
    await follow(traces, code)
    await traces.stop()
    [root] = (span for span in collector.spans() if span.name == "release")
    assert attributes(root)["kms.outcome"] == code
    assert root.status.code == status


@pytest.mark.parametrize("answer", [None, 400, 503])
async def test_a_collector_that_fails_costs_spans_and_nothing_else(
    answer: int | None, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also one that is not there."""
    collector = None if answer is None else Collector(answer)
    lost: list[int] = []
    url = f"http://127.0.0.1:{free_port()}/v1/traces" if collector is None else collector.url
    traces = Traces(url, server="kms-1", lost=lost.append)
    began = time.monotonic()
    with capture_logs() as logs:
        await follow(traces)
        assert time.monotonic() - began < 5
        await traces.stop()
    assert time.monotonic() - began < 20
    if collector is not None:
        collector.stop()
    assert sum(lost) == 4
    assert "traces-not-exported" in {each["event"] for each in logs}
    said = capfd.readouterr()
    assert "Traceback" not in said.out + said.err


async def test_a_collector_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kms.telemetry.traces._STOP_WITHIN", 0.3)
    with closing(socket.socket()) as listener:  # nobody accepts
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1/traces"
        traces = Traces(url, server="kms-1", lost=lambda _: None)
        await follow(traces)
        began = time.monotonic()
        await traces.stop()
        assert time.monotonic() - began < 8


def settings(**variables: str) -> Settings:
    return load_settings(None, variables)[0]


async def test_without_the_extra_the_server_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kms.telemetry.traces", None)
    async with AsyncExitStack() as stack:
        assert open_releases(settings(), Metrics(), stack).spans is None
        with pytest.raises(ConfigurationError, match="OpenTelemetry is not installed") as refusal:
            open_releases(settings(KMS_TRACES="http://127.0.0.1:4318"), Metrics(), stack)
    assert "attested-kms[traces]" in refusal.value.remedy


def test_the_setting_is_a_plain_url() -> None:
    assert settings().traces is None
    assert settings(KMS_TRACES="https://collector:4318").traces == "https://collector:4318/v1/traces"
    assert settings(KMS_TRACES="https://collector/otlp/").traces == "https://collector/otlp"
    for wrong in (
        "collector:4318",
        "grpc://collector",
        "https://user:password@collector",
        "none",
        "https://c?x=1",
    ):
        with pytest.raises(ConfigurationError, match="KMS_TRACES") as refusal:
            settings(KMS_TRACES=wrong)
        assert "password" not in str(refusal.value)
