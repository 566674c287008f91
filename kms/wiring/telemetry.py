"""What is measured of a server, and who is told: metrics, and traces where a collector is named."""

import importlib
from collections.abc import Callable
from contextlib import AsyncExitStack

from kms.errors import ConfigurationError
from kms.settings import Settings
from kms.telemetry.metrics import Metrics
from kms.telemetry.reasons import OTHER, ROOT_REASONS, known
from kms.telemetry.releases import Releases, Spans


def open_releases(settings: Settings, metrics: Metrics, stack: AsyncExitStack) -> Releases:
    """Give what follows releases; traces end with the stack.

    Raises:
        ConfigurationError: traces are asked for, and what makes them is not installed.

    """
    spans: Spans | None = None
    if settings.traces is not None:
        try:
            # OpenTelemetry is an extra, and takes long to import.
            module = importlib.import_module("kms.telemetry.traces")
        except ImportError as error:
            raise ConfigurationError(
                "KMS_TRACES is set, and OpenTelemetry is not installed",
                remedy="install attested-kms[traces], or unset it",
            ) from error
        lost = metrics.server.spans_lost
        traces = module.Traces(settings.traces, server=settings.server_name, lost=lost.inc)
        stack.push_async_callback(traces.stop)
        spans = traces
    return Releases(metrics, spans)


def observe_root(metrics: Metrics, uri: str) -> Callable[[float, str | None], None]:
    """Give who is told of calls of the root key's provider; the URI's scheme names it."""
    provider = uri.partition(":")[0]
    seconds = metrics.root.seconds.labels(provider)
    # Counted from the first scrape on, as 0: a rate needs a value before the first one.
    failures = {each: metrics.root.failures.labels(provider, each) for each in (*ROOT_REASONS, OTHER)}

    def observe(took: float, reason: str | None) -> None:
        seconds.observe(took)
        if reason is not None:
            failures[known(reason, ROOT_REASONS)].inc()

    return observe


def observe_commits(metrics: Metrics) -> Callable[[int, float | None], None]:
    """Give who is told of commits of decisions: how many, and the seconds, or None for a failure."""
    database = metrics.database

    def observe(decisions: int, took: float | None) -> None:
        if took is None:
            database.commit_failures.inc()
            return
        database.commit_seconds.observe(took)
        database.commit_decisions.observe(decisions)

    return observe


def observe_services(metrics: Metrics) -> Callable[[str, str, float], None]:
    """Give who is told of requests to key distribution services: host, outcome and seconds."""
    collateral = metrics.collateral

    def observe(host: str, outcome: str, took: float) -> None:
        collateral.kds_requests.labels(host, outcome).inc()
        collateral.kds_seconds.labels(host).observe(took)

    return observe
