"""What the rows that entries are looked up by must say: operators find a decision by them.

They carry no MAC. Whoever changed them could hide an entry from a search; `kms ledger verify` compares.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from sqlalchemy import Table

from kms.database.schema import decisions, operator_actions
from kms.ledger.actions import ACTION
from kms.ledger.entries import DECISION
from kms.ledger.sealed_entry import SealedEntry
from kms.strict_json import JsonValue

LOOKUPS: Final[Mapping[str, Table]] = {DECISION: decisions, ACTION: operator_actions}


def disagreement(entry: SealedEntry, row: Mapping[str, Any]) -> str | None:
    """Say what of a row, by column, does not agree with its entry; None where all does.

    `row` has None in every column where there is no row. The entry must be of a kind in `LOOKUPS`.
    """
    if row["id"] is None:
        return "there is no row that it is looked up by"
    try:
        recorded: JsonValue = json.loads(entry.entry)
    except (ValueError, RecursionError):
        recorded = None
    if not isinstance(recorded, dict):
        return "the entry is no JSON object"
    expected = _EXPECTED[entry.kind](recorded)
    wrong = sorted(name for name, value in expected.items() if row[name] != value)
    return f"the row that it is looked up by has another {', '.join(wrong)}" if wrong else None


def _of_decision(entry: dict[str, JsonValue]) -> dict[str, JsonValue]:
    boot_info = entry.get("boot_info")
    guest = boot_info if isinstance(boot_info, dict) else {}
    return {
        "id": entry.get("release_id"),
        "decided_at": entry.get("decided_at"),
        "outcome": entry.get("outcome"),
        "code": entry.get("code"),
        "app_id": guest.get("app_id"),
        "chip_id": guest.get("chip_id"),
        "image": guest.get("image"),
        "measurement": guest.get("measurement"),
        "policy_revision": entry.get("policy_revision"),
    }


def _of_action(entry: dict[str, JsonValue]) -> dict[str, JsonValue]:
    return {
        "id": entry.get("action_id"),
        "at": entry.get("at"),
        "operator": entry.get("operator"),
        "action": entry.get("action"),
        "outcome": entry.get("outcome"),
    }


_EXPECTED: Final[Mapping[str, Callable[[dict[str, JsonValue]], dict[str, JsonValue]]]] = {
    DECISION: _of_decision,
    ACTION: _of_action,
}
