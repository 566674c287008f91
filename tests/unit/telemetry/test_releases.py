"""What is counted of releases, and what a stranger can do to it."""

from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from kms.ports import Step
from kms.snp.product import Product
from kms.telemetry import releases as module
from kms.telemetry.metrics import Metrics
from kms.telemetry.releases import Releases


class Clock:
    """Nanoseconds, moved by the test."""

    now = 0

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "perf_counter_ns", clock)
    return clock


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def refusals(metrics: Metrics) -> Iterator[tuple[str, str, float]]:
    for family in metrics.registry.collect():
        for sample in family.samples:
            if sample.name == "kms_refusals_total" and sample.value:
                yield sample.labels["code"], sample.labels["product"], sample.value


def test_each_step_is_measured_and_one_that_is_begun_again_adds_up(metrics: Metrics, clock: Clock) -> None:
    progress = Releases(metrics).follow("id")
    for step, took in ((Step.DECIDE, 3), (Step.RECORD, 40), (Step.DECIDE, 5), (Step.RECORD, 60)):
        progress.at(step)
        clock.now += took * 1_000_000
    progress.end(None, Product.MILAN, ())
    seconds = "kms_release_step_duration_seconds"
    assert value(metrics, f"{seconds}_sum", step="decide") == pytest.approx(0.008)
    assert value(metrics, f"{seconds}_sum", step="record") == pytest.approx(0.1)
    assert value(metrics, f"{seconds}_count", step="record") == 1
    assert value(metrics, f"{seconds}_count", step="verify") == 0
    assert value(metrics, "kms_releases_total", product="milan") == 1


def test_a_refusal_is_counted_by_code_product_and_each_reason(metrics: Metrics) -> None:
    releases = Releases(metrics)
    releases.follow("id").end("policy-denied", Product.GENOA, ("chip-not-listed", "debug-enabled"))
    releases.follow("id").end("malformed-request", None, ("malformed-request",))
    assert set(refusals(metrics)) == {
        ("policy-denied", "genoa", 1.0),
        ("malformed-request", "unknown", 1.0),
    }
    for reason in ("chip-not-listed", "debug-enabled", "malformed-request"):
        assert value(metrics, "kms_refusal_reasons_total", reason=reason) == 1


def test_what_is_expected_is_there_before_it_happens(metrics: Metrics) -> None:
    """Else the first of them would be no increase, and no alert."""
    Releases(metrics)
    assert value(metrics, "kms_refusals_total", code="measurement-unknown", product="unknown") == 0
    assert value(metrics, "kms_releases_total", product="turin") == 0


def test_reasons_and_codes_that_nobody_knows_make_no_series(metrics: Metrics) -> None:
    releases = Releases(metrics)
    for number in range(2000):
        releases.follow("id").end(f"code-{number}", None, (f"reason-{number}",))
    assert value(metrics, "kms_refusal_reasons_total", reason="other") == 2000
    counted = list(refusals(metrics))
    assert len(counted) < 300
    assert sum(number for *_, number in counted) == 2000


def test_what_fails_here_fails_no_release(metrics: Metrics) -> None:
    class Broken:
        def release(self, *_: object) -> None:
            raise RuntimeError("a defect")

    releases = Releases(metrics, Broken())
    with capture_logs() as logs:
        releases.follow("id").end(None, Product.MILAN, ())
    assert [each["event"] for each in logs] == ["release-not-measured"]
    assert value(metrics, "kms_releases_total", product="milan") == 1
