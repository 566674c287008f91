"""Metrics, rules, dashboard and pages name the same things: those that a real server serves."""

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import generate_latest

from kms.settings import load_settings
from kms.telemetry.metrics import Metrics
from kms.wiring import open_kms
from tests.docs import metrics_page
from tests.servers.prometheus import promtool

ROOT = Path(__file__).parents[2]
RULES = ROOT / "ops" / "prometheus" / "attested-kms.rules.yml"
DASHBOARD = ROOT / "ops" / "grafana" / "dashboards" / "attested-kms.json"
GUIDE = ROOT / "docs" / "guides" / "monitoring.md"
NAMES = re.compile(r"\bkms_[a-z0-9_]+\b")


async def scraped(folder: Path) -> set[str]:
    """Give the names of all series of a server that was just built."""
    (folder / "policies").mkdir()
    (folder / "policies" / "revoked.yaml").write_text("kind: revoked\nname: none\n")
    environment = {"KMS_DATA_DIR": str(folder / "data"), "KMS_POLICY_DIR": str(folder / "policies")}
    metrics = Metrics()
    async with open_kms(load_settings(None, environment)[0], asyncio.Event(), metrics=metrics) as kms:
        await kms.figures.refresh()
        page = generate_latest(metrics.registry).decode()
    return set(re.findall(r"^# TYPE (kms_\w+) ", page, re.MULTILINE))


def base(name: str) -> str:
    return re.sub(r"_(bucket|count|sum)$", "", name)


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def expressions() -> Iterator[str]:
    """Give every expression of the dashboard, its variables filled in."""
    for panel in panels():
        for target in panel.get("targets", ()):
            yield target["expr"].replace("$job", "attested-kms").replace("$instance", ".*")


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def test_the_page_is_the_metrics() -> None:
    assert metrics_page.PAGE.read_text() == metrics_page.page(), "python -m tests.docs.metrics_page"


def test_every_label_is_explained() -> None:
    used = {label for row in metrics_page.rows() for label in row.labels}
    assert used == set(metrics_page._LABELS)


async def test_what_is_named_is_served_and_what_is_served_is_documented(tmp_path: Path) -> None:
    served = await scraped(tmp_path)
    assert served == {row.name for row in metrics_page.rows()}
    named = {
        "rules": {name for alert in alerts() for name in NAMES.findall(str(alert))},
        "dashboard": {name for expression in expressions() for name in NAMES.findall(expression)},
        "guide": set(NAMES.findall(GUIDE.read_text())),
    }
    for where, names in named.items():
        assert names, where
        assert {base(name) for name in names} <= served, where


def test_every_metric_is_on_the_dashboard_or_in_a_rule() -> None:
    text = DASHBOARD.read_text() + RULES.read_text()
    assert {row.name for row in metrics_page.rows() if row.name not in text} == set()


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    runbooks = re.findall(r"^### (\w+)$", GUIDE.read_text(), re.MULTILINE)
    assert runbooks == [alert["alert"] for alert in alerts()]


def test_every_expression_of_the_dashboard_is_one(tmp_path: Path) -> None:
    """As a rule's, which promtool reads."""
    rules = [{"record": f"panel:{number}", "expr": each} for number, each in enumerate(expressions())]
    file = tmp_path / "dashboard.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", str(file))


def test_panels_have_places_of_their_own() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert all(x < 24 for x, _ in cells)
        taken |= cells
    ids = [panel["id"] for panel in panels()]
    assert len(ids) == len(set(ids))
