"""Every metric of the server: name, labels and meaning, in one place.

Labels hold what the server's own code or settings name, never what a request says: no ids, no secrets, and no
more series than these tables allow. Names end in their unit; times are seconds since 1970. A timestamp of 0
says that there is none: where several processes write, a series that was there once cannot be taken back.

With several workers each writes into a folder (`kms.telemetry.exposition`), and the mode of a gauge says how
theirs become one: ``live`` ones forget a worker that ended. prometheus_client decides when it is imported
whether it writes there, by ``PROMETHEUS_MULTIPROC_DIR``.
"""

from collections.abc import Sequence
from typing import Final, Literal, TypeAlias

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from kms.ports import Step

# Seconds, from a hash to a service that takes all of its time; the same for all, so that they compare.
LATENCY: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
    10.0,
)
_BATCH: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)

_Mode: TypeAlias = Literal["livesum", "livemax", "livemin"]


class _Maker:
    """Makes metrics in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(name, meaning, labels, registry=self._registry)

    def gauge(self, name: str, meaning: str, mode: _Mode, *labels: str) -> Gauge:
        return Gauge(name, meaning, labels, registry=self._registry, multiprocess_mode=mode)

    def histogram(
        self, name: str, meaning: str, *labels: str, buckets: Sequence[float] = LATENCY
    ) -> Histogram:
        return Histogram(name, meaning, labels, registry=self._registry, buckets=buckets)


class _Http:
    """Requests and connections."""

    def __init__(self, make: _Maker) -> None:
        self.requests = make.counter(
            "kms_http_requests_total",
            "Requests, by route template (`none`: there is no such route) and status (`none`: no answer)",
            *("route", "status"),
        )
        self.seconds = make.histogram(
            "kms_http_request_duration_seconds",
            "From the last header of a request to its whole answer, for the routes of a release",
            "route",
        )
        self.in_flight = make.gauge("kms_http_requests_in_flight", "Requests that are worked on", "livesum")
        self.connections = make.gauge("kms_connections", "Open connections", "livesum")
        self.limited = make.counter(
            "kms_rate_limited_total", "Requests that came too often, by what was counted", "by"
        )


class _Releases:
    """What became of release requests, and what each step took."""

    def __init__(self, make: _Maker) -> None:
        self.released = make.counter("kms_releases_total", "Releases, by product", "product")
        self.refused = make.counter(
            "kms_refusals_total",
            "Release requests without a release, by problem code, and product where the report is authentic",
            *("code", "product"),
        )
        self.reasons = make.counter(
            "kms_refusal_reasons_total", "Reasons of refused release requests; one may have several", "reason"
        )
        self.step_seconds = make.histogram(
            "kms_release_step_duration_seconds", "What a step of a release request takes", "step"
        )
        self.not_recorded = make.counter(
            "kms_refusals_not_recorded_total",
            "Refusals in which nobody proved anything, beyond the rate at which these are recorded",
        )
        self.steps: Final = {step: self.step_seconds.labels(step.value) for step in Step}


class _Root:
    """The provider of the root key."""

    def __init__(self, make: _Maker) -> None:
        self.seconds = make.histogram(
            "kms_root_call_duration_seconds", "What a call of the root key's provider takes", "provider"
        )
        self.failures = make.counter(
            "kms_root_failures_total", "Calls that the provider did not answer", *("provider", "reason")
        )


class _Database:
    """Commits of decisions, and what waits for them."""

    def __init__(self, make: _Maker) -> None:
        self.commit_seconds = make.histogram(
            "kms_database_commit_duration_seconds", "What a durable commit of decisions takes"
        )
        self.commit_decisions = make.histogram(
            "kms_database_commit_decisions", "Decisions that share a commit", buckets=_BATCH
        )
        self.commit_failures = make.counter(
            "kms_database_commit_failures_total", "Commits of decisions that could not be made"
        )
        self.waiting = make.gauge(
            "kms_database_decisions_waiting", "Decisions that wait for a commit", "livemax"
        )
        self.waiting_limit = make.gauge(
            "kms_database_decisions_waiting_limit", "How many may wait; more are refused", "livemax"
        )
        self.connections = make.gauge(
            "kms_database_connections_in_use", "Connections to the database in use", "livesum"
        )


class _Collateral:
    """Endorsement certificates and revocation lists, and the services that give them."""

    def __init__(self, make: _Maker) -> None:
        self.kds_seconds = make.histogram(
            "kms_kds_request_duration_seconds", "What a key distribution service takes to answer", "service"
        )
        self.kds_requests = make.counter(
            "kms_kds_requests_total",
            "Requests to key distribution services, by outcome: answered, missing, throttled, failed",
            *("service", "outcome"),
        )
        self.kds_breaker = make.gauge(
            "kms_kds_breaker_open", "1 while a service is left alone after failures", "livemax", "service"
        )
        self.kds_budget = make.gauge(
            "kms_kds_budget_requests", "Requests that a service may be sent at once", "livemin", "service"
        )
        self.kds_fetches = make.gauge("kms_kds_fetches_in_progress", "What is being fetched", "livesum")
        self.lookups = make.counter(
            "kms_certificate_lookups_total",
            "Look-ups of a chip's certificates, by where they were: memory, store, nowhere",
            "found",
        )
        self.dropped = make.counter(
            "kms_collateral_dropped_total", "Certificates and lists that could not be queued for storing"
        )
        self.stored = make.gauge(
            "kms_endorsement_certificates", "Stored certificates", "livemax", *("line", "role")
        )
        self.expiry = make.gauge(
            "kms_endorsement_certificate_expiry_timestamp_seconds",
            "When the next of them expires",
            "livemax",
            *("line", "role"),
        )
        self.list_next_update = make.gauge(
            "kms_revocation_list_next_update_timestamp_seconds",
            "When the newest revocation list that is known is to be replaced",
            "livemax",
            "line",
        )


class _Ledger:
    """The Merkle tree over what was recorded."""

    def __init__(self, make: _Maker) -> None:
        self.entries = make.gauge("kms_ledger_entries", "Leaves of the newest checkpoint", "livemax")
        self.waiting = make.gauge(
            "kms_ledger_entries_waiting", "Entries that are in no checkpoint yet", "livemax"
        )
        self.checkpoint_made = make.gauge(
            "kms_ledger_checkpoint_timestamp_seconds", "When the newest checkpoint was made", "livemax"
        )
        self.not_authentic = make.gauge(
            "kms_ledger_entries_not_authentic",
            "Entries that are never sequenced: no server made them as they stand, or they were removed",
            "livemax",
        )
        self.refused = make.gauge(
            "kms_ledger_refused",
            "1 while nothing may be recorded: the ledger is older than it was, or was changed",
            "livemax",
        )


class _Policy:
    """The policy in force."""

    def __init__(self, make: _Maker) -> None:
        self.sequence = make.gauge(
            "kms_policy_sequence", "Sequence number of the policy in force; 0 where there is none", "livemin"
        )
        self.loaded = make.gauge(
            "kms_policy_loaded_timestamp_seconds", "When the server took over the policy in force", "livemax"
        )
        self.expiry = make.gauge(
            "kms_policy_document_expiry_timestamp_seconds",
            "When the next document of a kind expires; `tcb` are the TCB floors",
            "livemax",
            "kind",
        )
        self.expired = make.gauge(
            "kms_policy_documents_expired",
            "Documents past their date, each of which denies whatever relies on it",
            "livemax",
            "kind",
        )


class _Server:
    """The server itself."""

    def __init__(self, make: _Maker) -> None:
        self.ready = make.gauge("kms_ready", "1 when the server can release keys", "livemin")
        self.not_ready = make.gauge("kms_not_ready", "1 for each reason why not", "livemax", "reason")
        self.build = make.gauge("kms_build_info", "1; the label says what runs", "livemax", "version")
        self.development = make.gauge(
            "kms_development_mode", "1 where roots are trusted that are not AMD's", "livemax"
        )
        self.tls_expiry = make.gauge(
            "kms_tls_certificate_expiry_timestamp_seconds",
            "When the TLS certificate that the server loaded expires",
            "livemax",
        )
        self.clock = make.gauge("kms_clock_timestamp_seconds", "The server's clock", "livemax")
        self.clock_leaps = make.counter("kms_clock_leaps_total", "Leaps of the clock by 5 s or more")
        self.log_lines_lost = make.counter("kms_log_lines_lost_total", "Log lines that could not be written")
        self.spans_lost = make.counter(
            "kms_trace_spans_lost_total", "Spans of traces that the collector did not take"
        )
        self.processes = make.gauge("kms_processes", "Processes that serve", "livesum")
        self.cpu_seconds = make.counter("kms_process_cpu_seconds_total", "Processor time, user and system")
        self.resident_memory = make.gauge("kms_process_resident_memory_bytes", "Resident memory", "livesum")


class Metrics:
    """The metrics of one process, in a registry of their own.

    Whoever counts on the way of a release keeps the children (`labels`), which are slow to look up.
    """

    def __init__(self) -> None:
        # Else each counter would be two series: the other says since when.
        disable_created_metrics()
        self.registry: Final = CollectorRegistry()
        make = _Maker(self.registry)
        self.http = _Http(make)
        self.releases = _Releases(make)
        self.root = _Root(make)
        self.database = _Database(make)
        self.collateral = _Collateral(make)
        self.ledger = _Ledger(make)
        self.policy = _Policy(make)
        self.server = _Server(make)
