"""Whether evidence is authentic, for operators.

They may have any certificate sought, and are answered by what there is where one cannot be had.
"""

from dataclasses import replace
from datetime import datetime
from typing import NamedTuple

from kms.authenticity import Authenticator, NotSought
from kms.checks import Check
from kms.errors import CollateralUnavailable, LedgerUnavailable, MalformedEvidence
from kms.ports import Collateral
from kms.snp.certificate import Certificate
from kms.snp.chain import Chain
from kms.snp.kds_paths import Wanted
from kms.snp.product import Product
from kms.snp.report import Report
from kms.snp.revocation import RevocationList
from kms.snp.verify import Unverified, VerifiedReport, verify


class Authenticated(NamedTuple):
    """What came of it; by what there is, where something is `missing` that could not be had."""

    outcome: VerifiedReport | Unverified | MalformedEvidence
    missing: CollateralUnavailable | LedgerUnavailable | None = None


async def authenticate(
    authenticator: Authenticator,
    report: Report,
    certificates: tuple[Certificate, ...],
    lists: tuple[RevocationList, ...],
    *,
    now: datetime,
    client: str,
) -> Authenticated:
    """Verify a report as a release does, with the store and the key distribution services.

    What was sent is not stored: it may have been verified for another time than now. `client` is the address
    on whose behalf certificates are asked for.
    """
    missing: CollateralUnavailable | LedgerUnavailable | None = None
    collateral = authenticator.collateral
    asking = replace(authenticator, collateral=_Unchanged(collateral))
    try:
        try:
            outcome = await asking.authenticate(
                report, certificates, lists, now=now, client=client, worth=_anything
            )
            if not isinstance(outcome, NotSought):
                return Authenticated(outcome)
        except (CollateralUnavailable, LedgerUnavailable) as error:
            missing = error
        offered = (*certificates, *await collateral.leaves(report), *await collateral.authorities())
        known = (*lists, *await collateral.revocation_lists())
        rules = replace(authenticator.revocation, lists=known)
        return Authenticated(verify(report, offered, authenticator.roots, now, rules), missing)
    except MalformedEvidence as error:
        return Authenticated(error)


async def _anything(_: Product) -> tuple[Check, ...]:
    """Have a certificate sought whatever the report claims."""
    return ()


class _Unchanged:
    """Collateral that a verification does not add to. Implements `kms.ports.Collateral`."""

    def __init__(self, collateral: Collateral) -> None:
        self._collateral = collateral

    async def authorities(self) -> tuple[Certificate, ...]:
        return await self._collateral.authorities()

    async def revocation_lists(self) -> tuple[RevocationList, ...]:
        return await self._collateral.revocation_lists()

    async def leaves(self, report: Report) -> tuple[Certificate, ...]:
        return await self._collateral.leaves(report)

    async def fetch(self, wanted: Wanted, client: str) -> None:
        await self._collateral.fetch(wanted, client)

    def keep(self, chain: Chain) -> None:
        """Keep nothing."""
