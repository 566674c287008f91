"""What is written down of a decision, and how much of it strangers may write."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from kms.evidence.app_document import AppIdentity
from kms.identifiers import AppId, ComposeHash, InstanceId
from kms.ledger.budget import StrangerBudget
from kms.ledger.entries import read_timestamp, timestamp
from kms.measurement.images import Binding
from kms.policy.decision import AppClaim, Ask
from tests.refusals import refusal

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


def test_strangers_write_so_much_a_minute_and_no_more() -> None:
    budget = StrangerBudget(3)
    assert [budget.take(NOW + timedelta(seconds=second)) for second in range(5)] == [True] * 3 + [False] * 2
    assert budget.left_out == 2
    assert budget.take(NOW + timedelta(seconds=60))


def test_a_clock_that_is_set_back_does_not_stop_the_record() -> None:
    budget = StrangerBudget(1)
    assert budget.take(NOW)
    assert budget.take(NOW - timedelta(hours=1))
    assert not budget.take(NOW - timedelta(hours=1))


ENTRY = refusal("r1", reasons=("app-not-listed",))


def test_an_entry_holds_what_the_request_claims_of_its_app() -> None:
    claim = AppClaim(app_id=AppId(b"\xa1" * 20), instance_id=InstanceId(b"\x11" * 16))
    written = json.loads(replace(ENTRY, ask=Ask(keys=(), app=claim)).canonical)
    assert written["claim"] == {"app_id": "a1" * 20, "compose_hash": None, "instance_id": "11" * 16}
    assert json.loads(ENTRY.canonical)["claim"] is None


def test_a_time_reads_back_only_in_the_form_in_which_it_is_written() -> None:
    moment = NOW + timedelta(microseconds=7)
    assert read_timestamp(timestamp(moment)) == moment
    for text in (
        "2026-11-21T12:00:00Z",
        "2026-11-21T12:00:00.000000",
        "2026-11-21",
        "20261121T12",
        "soon",
        "",
    ):
        with pytest.raises(ValueError, match=r"time|format"):
            read_timestamp(text)


def test_an_entry_holds_the_epoch_of_each_key_that_was_released_and_else_nothing_of_it() -> None:
    written = json.loads(replace(ENTRY, key_epochs=(2, None, 1)).canonical)
    assert written["key_epochs"] == [2, None, 1]
    assert "key_epochs" not in json.loads(ENTRY.canonical)


def test_an_entry_holds_all_that_a_bound_document_states() -> None:
    """Beside a command line that binds the app, BootInfo says nothing of the document."""
    document = AppIdentity(
        app_id=AppId(b"\xa1" * 20),
        compose_hash=ComposeHash(b"\xc1" * 32),
        instance_id=None,
        binding=Binding.DSTACK_MR_CONFIG,
        kms_identity=b"\xff" * 32,
    )
    written = json.loads(replace(ENTRY, document=document).canonical)
    assert written["document"] == {
        "app_id": "a1" * 20,
        "compose_hash": "c1" * 32,
        "instance_id": None,
        "binding": "dstack-mr-config",
        "kms_identity": "_" * 42 + "8",
    }
    assert json.loads(ENTRY.canonical)["document"] is None
