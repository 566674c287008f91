"""docs/reference/metrics.md, from the metrics. ``python -m tests.docs.metrics_page`` writes it anew."""

from pathlib import Path
from typing import NamedTuple

from prometheus_client.metrics import MetricWrapperBase

from kms.telemetry.metrics import Metrics

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"

_HEAD = """\
# Metrics

The server serves them for Prometheus on a listener of their own: `GET /metrics` at `KMS_METRICS_LISTEN`
(`127.0.0.1:9443`), plain HTTP, nothing else. What to do with them is in
[monitoring](../guides/monitoring.md). Made from the code by `python -m tests.docs.metrics_page`; a test
compares.

What a stranger says is never a label: no ids of apps, chips, images or requests, no addresses, no secrets.
Times are seconds since 1970, and 0 says that there is none. A gauge is as old as the server's last look at
it, 5 seconds at most (stored certificates: 5 minutes). With `KMS_WORKERS` the page is that of all workers
together: counters and histograms are sums, and go on where a worker was started anew; gauges are what the
table says of those that run.

| label | values |
|---|---|
"""
_LABELS = {
    "route": "the path as the API document writes it (`/v1/apps/{app_id}/env-key`); `none` where there is no"
    " such route, or none was sought",
    "status": "the HTTP status; `none` where the client was gone before",
    "by": "`address`, `chip`, `app`: the limit of one ([settings](settings.md)); `total`: of all addresses;"
    " `server-busy`: there was no place to work in",
    "code": "of a [problem](protocol.md#problems)",
    "product": "`milan`, `genoa`, `turin` of an authentic report; `unknown`: nobody proved anything",
    "reason": "of [problems](protocol.md#problems), [policies](policy.md#checks-and-reason-codes) and"
    " [the root key](keys.md#when-the-root-cannot-be-used); `other`: none that this version lists",
    "step": "the path of a release, in order: `receive`, `verify`, `measure`, `decide`, `derive`, `seal`,"
    " `record`",
    "provider": "the scheme of `KMS_ROOT_KEY`",
    "service": "host of one of `KMS_KDS_URLS`",
    "outcome": "`answered`, `missing` (404), `throttled` (429), `failed`",
    "found": "`memory`, `store`, `nowhere`",
    "line": "`vcek-milan` and so on",
    "role": "`ark`, `authority` (ASK, ASVK), `leaf` (VCEK, VLEK)",
    "kind": "of a policy document",
    "version": "of the server",
}
_OF_WORKERS = {"livesum": "sum", "livemax": "largest", "livemin": "smallest"}


class Row(NamedTuple):
    """A metric as the page has it; `name` is that of the exposition."""

    section: str
    name: str
    kind: str
    labels: tuple[str, ...]
    workers: str
    meaning: str


def rows() -> list[Row]:
    """Give every metric."""
    found = []
    for section in vars(Metrics()).values():
        for metric in vars(section).values():
            if isinstance(metric, MetricWrapperBase):
                kind = str(metric._type)
                name = metric._name + ("_total" if kind == "counter" else "")
                mode = _OF_WORKERS.get(getattr(metric, "_multiprocess_mode", ""), "sum")
                title = (type(section).__doc__ or "").rstrip(".")
                found.append(Row(title, name, kind, metric._labelnames, mode, metric._documentation))
    return found


def page() -> str:
    """Give the page as it must be."""
    lines, section = [_HEAD.rstrip("\n")], ""
    lines += [f"| `{label}` | {values} |" for label, values in _LABELS.items()]
    for row in rows():
        if row.section != section:
            section = row.section
            lines += [
                "",
                f"## {section}",
                "",
                "| name | type | labels | of workers | meaning |",
                "|---|---|---|---|---|",
            ]
        labels = " ".join(f"`{label}`" for label in row.labels)
        lines.append(f"| `{row.name}` | {row.kind} | {labels} | {row.workers} | {row.meaning} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
