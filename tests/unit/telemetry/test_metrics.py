"""Conventions that every metric follows."""

import re
import time

import pytest
from prometheus_client import generate_latest

from kms.ports import Step
from kms.snp.product import Product
from kms.telemetry.metrics import Metrics
from kms.telemetry.releases import Releases
from kms.telemetry.requests import Requests


def test_names_are_ours_and_the_page_is_valid() -> None:
    metrics = Metrics()
    Releases(metrics)
    page = generate_latest(metrics.registry).decode()
    names = re.findall(r"^# TYPE (\S+) (\S+)$", page, re.MULTILINE)
    assert len(names) > 40
    for name, kind in names:
        assert re.fullmatch(r"kms_[a-z0-9_]+", name), name
        assert name.endswith("_total") == (kind == "counter"), name
        if kind == "histogram":
            assert name.endswith(("_seconds", "_decisions")), name


def test_routes_are_templates_and_the_hot_ones_are_timed() -> None:
    metrics = Metrics()
    requests = Requests(metrics, frozenset({"/v1/releases"}))
    for _ in range(3):
        requests.report("/v1/releases", 200, 0.003, None)
    requests.report("/v1/apps/{app_id}/env-key", 404, None, None)
    requests.report(None, 404, None, None)
    requests.report("/v1/releases", None, 0.003, None)
    requests.report("/v1/releases", 429, 0.003, "chip")
    value = metrics.registry.get_sample_value
    assert value("kms_http_requests_total", {"route": "/v1/releases", "status": "200"}) == 3
    assert value("kms_http_requests_total", {"route": "none", "status": "404"}) == 1
    assert value("kms_http_requests_total", {"route": "/v1/releases", "status": "none"}) == 1
    assert value("kms_http_request_duration_seconds_count", {"route": "/v1/releases"}) == 5
    assert value("kms_http_request_duration_seconds_count", {"route": "none"}) is None
    assert value("kms_rate_limited_total", {"by": "chip"}) == 1
    assert value("kms_rate_limited_total", {"by": "address"}) == 0


@pytest.mark.slow
def test_measuring_a_release_costs_little() -> None:
    """Some 10 µs on the machine of the benchmarks; a signature check alone takes twenty times as long."""
    releases = Releases(Metrics())

    def follow() -> None:
        progress = releases.follow("id")
        for step in Step:
            progress.at(step)
        progress.end(None, Product.MILAN, ())

    def took() -> float:
        began = time.process_time()
        for _ in range(1000):
            follow()
        return (time.process_time() - began) / 1000

    assert min(took() for _ in range(5)) < 100e-6
