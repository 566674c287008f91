"""The only place that builds concrete objects: from settings to a server that can release keys."""

import os
import secrets
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine

from kms.authenticity import Authenticator
from kms.database.collateral import CollateralDatabase
from kms.database.decisions import DecisionStore
from kms.database.engine import open_engine
from kms.database.installation import Installation
from kms.database.migrate import migrate
from kms.database.policies import FollowedPolicies, PolicyStore
from kms.desk import ReleaseDesk
from kms.errors import ConfigurationError, LedgerUnavailable
from kms.http.app import create_app
from kms.http.limits import AddressLimiter
from kms.http.routes import Readiness
from kms.http.tls import LocalTls, server_context
from kms.kds.client import KdsClient
from kms.kds.importing import import_folder
from kms.kds.service import CollateralService
from kms.keys.identity import Identity
from kms.keys.root_messages import FOUNDING_EPOCH, Mode, challenge_message, identity_message
from kms.packaged import load_advisories, packaged_folder
from kms.policy.revision import Revision
from kms.policy_folder.watching import FolderWatcher
from kms.ports import Clock
from kms.preflight import check_settings, checked_database_url
from kms.readiness import NotReady
from kms.rootkey import open_checked_root
from kms.settings import Settings
from kms.snp.revocation import Revocation, RevocationMode
from kms.snp.roots import TrustedRoots
from kms.start_lock import alone_in

_IDENTITY_GENERATION: Final = 1


def utc_now() -> datetime:
    """Give the server's clock."""
    return datetime.now(UTC)


def new_id() -> str:
    """Give a release or request id: 32 hex digits that sort by time (RFC 9562 section 5.7, version 7)."""
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds << 80) | secrets.randbits(80)
    value = value & ~(0xF << 76) | (0x7 << 76)
    value = value & ~(0x3 << 62) | (0x2 << 62)
    return f"{value:032x}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """The opened database, for the server and for commands that change its state."""

    engine: AsyncEngine
    policies: PolicyStore
    installation: Installation
    collateral: CollateralDatabase


@dataclass(frozen=True, slots=True, kw_only=True)
class Kms:
    """A server, built and ready to listen."""

    app: FastAPI
    desk: ReleaseDesk
    tls: ssl.SSLContext


def mode_of(settings: Settings) -> Mode:
    """Give the mode that roots and databases are marked with."""
    return Mode.DEVELOPMENT if settings.development else Mode.PRODUCTION


@asynccontextmanager
async def open_stores(settings: Settings) -> AsyncIterator[Stores]:
    """Make the data folder, open the database, bring it to this version, and check its mark.

    Raises:
        ConfigurationError: any of it cannot be done; nothing was changed that must not be.

    """
    url = checked_database_url(settings)
    _keep_files_private()
    async with AsyncExitStack() as stack:
        async with alone_in(settings.data_dir):
            stores = await _open_stores(url, settings, stack)
        yield stores


@asynccontextmanager
async def open_kms(settings: Settings) -> AsyncIterator[Kms]:
    """Build the server, and take it apart again in order.

    Raises:
        ConfigurationError: the operator must change something; it says what. Where the settings, or what
            they name, are wrong, nothing was made on disk.

    """
    async with AsyncExitStack() as stack:
        kms = await _build(settings, stack)
        yield kms


async def apply_policy(settings: Settings, revision: Revision, *, author: str, message: str) -> bool:
    """Put a revision in force on the settings' database; say whether that changed anything.

    Raises:
        ConfigurationError: the database cannot be used.

    """
    async with open_stores(settings) as stores:
        return await stores.policies.apply(revision, author=author, message=message)


def revocation_rules(settings: Settings) -> Revocation:
    """Give how revocation is judged; the lists come from the collateral."""
    return Revocation(mode=settings.crl, max_age=settings.crl_max_age)


def collateral_service(
    settings: Settings, stores: Stores, roots: TrustedRoots, *, clock: Clock = utc_now
) -> CollateralService:
    """Give the collateral that the settings name, not started. `clock` says what is valid."""
    kds = None
    if settings.kds_urls:
        rate = settings.kds_rate
        kds = KdsClient(settings.kds_urls, per_second=rate.per_second, burst=rate.burst, clock=utc_now)
    return CollateralService(
        store=stores.collateral,
        kds=kds,
        roots=roots,
        clock=clock,
        renew_lists=settings.crl is not RevocationMode.OFF,
    )


async def _build(settings: Settings, stack: AsyncExitStack) -> Kms:
    checked = check_settings(settings)
    _keep_files_private()
    async with alone_in(settings.data_dir):
        stores = await _open_stores(checked.database_url, settings, stack)
        root_key = await open_checked_root(
            checked.root_key_uri,
            stores.installation,
            mode=mode_of(settings),
            now=utc_now(),
            random=secrets.token_bytes,
        )
        local_tls = None if checked.tls is not None else _local_tls(settings)
    identity = Identity.from_prf(await root_key.prf(FOUNDING_EPOCH, identity_message(_IDENTITY_GENERATION)))
    policies = FollowedPolicies(stores.policies)
    watcher = None
    try:
        if settings.policy_dir is not None and checked.policy_files is not None:
            watcher = FolderWatcher(
                settings.policy_dir,
                stores.policies,
                development=settings.development,
                applied=policies.refresh,
            )
            await watcher.apply_at_start(checked.policy_files)
        await policies.refresh()
    except LedgerUnavailable as error:
        raise ConfigurationError(error.detail, remedy="apply a policy again: kms policy apply DIR") from error
    decisions = DecisionStore(stores.engine, utc_now)
    await import_folder(settings.certificate_folder, stores.collateral, checked.roots, utc_now())
    collateral = collateral_service(settings, stores, checked.roots)
    desk = ReleaseDesk(
        clock=utc_now,
        randomness=secrets.token_bytes,
        authenticator=Authenticator(
            roots=checked.roots, revocation=revocation_rules(settings), collateral=collateral
        ),
        advisories=load_advisories(),
        policies=policies,
        decisions=decisions,
        root_key=root_key,
        identity=identity,
        challenge_key=await root_key.prf(FOUNDING_EPOCH, challenge_message()),
        challenge_lifetime=settings.challenge_ttl,
        development=settings.development,
    )
    not_ready = NotReady(
        revisions=stores.policies,
        policies=policies,
        decisions=decisions,
        root_key=root_key,
        collateral=collateral,
        watcher=watcher,
    )
    app = create_app(
        desk,
        readiness=Readiness(reasons=not_ready.reasons),
        limiter=AddressLimiter(settings.rate_limit.per_second, settings.rate_limit.burst, time.monotonic),
        new_request_id=new_id,
        tls_ca=None if local_tls is None else local_tls.ca.read_text("ascii"),
    )
    tls = checked.tls
    if local_tls is not None:
        tls = server_context(local_tls.certificate, local_tls.key, settings.tls_minimum)
    if tls is None:
        raise ConfigurationError("there is no TLS certificate")
    decisions.start()
    stack.push_async_callback(decisions.stop)
    collateral.start()
    stack.push_async_callback(collateral.stop)
    policies.start()
    stack.push_async_callback(policies.stop)
    if watcher is not None:
        watcher.start()
        stack.push_async_callback(watcher.stop)
    return Kms(app=app, desk=desk, tls=tls)


async def _open_stores(url: str, settings: Settings, stack: AsyncExitStack) -> Stores:
    engine = open_engine(url)
    stack.push_async_callback(engine.dispose)
    await migrate(engine, packaged_folder("migrations"))
    stores = Stores(
        engine=engine,
        policies=PolicyStore(engine, utc_now),
        installation=Installation(engine, utc_now),
        collateral=CollateralDatabase(engine, utc_now),
    )
    await stores.installation.mark(mode_of(settings))
    return stores


def _local_tls(settings: Settings) -> LocalTls:
    """Make sure of the local CA and certificate."""
    tls = LocalTls(settings.data_dir / "tls")
    names = {"localhost", "127.0.0.1", "::1", socket.gethostname(), *settings.tls_names}
    if settings.listen.host not in {"0.0.0.0", "::"}:  # noqa: S104 -- compared, not bound
        names.add(settings.listen.host)
    tls.ensure(names, utc_now())
    return tls


def _keep_files_private() -> None:
    # The database holds the audit record; SQLite creates its files with the process's umask.
    os.umask(0o077)
