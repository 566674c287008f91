"""The only place that builds concrete objects: from settings to a server that can release keys."""

import os
import secrets
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog
import uvicorn
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine

from kms.database.decisions import DecisionStore
from kms.database.engine import open_engine, sqlite_url
from kms.database.installation import Installation
from kms.database.migrate import migrate
from kms.database.policies import FollowedPolicies, PolicyStore
from kms.desk import ReleaseDesk
from kms.errors import ConfigurationError, LedgerUnavailable, RootKeyUnavailable
from kms.http.app import create_app
from kms.http.limits import AddressLimiter
from kms.http.routes import Readiness
from kms.http.tls import LocalTls, server_context
from kms.kds.folder import CertificateFolder, read_certificates
from kms.keys.check_value import agrees, check_value
from kms.keys.identity import Identity
from kms.keys.root_messages import FOUNDING_EPOCH, Mode, challenge_message, check_message, identity_message
from kms.packaged import packaged_folder
from kms.policy.revision import Revision
from kms.policy_folder.watching import FolderWatcher
from kms.ports import RootKey
from kms.rootkey import RootKeyMissing, create_root_key, open_root_key
from kms.settings import Settings
from kms.trust import load_roots

_log = structlog.get_logger("kms.start")

_ROOT_KEY_FILE: Final = "root-key.json"
_IDENTITY_GENERATION: Final = 1
_KEEP_ALIVE: Final = 75  # seconds
_MOST_AT_ONCE: Final = 1024  # requests in flight, before the server says 503
_GRACE: Final = 20  # seconds for requests in flight when the server is told to stop


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Kms:
    """A server, built and ready to listen."""

    app: FastAPI
    desk: ReleaseDesk
    tls_certificate: Path
    tls_key: Path


def mode_of(settings: Settings) -> Mode:
    """Give the mode that roots and databases are marked with."""
    return Mode.DEVELOPMENT if settings.development else Mode.PRODUCTION


@asynccontextmanager
async def open_stores(settings: Settings) -> AsyncIterator[Stores]:
    """Make the data folder, open the database, bring it to this version, and check its mark.

    Raises:
        ConfigurationError: any of it cannot be done; nothing was changed that must not be.

    """
    try:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"the data folder {settings.data_dir} cannot be made: {error.strerror}",
            remedy="set KMS_DATA_DIR to a folder that this user can write",
        ) from error
    _keep_files_private()
    engine = open_engine(settings.database_url or sqlite_url(settings.data_dir))
    try:
        await migrate(engine, packaged_folder("migrations"))
        stores = Stores(
            engine=engine,
            policies=PolicyStore(engine, utc_now),
            installation=Installation(engine, utc_now),
        )
        await stores.installation.mark(mode_of(settings))
        yield stores
    finally:
        await engine.dispose()


@asynccontextmanager
async def open_kms(settings: Settings) -> AsyncIterator[Kms]:
    """Build the server, and take it apart again in order.

    Raises:
        ConfigurationError: the operator must change something; it says what.

    """
    _refuse_unbuilt(settings)
    roots = load_roots(settings.development_roots)
    async with AsyncExitStack() as stack:
        stores = await stack.enter_async_context(open_stores(settings))
        root_key = await open_checked_root(settings, stores.installation)
        identity = Identity.from_prf(
            await root_key.prf(FOUNDING_EPOCH, identity_message(_IDENTITY_GENERATION))
        )
        policies = FollowedPolicies(stores.policies)
        watcher = None
        if settings.policy_dir is not None:
            watcher = FolderWatcher(settings.policy_dir, stores.policies, development=settings.development)
            await watcher.apply_at_start()
        try:
            await policies.refresh()
        except LedgerUnavailable as error:
            raise ConfigurationError(
                error.detail, remedy="apply a policy again: kms policy apply DIR"
            ) from error
        decisions = DecisionStore(stores.engine, utc_now)
        desk = ReleaseDesk(
            clock=utc_now,
            randomness=secrets.token_bytes,
            roots=roots,
            collateral=CertificateFolder(read_certificates(settings.certificate_folder)),
            policies=policies,
            decisions=decisions,
            root_key=root_key,
            identity=identity,
            challenge_key=await root_key.prf(FOUNDING_EPOCH, challenge_message()),
            challenge_lifetime=settings.challenge_ttl,
            development=settings.development,
        )
        tls = local_tls(settings)
        app = create_app(
            desk,
            readiness=Readiness(reasons=_reasons_not_ready(stores, policies, root_key, watcher)),
            limiter=AddressLimiter(settings.rate_limit.per_second, settings.rate_limit.burst, time.monotonic),
            new_request_id=new_id,
            tls_ca=None if tls is None else tls.ca.read_text("ascii"),
        )
        certificate = settings.tls_cert if tls is None else tls.certificate
        key = settings.tls_key if tls is None else tls.key
        if certificate is None or key is None:
            raise ConfigurationError("KMS_TLS_CERT and KMS_TLS_KEY go together: set both or neither")
        decisions.start()
        stack.push_async_callback(decisions.stop)
        policies.start()
        stack.push_async_callback(policies.stop)
        if watcher is not None:
            watcher.start()
            stack.push_async_callback(watcher.stop)
        yield Kms(app=app, desk=desk, tls_certificate=certificate, tls_key=key)


async def apply_policy(settings: Settings, revision: Revision, *, author: str, message: str) -> bool:
    """Put a revision in force on the settings' database; say whether that changed anything.

    Raises:
        ConfigurationError: the database cannot be used.

    """
    async with open_stores(settings) as stores:
        return await stores.policies.apply(revision, author=author, message=message)


async def serve(settings: Settings) -> None:
    """Run the server until it is told to stop (SIGTERM, SIGINT).

    Raises:
        ConfigurationError: it cannot start; it says why and what to do.

    """
    async with open_kms(settings) as kms:
        context = server_context(kms.tls_certificate, kms.tls_key, settings.tls_minimum)
        listener = _listen(settings)
        config = uvicorn.Config(
            kms.app,
            ssl_context_factory=lambda _config, _default: context,
            http="httptools",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            # A header would let anybody choose the address that is limited and recorded.
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE,
            limit_concurrency=_MOST_AT_ONCE,
            timeout_graceful_shutdown=_GRACE,
        )
        if settings.development:
            _log.warning(
                "DEVELOPMENT MODE: roots that are not AMD's are trusted; never use this for real keys",
                development_roots=str(settings.development_roots),
            )
        _log.info("listening", address=str(settings.listen), development=settings.development)
        await uvicorn.Server(config).serve(sockets=[listener])
        _log.info("stopped")


async def open_checked_root(settings: Settings, installation: Installation) -> RootKey:
    """Open the root key and hold it against the database's key-check values.

    A root is made only where no check value exists: silently making a new one would lock every guest out
    of its data (field lesson 30).

    Raises:
        ConfigurationError: lost, damaged, of another mode, or not the root that made this database's keys.

    """
    mode = mode_of(settings)
    uri = settings.root_key or f"file:{settings.data_dir / _ROOT_KEY_FILE}"
    stored = await installation.check_values()
    try:
        root_key = open_root_key(uri, mode=mode)
    except RootKeyMissing as error:
        if stored:
            raise ConfigurationError(
                f"the root key is lost: {error.detail}, and this database needs it",
                remedy="restore it from its backup; it is never made again for an existing database",
            ) from error
        root_key = create_root_key(uri, mode=mode, now=utc_now(), random=secrets.token_bytes)
        _log.info("root-key-made", mode=mode.value)
    outputs = {
        epoch: await root_key.prf(epoch, check_message(mode, epoch)) for epoch in await root_key.epochs()
    }
    missing = sorted(set(stored) - set(outputs))
    different = sorted(
        epoch for epoch in stored if epoch in outputs and not agrees(stored[epoch], outputs[epoch])
    )
    if missing or different:
        raise ConfigurationError(
            f"the root key is not the one of this database (epochs {missing + different})",
            remedy="restore the root key that belongs to this database",
        )
    new = {epoch: check_value(output) for epoch, output in outputs.items() if epoch not in stored}
    if new:
        await installation.remember_check_values(new)
    return root_key


def local_tls(settings: Settings) -> LocalTls | None:
    """Make sure of the local CA and certificate; None when the operator brings a certificate."""
    if settings.tls_cert is not None or settings.tls_key is not None:
        return None
    tls = LocalTls(settings.data_dir / "tls")
    names = {"localhost", "127.0.0.1", "::1", socket.gethostname(), *settings.tls_names}
    if settings.listen.host not in {"0.0.0.0", "::"}:  # noqa: S104 -- compared, not bound
        names.add(settings.listen.host)
    tls.ensure(names, utc_now())
    return tls


def _listen(settings: Settings) -> socket.socket:
    host, port = settings.listen
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"cannot listen on {settings.listen}: {error.strerror}",
            remedy="stop what uses it, or set KMS_LISTEN to another address",
        ) from error
    listener.listen(2048)
    listener.setblocking(False)
    return listener


def _reasons_not_ready(
    stores: Stores, policies: FollowedPolicies, root_key: RootKey, watcher: FolderWatcher | None
) -> "_Reasons":
    return _Reasons(stores, policies, root_key, watcher)


@dataclass(frozen=True, slots=True)
class _Reasons:
    stores: Stores
    policies: FollowedPolicies
    root_key: RootKey
    watcher: FolderWatcher | None

    async def __call__(self) -> tuple[str, ...]:
        reasons: list[str] = []
        if await self.policies.active() is None:
            reasons.append("policy-missing")
        if self.watcher is not None and self.watcher.failing:
            reasons.append("policy-folder-invalid")
        try:
            await self.stores.policies.active_revision()
        except LedgerUnavailable:
            reasons.append("database-unavailable")
        try:
            await self.root_key.epochs()
        except RootKeyUnavailable as error:
            reasons.append(error.reason)
        return tuple(reasons)


def _refuse_unbuilt(settings: Settings) -> None:
    """Refuse settings that would promise a protection which this version does not have."""
    if settings.policy_trust is not None:
        raise ConfigurationError("KMS_POLICY_TRUST: this version does not check signatures of policies yet")
    if settings.crl == "require":
        raise ConfigurationError("KMS_CRL=require: this version does not check revocation lists yet")
    if settings.workers != 1:
        raise ConfigurationError("KMS_WORKERS: this version runs one server process")
    if settings.ledger_anchor is not None:
        raise ConfigurationError("KMS_LEDGER_ANCHOR: this version keeps no anchor outside the database yet")


def _keep_files_private() -> None:
    # The database holds the audit record; SQLite creates its files with the process's umask.
    os.umask(0o077)
