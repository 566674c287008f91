"""What `kms verify` does to find out whether a report is authentic: as the server would, changing nothing."""

import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from kms.administration import authenticating
from kms.authenticity import Authenticator
from kms.errors import LedgerUnavailable, MalformedEvidence
from kms.ports import Collateral, CollateralStore
from kms.settings import Settings
from kms.snp.certificate import Certificate
from kms.snp.report import Report
from kms.snp.revocation import RevocationList
from kms.snp.roots import TrustedRoots
from kms.snp.verify import Unverified, VerifiedReport, verify


class Given(NamedTuple):
    """The certificates and revocation lists that were named on the command line."""

    certificates: tuple[Certificate, ...]
    lists: tuple[RevocationList, ...]


async def authenticate(
    report: Report, given: Given, settings: Settings, roots: TrustedRoots, now: datetime
) -> VerifiedReport | Unverified | MalformedEvidence:
    """Verify with what was given, the server's store, its folder and, if it may be asked, the KDS.

    The server's database is only read. Where something could not be had, that is a warning, and the report is
    judged with what there is.
    """
    from kms.wiring import revocation_rules

    rules = revocation_rules(settings)
    try:
        if not (settings.kds_urls or _has_store(settings) or settings.certificate_folder.exists()):
            return verify(report, given.certificates, roots, now, replace(rules, lists=given.lists))
        async with _collateral(report, settings, roots, now) as collateral:
            authenticator = Authenticator(roots=roots, revocation=rules, collateral=collateral)
            outcome, missing = await authenticating.authenticate(
                authenticator, report, *given, now=now, client="kms verify"
            )
    except MalformedEvidence as error:
        return error
    if missing is not None:
        sys.stderr.write(f"kms verify: warning: {missing.detail}\n")
    return outcome


def _has_store(settings: Settings) -> bool:
    from kms.database.engine import SQLITE_FILE

    return settings.database_url is not None or (settings.data_dir / SQLITE_FILE).exists()


@asynccontextmanager
async def _collateral(
    report: Report, settings: Settings, roots: TrustedRoots, now: datetime
) -> "AsyncIterator[Collateral]":
    """Make a store for as long as this takes, of what the server's has for this report and its folder has."""
    from kms.kds.importing import import_folder
    from kms.wiring import collateral_service, open_stores

    with tempfile.TemporaryDirectory(prefix="kms-verify-") as folder:
        own = settings.model_copy(update={"data_dir": Path(folder), "database_url": None})
        async with open_stores(own) as stores:
            if _has_store(settings):
                await _copy(report, settings, stores.collateral)
            await import_folder(settings.certificate_folder, stores.collateral, roots, now)
            service = collateral_service(settings, stores, roots, clock=lambda: now)
            service.start()
            try:
                yield service
            finally:
                await service.stop()


async def _copy(report: Report, settings: Settings, into: CollateralStore) -> None:
    """Copy what the server's store has for a report, without changing that store in any way."""
    from kms.database.collateral import CollateralDatabase
    from kms.database.engine import open_engine
    from kms.preflight import checked_database_url
    from kms.wiring import utc_now

    engine = open_engine(checked_database_url(settings))
    try:
        store = CollateralDatabase(engine, utc_now)
        leaves = await store.vleks(report.product, None)
        if report.chip_id is not None:
            leaves = (*leaves, *await store.vceks(report.product, report.chip_id))
        await into.keep(*await store.authorities(), *await store.revocation_lists(), *leaves)
    except LedgerUnavailable as error:
        sys.stderr.write(f"kms verify: warning: the server's store is not used: {error.detail}\n")
    finally:
        await engine.dispose()
