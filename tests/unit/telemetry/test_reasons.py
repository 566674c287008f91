"""The reasons that may be labels are those of the documentation."""

import re
from pathlib import Path

from kms.telemetry.reasons import NOT_READY_REASONS, REFUSAL_REASONS, known

REFERENCE = Path(__file__).parents[3] / "docs" / "reference"
# Of operators' routes: they are no part of a release.
OPERATORS = {
    "unauthenticated",
    "policy-invalid",
    "policy-gated",
    "keys-conflict",
    "not-found",
    "epoch-in-use",
    "forbidden",
}


def codes(text: str) -> set[str]:
    return set(re.findall(r"`([a-z][a-z0-9]*(?:-[a-z0-9]+)+|product|hwid)`", text))


def table(page: str, start: str) -> list[str]:
    text = (REFERENCE / page).read_text()
    rows = text[text.index(start) :].split("\n\n")[0].splitlines()
    return rows[2:]


def test_every_documented_reason_of_a_refusal_is_counted_by_its_name() -> None:
    documented = set()
    for row in table("policy.md", "| reason | the guest |"):
        documented |= codes(row.split("|")[1])
    for row in table("protocol.md", "| code | reasons |"):
        _, code, reasons, *_ = row.split("|")
        if not codes(code) & OPERATORS and "unauthenticated" not in code and "forbidden" not in code:
            documented |= codes(reasons)
    assert documented - REFUSAL_REASONS == set()


def test_every_documented_reason_of_the_root_key_is_one_not_to_be_ready() -> None:
    for row in table("keys.md", "| reason | means |"):
        assert codes(row.split("|")[1]) <= NOT_READY_REASONS


def test_what_is_not_known_is_other() -> None:
    assert known("f" * 64, REFUSAL_REASONS) == "other"
