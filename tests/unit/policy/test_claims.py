"""What an unverified report claims, judged before a certificate is sought for it.

It may only refuse what the decision would refuse: whatever the decision allows must pass here.
"""

from dataclasses import fields
from operator import attrgetter

import pytest

from kms.checks import failures
from kms.policy.claims import Claims, claim_checks
from kms.snp.flags import Signer
from tests.unit.policy.samples import Case, policy_of
from tests.unit.policy.test_decision import ALLOWED, DENIED, Change, case

CLAIM_REASONS = {
    "app-not-listed",
    "compose-not-listed",
    "chip-not-listed",
    "chips-expired",
    "product-not-listed",
    "tcb-reported-too-low",
    "tcb-committed-too-low",
    "tcb-expired",
    "provisional-firmware",
    "platform-required-missing",
    "mitigations-launch-missing",
    "app-revoked",
    "compose-revoked",
    "chip-revoked",
    "product-revoked",
    "measurement-revoked",
}


def claims_of(given: Case) -> Claims:
    names = [field.name for field in fields(Claims)]
    values = attrgetter(*names)(given.boot_info)
    return Claims(**dict(zip(names, values, strict=True)))


def refused(given: Case) -> set[str]:
    policy = policy_of([*given.documents.values(), *given.more], development=True)
    return set(failures(tuple(claim_checks(policy, claims_of(given), given.context.now))))


@pytest.mark.parametrize("change", ALLOWED.values(), ids=ALLOWED.keys())
def test_what_is_allowed_is_worth_a_certificate(change: Change) -> None:
    assert refused(change(case())) == set()


@pytest.mark.parametrize(("change", "reasons"), DENIED.values(), ids=DENIED.keys())
def test_what_is_not_worth_one_would_be_denied(change: Change, reasons: set[str]) -> None:
    denied = change(case())
    assert refused(denied) <= reasons
    if denied.boot_info.signer is Signer.VCEK:
        assert refused(denied) >= reasons & CLAIM_REASONS


def test_every_claim_reason_occurs() -> None:
    occurring = set().union(*(refused(change(case())) for change, _ in DENIED.values()))
    assert occurring >= CLAIM_REASONS
