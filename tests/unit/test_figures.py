"""What is looked at, on a server as it is built: queues, expiries and readiness as gauges."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kms.errors import LedgerUnavailable
from kms.policy_authority import PolicyUntrusted
from kms.settings import load_settings
from kms.telemetry.metrics import Metrics
from kms.wiring import Kms, open_kms

SOON = datetime.now(UTC).replace(microsecond=0) + timedelta(days=3)
POLICY = f"""\
kind: revoked
name: none
---
kind: tcb
name: soon
expires_at: {SOON:%Y-%m-%dT%H:%M:%SZ}
products:
  milan: {{bootloader: 4, tee: 0, snp: 24, microcode: 219}}
---
kind: tcb
name: past
expires_at: 2026-01-01T00:00:00Z
products:
  milan: {{bootloader: 4, tee: 0, snp: 24, microcode: 219}}
"""


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
async def kms(tmp_path: Path, metrics: Metrics) -> AsyncIterator[Kms]:
    policies = tmp_path / "policies"
    policies.mkdir()
    (policies / "policy.yaml").write_text(POLICY)
    environment = {"KMS_DATA_DIR": str(tmp_path / "data"), "KMS_POLICY_DIR": str(policies)}
    async with open_kms(load_settings(None, environment)[0], asyncio.Event(), metrics=metrics) as kms:
        await kms.figures.refresh()
        yield kms


def value(metrics: Metrics, name: str, **labels: str) -> float:
    found = metrics.registry.get_sample_value(name, labels)
    assert found is not None, name
    return found


async def until(kms: Kms, metrics: Metrics, wanted: float, name: str, **labels: str) -> None:
    async with asyncio.timeout(10):
        while value(metrics, name, **labels) != wanted:
            await asyncio.sleep(0.1)
            await kms.figures.refresh()


async def test_a_server_that_is_well(kms: Kms, metrics: Metrics) -> None:
    now = datetime.now(UTC).timestamp()
    assert value(metrics, "kms_ready") == 1
    assert value(metrics, "kms_not_ready", reason="policy-missing") == 0
    assert value(metrics, "kms_policy_sequence") == 1
    assert value(metrics, "kms_policy_loaded_timestamp_seconds") == pytest.approx(now, abs=60)
    assert value(metrics, "kms_clock_timestamp_seconds") == pytest.approx(now, abs=60)
    assert value(metrics, "kms_tls_certificate_expiry_timestamp_seconds") > now + 300 * 86400
    assert value(metrics, "kms_development_mode") == 0
    assert 20e6 < value(metrics, "kms_process_resident_memory_bytes") < 2e9
    assert value(metrics, "kms_process_cpu_seconds_total") > 0
    assert value(metrics, "kms_root_call_duration_seconds_count", provider="file") > 3


async def test_the_ledger_is_looked_at(kms: Kms, metrics: Metrics) -> None:
    """It has the policy that was applied at the start."""
    now = datetime.now(UTC).timestamp()
    await until(kms, metrics, 1, "kms_ledger_entries")
    assert value(metrics, "kms_ledger_entries_waiting") == 0
    assert value(metrics, "kms_ledger_entries_not_authentic") == 0
    assert value(metrics, "kms_ledger_refused") == 0
    assert value(metrics, "kms_ledger_checkpoint_timestamp_seconds") == pytest.approx(now, abs=60)


async def test_a_restored_backup_is_said_of_the_ledger_too(
    kms: Kms, metrics: Metrics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There the policy is not to be trusted either, which must not hide the ledger."""

    async def untrusted() -> None:
        raise PolicyUntrusted("older than it was")

    await until(kms, metrics, 1, "kms_ledger_entries")
    monkeypatch.setattr(type(kms.desk.policies), "active", lambda _: untrusted())
    with closing(sqlite3.connect(tmp_path / "data" / "kms.sqlite3")) as connection, connection:
        connection.execute("DELETE FROM ledger_checkpoints")
    await until(kms, metrics, 1, "kms_ledger_refused")


async def test_expiries_are_those_of_the_documents(kms: Kms, metrics: Metrics) -> None:
    expiry = "kms_policy_document_expiry_timestamp_seconds"
    assert value(metrics, expiry, kind="tcb") == SOON.timestamp()
    assert value(metrics, expiry, kind="app") == 0
    assert value(metrics, "kms_policy_documents_expired", kind="tcb") == 1
    assert value(metrics, "kms_policy_documents_expired", kind="app") == 0


async def test_what_is_wrong_is_named_and_over_when_it_is_mended(
    kms: Kms, metrics: Metrics, tmp_path: Path
) -> None:
    anchor = tmp_path / "data" / "anchor.json"
    whole = anchor.read_bytes()
    anchor.write_bytes(b"{}")
    await until(kms, metrics, 1, "kms_not_ready", reason="anchor-unusable")
    assert value(metrics, "kms_ready") == 0
    anchor.write_bytes(whole)
    await until(kms, metrics, 1, "kms_ready")
    assert value(metrics, "kms_not_ready", reason="anchor-unusable") == 0


async def test_totals_of_others_only_grow(kms: Kms, metrics: Metrics) -> None:
    kms.desk.stranger_budget.left_out = 3
    await kms.figures.refresh()
    await kms.figures.refresh()
    assert value(metrics, "kms_refusals_not_recorded_total") == 3
    kms.desk.stranger_budget.left_out = 5
    await kms.figures.refresh()
    assert value(metrics, "kms_refusals_not_recorded_total") == 5


async def test_a_clock_that_leaps_is_counted(
    kms: Kms, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    then, elapsed = kms.figures._clocks or (None, None)
    assert then is not None
    assert elapsed is not None
    kms.figures._clocks = (then - timedelta(hours=1), elapsed)
    await kms.figures.refresh()
    await kms.figures.refresh()
    assert value(metrics, "kms_clock_leaps_total") == 1


async def test_a_database_that_is_gone_stops_no_other_figure(
    kms: Kms, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gone() -> None:
        raise LedgerUnavailable("gone")

    monkeypatch.setattr(type(kms.desk.policies), "active", lambda _: gone())
    metrics.server.clock.set(0)
    await kms.figures.refresh()
    assert value(metrics, "kms_clock_timestamp_seconds") > 0
