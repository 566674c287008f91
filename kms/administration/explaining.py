"""Explanations: every check with what was wanted, and which document and line says so.

For operators only: a guest that is told how it differs from what is allowed is told what to pretend.
"""

import re
from collections.abc import Iterable
from datetime import datetime
from typing import Final

from kms.administration.office import Json
from kms.app_keys import EPOCH_UNAVAILABLE
from kms.boot_info import BootInfo
from kms.checks import Check, failures
from kms.errors import CollateralUnavailable, MalformedEvidence
from kms.evidence.launch import NamedApp
from kms.identifiers import AppId, Measurement
from kms.judgement import name_app
from kms.ledger.entries import timestamp
from kms.ledger.recorded import RecordedDecision
from kms.measurement.nearest import nearest_image
from kms.policy.decision import Decision
from kms.policy.rule_table import MEASUREMENT, WITHOUT_DOCUMENT
from kms.policy.rules import Rules
from kms.release import EVIDENCE_UNTRUSTED, MEASUREMENT_UNKNOWN, POLICY_DENIED
from kms.strict_json import JsonValue
from kms.verification import Question, Verification, named_app

COLLATERAL: Final = "collateral"  # a check of what could not be had

_MEASUREMENT: Final = re.compile(r"\b[0-9a-f]{96}\b")
_CODES: Final = {
    COLLATERAL: CollateralUnavailable.code,
    "report-format": MalformedEvidence.code,
    MEASUREMENT: MEASUREMENT_UNKNOWN,
    "epoch": EPOCH_UNAVAILABLE,
}


def explain_recorded(recorded: RecordedDecision, rules: Rules | None) -> Json:
    """Explain a recorded decision: its checks as they were made then.

    `rules` are those of the revision that judged; of the one in force now where none is recorded, which is so
    where a report was refused for what it claims.
    """
    proven, claim, document = recorded.boot_info, recorded.ask.app, recorded.document
    app_id = _app_id(proven, name_app(claim, document))
    nearest = None
    measurement = _unknown_measurement(recorded)
    if measurement is not None:
        groups = () if rules is None else (rules.images_of(app_id), rules.images)
        nearest = str(nearest_image(measurement, groups, named_app(claim, document)))
    return {
        "release_id": recorded.release_id,
        "decided_at": timestamp(recorded.decided_at),
        "code": recorded.code,
        **_judged(recorded.checks, rules, app_id, proven),
        "nearest": nearest,
    }


def explain_evidence(
    question: Question,
    verification: Verification,
    checks: tuple[Check, ...],
    *,
    now: datetime,
    rules: Rules | None,
) -> Json:
    """Explain evidence. `checks` are those of its verification, and what was checked beside it."""
    proven = verification.boot_info
    return {
        "release_id": None,
        "decided_at": timestamp(now),
        "code": _code(checks, verification.decision),
        **_judged(checks, rules, _app_id(proven, question.app()), proven),
        "nearest": None if verification.nearest is None else str(verification.nearest),
    }


def _app_id(proven: BootInfo | None, named: NamedApp | None) -> AppId | None:
    """Give the app that was judged: the bound one, or where nothing was proven the one that was named."""
    if proven is not None and proven.app_id is not None:
        return proven.app_id
    return None if named is None else named.app_id


def _judged(
    checks: Iterable[Check], rules: Rules | None, app_id: AppId | None, proven: BootInfo | None
) -> Json:
    made = tuple(checks)
    by = [None if rules is None else rules.of(check, app_id, proven) for check in made]
    asked = any(rule and check.name not in WITHOUT_DOCUMENT for check, rule in zip(made, by, strict=True))
    explained: list[JsonValue] = [
        {
            **check._asdict(),
            "wanted": None if rule is None else rule.wanted,
            "says": None if rule is None or rule.says is None else rule.says.to_json(),
        }
        for check, rule in zip(made, by, strict=True)
    ]
    return {
        "decision": "deny" if failures(made) else "allow",
        "policy_revision": rules.revision if rules is not None and asked else None,
        "checks": explained,
        "boot_info": None if proven is None else proven.to_json(),
    }


def _unknown_measurement(recorded: RecordedDecision) -> Measurement | None:
    """Give the measurement that no allowed image shows, if that is why the guest was refused."""
    unknown = [check for check in recorded.checks if check.name == MEASUREMENT and not check.passed]
    if not unknown:
        return None
    if recorded.boot_info is not None:
        return recorded.boot_info.measurement
    # Nothing was proven: what the report claimed stands in the words of the check alone.
    claimed = _MEASUREMENT.search(unknown[0].detail)
    return None if claimed is None else Measurement.from_hex(claimed[0])


def _code(checks: Iterable[Check], decision: Decision | None) -> str | None:
    """Give the code of the first step of a release that fails; None where it would be released."""
    failed = next((check.name for check in checks if not check.passed), None)
    if failed is None:
        return None
    if decision is not None and any(check.name == failed for check in decision.checks):
        return POLICY_DENIED
    return _CODES.get(failed, EVIDENCE_UNTRUSTED)
