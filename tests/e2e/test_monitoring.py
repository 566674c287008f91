"""A real Prometheus with our rules watches a real server: it sees what guests do, and wakes somebody."""

import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest

from kms.cli.demo_scene import APP_ID
from kms.guest.client import KeyClient
from kms.guest.errors import Refused
from kms.keys.names import KeyRequest
from kms.keys.sealing import Suite
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.product import Product
from tests.conformance.own_server import Server
from tests.docs.metrics_page import rows
from tests.e2e.rack import Guest, Rack
from tests.e2e.wire import noted
from tests.servers.ports import free_port
from tests.servers.prometheus import Prometheus, find_program, get, prometheus_in

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket]
RULES = Path(__file__).parents[2] / "ops" / "prometheus" / "attested-kms.rules.yml"
DISK = KeyRequest.parse("disk", "app")


class Scene:
    """A server, who watches it, and who asks it."""

    def __init__(self, server: Server, rack: Rack, prometheus: Prometheus, metrics: str) -> None:
        self.server = server
        self.rack = rack
        self.prometheus = prometheus
        self.metrics = metrics

    def fetch(self, guest: Guest) -> None:
        with noted(self.server.ca) as notebook, closing(self.server.client()) as client:
            KeyClient(
                self.server.url,
                ca_file=self.server.ca,
                identity=client.identity,
                source=guest,
                suite=Suite.X25519_SEALEDBOX,
                transport=notebook,
            ).fetch([DISK], app_document=guest.document)

    def sees(self, query: str, value: float) -> None:
        self.prometheus.wait_until(lambda: self.prometheus.value(query) == value, query)


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two workers"])
def scene(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    simulated_hierarchies: Mapping[Product, AmdHierarchy],
) -> Iterator[Scene]:
    find_program("prometheus")
    folder = tmp_path_factory.mktemp("monitoring")
    rack = Rack(folder, simulated_hierarchies[Product.MILAN], chips=1)
    address = f"127.0.0.1:{free_port()}"
    settings = {**rack.settings, "KMS_METRICS_LISTEN": address, "KMS_WORKERS": str(request.param)}
    configuration = {
        "global": {"scrape_interval": "300ms", "scrape_timeout": "300ms", "evaluation_interval": "300ms"},
        "rule_files": [str(RULES)],
        "scrape_configs": [
            {
                "job_name": "attested-kms",
                "static_configs": [{"targets": [address], "labels": {"instance": "kms"}}],
            }
        ],
    }
    with Server(folder / "data", settings) as server, prometheus_in(folder, configuration) as prometheus:
        yield Scene(server, rack, prometheus, f"http://{address}/metrics")


def test_development_mode_wakes_somebody(scene: Scene) -> None:
    alert = scene.prometheus.wait_for_alert("KmsDevelopmentMode")
    assert alert["labels"]["severity"] == "critical"
    assert alert["labels"]["instance"] == "kms"
    assert "kms runs in DEVELOPMENT MODE" in alert["annotations"]["summary"]


def test_releases_and_refusals_are_seen(scene: Scene) -> None:
    scene.sees('kms_refusals_total{code="measurement-unknown", product="milan"}', 0)
    for number in range(5):
        scene.fetch(scene.rack.guest(number))
    with pytest.raises(Refused):
        scene.fetch(scene.rack.guest(0, cmdline="init=/bin/sh"))
    scene.sees('sum(kms_releases_total{product="milan"})', 5)
    scene.sees('kms_refusals_total{code="measurement-unknown", product="milan"}', 1)
    scene.sees('kms_release_step_duration_seconds_count{step="record"}', 6)
    scene.sees('kms_http_request_duration_seconds_count{route="/v1/releases"}', 6)
    scene.sees("kms_database_commit_decisions_sum", 6)
    alert = scene.prometheus.wait_for_alert("KmsUnknownMeasurement")
    assert alert["labels"]["product"] == "milan"
    scene.sees("kms_ready", 1)
    assert not {"KmsServerDown", "KmsAllServersDown", "KmsClockWrong"} & set(scene.prometheus.firing())


def test_every_metric_is_in_the_page_and_nothing_of_a_guest_is(scene: Scene) -> None:
    page = get(scene.metrics)
    served = set(re.findall(r"^# TYPE (kms_\w+) ", page, re.MULTILINE))
    # Nobody was asked: there is no service.
    unused = {"kms_kds_request_duration_seconds", "kms_kds_requests_total"}
    unused |= {"kms_kds_breaker_open", "kms_kds_budget_requests"}
    assert {row.name for row in rows()} - served <= unused
    guest = scene.rack.guest(0)
    for secret in (guest.chip_id.hex(), guest.instance_id.hex(), APP_ID.hex()):
        assert secret not in page
    labels = re.findall(r'="([^"]*)"', page)
    assert not [label for label in labels if re.fullmatch(r"[0-9a-f]{16,}", label)]


def test_a_server_that_dies_is_noticed(scene: Scene) -> None:
    """The last: it takes a minute to fire, so here it only begins to."""
    scene.server.stop()

    def pending() -> bool:
        alerts = scene.prometheus.ask("alerts")["alerts"]
        return "KmsServerDown" in {each["labels"]["alertname"] for each in alerts}

    scene.prometheus.wait_until(pending, "KmsServerDown")
