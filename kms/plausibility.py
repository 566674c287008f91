"""Could some app accept what a report claims? Asked before a certificate is fetched for it.

Anybody can write a report of any chip. Each fetch costs a part of what AMD's key distribution service grants
us, so a report whose claims would be refused is refused without one (field lesson 15). This can only refuse:
what passes here is verified and judged in full.
"""

from datetime import datetime

from kms.checks import Check, failures
from kms.evidence.app_document import AppIdentity
from kms.judgement import name_app
from kms.measurement.images import LaunchHint
from kms.policy.claims import Claims, claim_checks
from kms.policy.decision import AppClaim
from kms.ports import ActivePolicy
from kms.snp.product import Product
from kms.snp.report import Report


async def judge_claims(
    active: ActivePolicy | None,
    report: Report,
    product: Product,
    *,
    hint: LaunchHint,
    claim: AppClaim | None,
    document: AppIdentity | None,
    now: datetime,
) -> tuple[Check, ...]:
    """Judge what an unverified report claims as one of a product's, for the app that is named.

    `document` is the identity of an app document that the report's HOST_DATA commits to. The measurement
    comes first, as in a release, and where no image shows it nothing else is said: a stranger who does not
    know what is allowed learns nothing of the policy.
    """
    named = name_app(claim, document)
    compose_hash = document.compose_hash if document else named.compose_hash if named else None
    if active is None:
        return (_measurement_check(report, known=False),)
    claims = Claims.of(report, product, None if named is None else named.app_id, compose_hash)
    checks = tuple(claim_checks(active.policy, claims, now))
    # A command line is filled, and its measurements computed, only for an app and compose that are listed.
    listed = named if not failures(checks[:2]) else None
    measured = _measurement_check(report, known=await active.may_show(report.measurement, hint, listed))
    return (measured, *checks) if measured.passed else (measured,)


def _measurement_check(report: Report, *, known: bool) -> Check:
    shown = f"claimed {report.measurement.hex()}: {'an' if known else 'no'} allowed image shows it"
    return Check.of("measurement-known", known, shown, reason="measurement-unknown")
