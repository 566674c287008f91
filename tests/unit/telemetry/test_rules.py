"""Every alert fires when it should, and none on a server that is well; as promtool says."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import yaml

from kms.settings import load_settings
from kms.telemetry.metrics import Metrics
from kms.wiring import open_kms
from tests.servers.prometheus import promtool

RULES = Path(__file__).parents[3] / "ops" / "prometheus" / "attested-kms.rules.yml"
ALERTS: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
]
DAY = 86400
MINUTES = 180
# A sample a minute, from 0 on: `a+bxn` begins with a and adds b, n times (promtool's notation).
STEADY = f"0+0x{MINUTES}"
RISING = f"0+6x{MINUTES}"

HERE = '{job="attested-kms", instance="a"'


def here(name: str, values: str, **labels: str) -> dict[str, str]:
    named = "".join(f', {label}="{value}"' for label, value in labels.items())
    return {"series": f"{name}{HERE}{named}}}", "values": values}


def constant(value: float) -> str:
    return f"{value}+0x{MINUTES}"


REFUSALS = ("evidence-untrusted", "measurement-unknown", "policy-denied")


def well() -> dict[str, dict[str, str]]:
    """Give the series of a server that works, by metric."""
    series = [
        here("up", constant(1)),
        here("kms_ready", constant(1)),
        here("kms_http_requests_total", RISING, route="/v1/releases", status="200"),
        *(
            here("kms_http_requests_total", STEADY, route="/v1/releases", status=status)
            for status in ("500", "503")
        ),
        here("kms_http_requests_total", RISING, route="/readyz", status="503"),
        here("kms_http_request_duration_seconds_bucket", RISING, route="/v1/releases", le="0.005"),
        here("kms_http_request_duration_seconds_bucket", RISING, route="/v1/releases", le="+Inf"),
        here("kms_rate_limited_total", RISING, by="address"),
        here("kms_rate_limited_total", STEADY, by="chip"),
        here("kms_releases_total", RISING, product="milan"),
        *(here("kms_refusals_total", STEADY, code=code, product="milan") for code in REFUSALS),
        here("kms_refusals_total", STEADY, code="collateral-unavailable", product="unknown"),
        here("kms_not_ready", constant(0), reason="root-key-sealed"),
        here("kms_not_ready", constant(0), reason="database-unavailable"),
        here("kms_not_ready", constant(0), reason="ledger-not-followed"),
        here("kms_root_failures_total", STEADY, provider="file", reason="root-key-slow"),
        here("kms_database_commit_failures_total", STEADY),
        here("kms_database_decisions_waiting", constant(3)),
        here("kms_database_decisions_waiting_limit", constant(4096)),
        here("kms_kds_requests_total", STEADY, service="kdsintf.amd.com", outcome="failed"),
        here("kms_kds_requests_total", RISING, service="kdsintf.amd.com", outcome="answered"),
        here("kms_kds_breaker_open", constant(0), service="kdsintf.amd.com"),
        here("kms_revocation_list_next_update_timestamp_seconds", constant(0), line="vlek-milan"),
        here("kms_revocation_list_next_update_timestamp_seconds", constant(30 * DAY), line="vcek-milan"),
        here("kms_endorsement_certificate_expiry_timestamp_seconds", constant(0), line="a", role="ark"),
        here(
            "kms_endorsement_certificate_expiry_timestamp_seconds", constant(90 * DAY), line="a", role="leaf"
        ),
        here("kms_policy_document_expiry_timestamp_seconds", constant(0), kind="app"),
        here("kms_policy_document_expiry_timestamp_seconds", constant(90 * DAY), kind="tcb"),
        here("kms_policy_documents_expired", constant(0), kind="tcb"),
        here("kms_policy_sequence", constant(7)),
        here("kms_ledger_entries_waiting", constant(3)),
        here("kms_ledger_checkpoint_timestamp_seconds", f"0+60x{MINUTES}"),
        here("kms_ledger_entries_not_authentic", constant(0)),
        here("kms_ledger_refused", constant(0)),
        here("kms_development_mode", constant(0)),
        here("kms_tls_certificate_expiry_timestamp_seconds", constant(90 * DAY)),
        here("kms_clock_timestamp_seconds", f"0+60x{MINUTES}"),
        here("kms_clock_leaps_total", STEADY),
        here("kms_log_lines_lost_total", STEADY),
        here("kms_trace_spans_lost_total", STEADY),
    ]
    return {each["series"]: each for each in series}


SOON = constant(1 * DAY)
ONCE = "0+0x100 1+0x80"
# What differs from a server that is well, and at which minute the alert fires.
CASES: dict[str, tuple[list[dict[str, str]], int]] = {
    "KmsServerDown": ([here("up", constant(0))], 5),
    "KmsAllServersDown": ([here("kms_ready", constant(0))], 3),
    "KmsServerNotReady": ([here("kms_ready", constant(0))], 10),
    "KmsHighErrorRate": ([here("kms_http_requests_total", RISING, route="/v1/releases", status="503")], 15),
    "KmsHighLatency": (
        [
            here("kms_http_request_duration_seconds_bucket", STEADY, route="/v1/releases", le="0.005"),
            here("kms_http_request_duration_seconds_bucket", RISING, route="/v1/releases", le="2.5"),
        ],
        30,
    ),
    "KmsInternalErrors": ([here("kms_http_requests_total", ONCE, route="/v1/releases", status="500")], 104),
    "KmsRateLimiting": ([here("kms_rate_limited_total", RISING, by="chip")], 30),
    "KmsRootKeyUnavailable": ([here("kms_not_ready", constant(1), reason="root-key-sealed")], 5),
    "KmsRootKeyFailing": (
        [here("kms_root_failures_total", RISING, provider="file", reason="root-key-slow")],
        15,
    ),
    "KmsDatabaseUnavailable": ([here("kms_not_ready", constant(1), reason="database-unavailable")], 5),
    "KmsCommitsFailing": ([here("kms_database_commit_failures_total", ONCE)], 104),
    "KmsDecisionQueueNearlyFull": ([here("kms_database_decisions_waiting", constant(4000))], 5),
    "KmsRefusalRateHigh": ([here("kms_refusals_total", RISING, code="policy-denied", product="milan")], 40),
    "KmsUnknownMeasurement": (
        [here("kms_refusals_total", ONCE, code="measurement-unknown", product="milan")],
        104,
    ),
    "KmsKdsFailing": (
        [here("kms_kds_requests_total", f"0+60x{MINUTES}", service="kdsintf.amd.com", outcome="failed")],
        40,
    ),
    "KmsKdsBreakerOpen": ([here("kms_kds_breaker_open", constant(1), service="kdsintf.amd.com")], 10),
    "KmsCertificatesUnavailable": (
        [here("kms_refusals_total", RISING, code="collateral-unavailable", product="unknown")],
        30,
    ),
    "KmsRevocationListStale": (
        [here("kms_revocation_list_next_update_timestamp_seconds", constant(60), line="vcek-milan")],
        90,
    ),
    "KmsEndorsementCertificateExpiring": (
        [here("kms_endorsement_certificate_expiry_timestamp_seconds", SOON, line="a", role="leaf")],
        90,
    ),
    "KmsTcbFloorExpiring": ([here("kms_policy_document_expiry_timestamp_seconds", SOON, kind="tcb")], 90),
    "KmsPolicyDocumentExpiring": (
        [here("kms_policy_document_expiry_timestamp_seconds", SOON, kind="app")],
        90,
    ),
    "KmsPolicyDocumentExpired": ([here("kms_policy_documents_expired", constant(2), kind="tcb")], 90),
    "KmsPolicyDiffers": (
        [{"series": 'kms_policy_sequence{job="attested-kms", instance="b"}', "values": constant(6)}],
        5,
    ),
    "KmsCheckpointOld": ([here("kms_ledger_checkpoint_timestamp_seconds", constant(60))], 10),
    "KmsLedgerRefused": ([here("kms_ledger_refused", constant(1))], 1),
    "KmsLedgerNotAuthentic": ([here("kms_ledger_entries_not_authentic", constant(1))], 1),
    "KmsDevelopmentMode": ([here("kms_development_mode", constant(1))], 1),
    "KmsTlsCertificateExpiring": (
        [here("kms_tls_certificate_expiry_timestamp_seconds", constant(10 * DAY))],
        90,
    ),
    "KmsTlsCertificateExpiresSoon": ([here("kms_tls_certificate_expiry_timestamp_seconds", SOON)], 1),
    "KmsClockWrong": ([here("kms_clock_timestamp_seconds", f"3600+60x{MINUTES}")], 10),
    "KmsClockLeapt": ([here("kms_clock_leaps_total", ONCE)], 104),
    "KmsLogLinesLost": ([here("kms_log_lines_lost_total", ONCE)], 104),
    "KmsSpansLost": ([here("kms_trace_spans_lost_total", RISING)], 30),
}


def firing(series: dict[str, dict[str, str]], minute: int, *names: str) -> dict[str, Any]:
    return {
        "name": f"{' and '.join(names) or 'nothing'} after {minute} minutes",
        "interval": "1m",
        "input_series": list(series.values()),
        "promql_expr_test": [
            {
                "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": f"{minute}m",
                "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in names],
            }
        ],
    }


def run(folder: Path, *tests: dict[str, Any]) -> None:
    file = folder / "rules.test.yml"
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    promtool("test", "rules", str(file))


def test_the_rules_are_valid_and_each_alert_says_what_to_do() -> None:
    promtool("check", "rules", str(RULES))
    promtool("check", "config", str(RULES.with_name("prometheus.yml")))
    for alert in ALERTS:
        assert alert["labels"]["severity"] in {"critical", "warning"}, alert["alert"]
        said = alert["annotations"]
        assert said["summary"], alert["alert"]
        assert len(said["description"]) > 20, alert["alert"]
        assert said["runbook"] == f"docs/guides/monitoring.md#{alert['alert'].lower()}"
    names = [alert["alert"] for alert in ALERTS]
    assert len(names) == len(set(names))
    assert set(names) == set(CASES)


def test_nothing_fires_on_a_server_that_is_well(tmp_path: Path) -> None:
    run(tmp_path, *(firing(well(), minute) for minute in (1, 20, 104, 170)))


# What follows from another.
ALSO = {
    "KmsServerNotReady": {"KmsAllServersDown"},
}


def test_each_alert_fires_and_no_other(tmp_path: Path) -> None:
    tests = []
    for name, (changed, minute) in CASES.items():
        series = well()
        for each in changed:
            series[each["series"]] = each
        tests.append(firing(series, minute, *sorted({name} | ALSO.get(name, set()))))
    run(tmp_path, *tests)


def test_an_old_checkpoint_wakes_somebody_where_nobody_can_look_at_the_ledger(tmp_path: Path) -> None:
    """What waits is then as it was at the last look: nothing."""
    series = well()
    for each in (
        here("kms_ledger_checkpoint_timestamp_seconds", constant(60)),
        here("kms_ledger_entries_waiting", constant(0)),
    ):
        series[each["series"]] = each
    idle = firing(series, 10)
    failing = here("kms_not_ready", constant(1), reason="ledger-not-followed")
    run(tmp_path, idle, firing(series | {failing["series"]: failing}, 10, "KmsCheckpointOld"))


async def test_what_is_counted_begins_at_0_as_it_does_here(tmp_path: Path) -> None:
    """Else the first would be no increase: `increase` knows nothing of a series that was not there."""
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "none.yaml").write_text("kind: revoked\nname: none\n")
    environment = {"KMS_DATA_DIR": str(tmp_path / "data"), "KMS_POLICY_DIR": str(tmp_path / "policies")}
    metrics = Metrics()
    async with open_kms(load_settings(None, environment)[0], asyncio.Event(), metrics=metrics):
        served = {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in metrics.registry.collect()
            for sample in family.samples
        }
    counted = [
        each["series"] for changed, _ in CASES.values() for each in changed if "_total{" in each["series"]
    ]
    assert len(counted) > 10
    for series in counted:
        name, _, labels = series.partition("{")
        named = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        del named["job"], named["instance"]
        assert served.get((name, *sorted(named.items()))) == 0, series


def test_no_metrics_at_all_is_all_servers_down(tmp_path: Path) -> None:
    run(tmp_path, firing({}, 5, "KmsAllServersDown"))


def test_a_server_that_still_starts_alarms_nobody_with_what_it_does_not_know_yet(tmp_path: Path) -> None:
    series = well()
    for name in (
        "kms_tls_certificate_expiry_timestamp_seconds",
        "kms_clock_timestamp_seconds",
        "kms_policy_sequence",
    ):
        each = here(name, constant(0))
        series[each["series"]] = each
    run(tmp_path, firing(series, 20))
