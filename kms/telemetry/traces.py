"""Traces of releases for OpenTelemetry, over OTLP/HTTP: a span for each release, and for each of its steps.

Made when a release has ended, from the same marks as the metrics; nothing waits for them. A `traceparent`
that a client sends is ignored: a stranger must neither choose our trace ids, by which operators find things,
nor decide what is sampled and so how much work tracing is. The request id is an attribute: it is on every
answer, and in every line of the log. No ids of apps or chips, no addresses, no secrets.

Sampling and the collector's credentials are set as everywhere: ``OTEL_TRACES_SAMPLER``,
``OTEL_EXPORTER_OTLP_HEADERS`` and their like.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import requests
import structlog
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from typing_extensions import override

from kms import __version__
from kms.telemetry.releases import Mark

_log = structlog.get_logger("kms.telemetry")

_EXPORT_WITHIN: Final = 3.0  # seconds
_STOP_WITHIN: Final = 5.0
_MOST_WAITING: Final = 8192  # spans, of about a kilobyte; more are lost
_SAY_AGAIN_AFTER: Final = 60.0  # seconds
# What the server cannot help: a guest that comes back may be served.
_OURS: Final = frozenset({"internal", "ledger-unavailable", "root-key-unavailable", "collateral-unavailable"})


class Traces:
    """Makes spans and exports them beside the requests, to `endpoint` (whole URL of OTLP/HTTP's traces).

    `lost` is told the number of spans that could not be exported.
    """

    def __init__(self, endpoint: str, *, server: str, lost: Callable[[int], None]) -> None:
        # The library says each failure on its own, with the collector's address, and not as our log does.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        session = requests.Session()
        # Neither a proxy nor an operator's `.netrc` is any business of traces.
        session.trust_env = False
        exporter = OTLPSpanExporter(endpoint=endpoint, timeout=_EXPORT_WITHIN, session=session)
        self._provider = TracerProvider(
            resource=Resource.create(
                {
                    "service.name": "attested-kms",
                    "service.version": __version__,
                    "service.instance.id": server,
                }
            ),
            shutdown_on_exit=False,  # `stop` does it, and not for ever
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(_Counting(exporter, lost), max_queue_size=_MOST_WAITING)
        )
        self._tracer = self._provider.get_tracer("kms.release", __version__)

    def release(
        self, release_id: str, marks: list[Mark], ended: tuple[int, int], code: str | None, product: str
    ) -> None:
        """Make the spans of a release that has ended; see `kms.telemetry.releases.Spans`."""
        if not marks:
            return
        # Differences of a clock that only goes forward, hung up on the other one at the end.
        to_epoch = ended[1] - ended[0]
        root = self._tracer.start_span(
            "release",
            context=Context(),
            kind=SpanKind.SERVER,
            attributes={
                "kms.request_id": release_id,
                "kms.outcome": "released" if code is None else code,
                "kms.product": product,
            },
            start_time=marks[0][1] + to_epoch,
        )
        if code in _OURS:
            root.set_status(Status(StatusCode.ERROR, code))
        if root.is_recording():
            inside = set_span_in_context(root, Context())
            ends = [began for _, began in marks[1:]] + [ended[0]]
            for (step, began), end in zip(marks, ends, strict=True):
                span = self._tracer.start_span(step.value, context=inside, start_time=began + to_epoch)
                span.end(end + to_epoch)
        root.end(ended[1])

    async def stop(self) -> None:
        """Export what waits, if that goes quickly."""
        stopped, loop = asyncio.Event(), asyncio.get_running_loop()

        def stop() -> None:
            self._provider.shutdown()
            with suppress(RuntimeError):  # the loop may be closed by then
                loop.call_soon_threadsafe(stopped.set)

        # Not of the loop's own threads: those are waited for at the end, however long a collector takes.
        threading.Thread(target=stop, daemon=True, name="traces-stop").start()
        try:
            async with asyncio.timeout(_STOP_WITHIN):
                await stopped.wait()
        except TimeoutError:
            _log.warning("traces-not-exported", cause="timeout")


class _Counting(SpanExporter):
    """Counts what its exporter loses, and says so now and then."""

    def __init__(self, exporter: SpanExporter, lost: Callable[[int], None]) -> None:
        self._exporter = exporter
        self._lost = lost
        self._said_at: float | None = None

    @override
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if result is not SpanExportResult.SUCCESS:
            self._lost(len(spans))
            now = time.monotonic()
            if self._said_at is None or now - self._said_at >= _SAY_AGAIN_AFTER:
                self._said_at = now
                _log.warning("traces-not-exported", cause="the collector did not take them", count=len(spans))
        return result

    @override
    def shutdown(self) -> None:
        self._exporter.shutdown()

    @override
    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._exporter.force_flush(timeout_millis)
