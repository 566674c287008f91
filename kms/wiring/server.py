"""The server: from settings to one that can release keys."""

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import structlog
from starlette.types import ASGIApp

from kms.administration.authentication import Authentication
from kms.database.engine import is_shared
from kms.desk import ReleaseDesk
from kms.errors import ConfigurationError, LedgerUnavailable, RootKeyUnavailable
from kms.figures import Figures, Parts
from kms.http.app import create_app
from kms.http.authentication import RequestAuthentication
from kms.http.observing import HOT_PATHS, Observed
from kms.http.routes import Readiness
from kms.http.tls import LocalTls, certificate_expiry, server_context
from kms.kds.importing import import_folder
from kms.ledger_following import FollowedLedger
from kms.oidc import open_oidc
from kms.policy_authority import PolicyUntrusted
from kms.policy_folder.watching import FolderWatcher
from kms.preflight import Checked, check_settings
from kms.readiness import NotReady
from kms.settings import Settings
from kms.start_lock import alone_in
from kms.telemetry.metrics import Metrics
from kms.telemetry.requests import Requests
from kms.wiring.core import Core, PolicyParts, build_core
from kms.wiring.ledger import follow_ledger
from kms.wiring.limits import build_limits
from kms.wiring.office import build_office, public_ledger
from kms.wiring.stores import new_id, utc_now
from kms.wiring.telemetry import open_releases

_log = structlog.get_logger("kms.start")

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kms:
    """A server, built and ready to listen."""

    app: ASGIApp
    desk: ReleaseDesk
    tls: ssl.SSLContext
    figures: Figures


# What operators mend beside a server: what the database says of epochs, and what is kept outside of it.
_MENDED_OUTSIDE: Final = frozenset({"epochs-untrusted", "anchor-unusable", "anchor-unavailable"})


class ToldToStop(Exception):
    """The server was told to stop before it could be built."""


@asynccontextmanager
async def open_kms(
    settings: Settings, told: asyncio.Event, *, first: bool = True, metrics: Metrics | None = None
) -> AsyncIterator[Kms]:
    """Build the server, and take it apart again in order. While the root key does not answer, it waits.

    A worker that is not the `first` leaves to that one what needs doing only once. `metrics` are what it
    measures with.

    Raises:
        ConfigurationError: the operator must change something; it says what. Where the settings, or what
            they name, are wrong, nothing was made on disk.
        ToldToStop: `told` was set while it waited.

    """
    async with AsyncExitStack() as stack:
        kms = await _build(settings, told, stack, metrics or Metrics(), first=first)
        yield kms


async def _build(
    settings: Settings, told: asyncio.Event, stack: AsyncExitStack, metrics: Metrics, *, first: bool
) -> Kms:
    checked = check_settings(settings, serving=True)
    releases = open_releases(settings, metrics, stack)
    core, ledger = await _when_answered(told, lambda: _core_and_ledger(settings, checked, stack, metrics))
    limits = build_limits(settings, core.stores.engine)
    parts, desk = core.parts, replace(core.desk, limits=limits.guests, follow=releases.follow)
    async with alone_in(settings.data_dir):
        # Guests pin one CA for all servers: only the first of several may make it.
        made_here = core.founding or not is_shared(checked.database_url)
        local_tls = None if checked.tls is not None else _local_tls(settings, may_make_ca=made_here)
    watcher = await _when_answered(told, lambda: _policy_in_force(settings, checked, parts))
    if first:
        await import_folder(settings.certificate_folder, core.stores.collateral, checked.roots, utc_now())
    not_ready = NotReady(
        revisions=parts.store,
        policies=parts.followed,
        decisions=core.decisions,
        ledger=ledger,
        root_key=desk.root_key,
        epochs=desk.epochs,
        clock=utc_now,
        collateral=core.collateral,
        watcher=watcher,
        told_to_stop=told.is_set,
    )
    authentication = RequestAuthentication(
        Authentication(register=parts.register, clock=utc_now),
        oidc=None if checked.oidc is None else await stack.enter_async_context(open_oidc(checked.oidc)),
        clock=utc_now,
        monotonic=time.monotonic,
    )
    app = create_app(
        desk,
        readiness=Readiness(reasons=not_ready.reasons),
        limiter=limits.addresses,
        gate=limits.gate,
        new_request_id=new_id,
        tls_ca=None if local_tls is None else local_tls.ca.read_text("ascii"),
        office=build_office(core.stores.engine, parts, desk, core.keys, parts.followed),
        ledger=public_ledger(core.stores.engine, core.keys),
        authenticate=authentication,
    )
    observed = Observed(app, Requests(metrics, HOT_PATHS).report)
    tls, certificate = checked.tls, settings.tls_cert
    if local_tls is not None:
        certificate = local_tls.certificate
        tls = server_context(local_tls.certificate, local_tls.key, settings.tls_minimum, settings.operator_ca)
    if tls is None or certificate is None:
        raise ConfigurationError("there is no TLS certificate")
    figures = Figures(
        metrics,
        Parts(
            desk=desk,
            policies=parts.followed,
            decisions=core.decisions,
            engine=core.stores.engine,
            collateral=core.collateral,
            certificates=core.stores.collateral,
            ledger=ledger,
            requests=observed,
            readiness=not_ready.reasons,
            tls_expiry=certificate_expiry(certificate),
            monotonic=time.monotonic,
        ),
    )
    core.root.start()
    ledger.start()
    stack.push_async_callback(ledger.stop)
    core.decisions.start()
    stack.push_async_callback(core.decisions.stop)
    core.collateral.start()
    stack.push_async_callback(core.collateral.stop)
    parts.followed.start()
    stack.push_async_callback(parts.followed.stop)
    if watcher is not None:
        watcher.start()
        stack.push_async_callback(watcher.stop)
    if settings.workers > 1 or is_shared(checked.database_url):
        limits.shared.start()
        stack.push_async_callback(limits.shared.stop)
    figures.start()
    stack.push_async_callback(figures.stop)
    return Kms(app=observed, desk=desk, tls=tls, figures=figures)


async def _core_and_ledger(
    settings: Settings, checked: Checked, stack: AsyncExitStack, metrics: Metrics
) -> tuple[Core, FollowedLedger]:
    """Build the core, and look at the ledger before anything is recorded in it.

    Raises:
        ConfigurationError: a part cannot be opened; or the ledger is older than it was, or was changed.
        RootKeyUnavailable: the root does not answer now.
        LedgerUnavailable: nor does the database, or the anchor.

    """
    async with AsyncExitStack() as attempt:
        core = await build_core(settings, checked, attempt, metrics)
        ledger = await follow_ledger(core, checked.anchor)
        await stack.enter_async_context(attempt.pop_all())
    return core, ledger


async def _when_answered(told: asyncio.Event, attempt: Callable[[], Awaitable[T]]) -> T:
    """Repeat it until the root key and the anchor answer, and the database may be believed of its keys.

    A server that starts before Vault is unsealed waits for it.

    Raises:
        ConfigurationError: something else is wrong; or the database does not answer.
        ToldToStop: `told` was set meanwhile.

    """
    while True:
        try:
            return await attempt()
        except RootKeyUnavailable as error:
            _log.warning("root-key-awaited", reason=error.reason, cause=error.detail)
            wait = error.retry_after
        except LedgerUnavailable as error:
            if error.reason not in _MENDED_OUTSIDE:
                raise ConfigurationError(error.detail, remedy="is the database there, and whole?") from error
            _log.error("keys-awaited", reason=error.reason, cause=error.detail)
            wait = error.retry_after
        with suppress(TimeoutError):
            await asyncio.wait_for(told.wait(), wait)
            raise ToldToStop


async def _policy_in_force(settings: Settings, checked: Checked, parts: PolicyParts) -> FolderWatcher | None:
    """Apply the watched folder if there is one, and load what is in force; give the watcher, at rest."""
    watcher = None
    try:
        if settings.policy_dir is not None and checked.policy_files is not None:
            watcher = FolderWatcher(
                settings.policy_dir,
                parts.folder,
                development=settings.development,
                applied=parts.followed.refresh,
            )
            await watcher.apply_at_start(checked.policy_files)
        await parts.followed.refresh()
    except PolicyUntrusted as error:
        # The server starts, releases nothing and says why: operators mend it from where they are. (An anchor
        # that is damaged is met before this: without it nobody can tell which identity to sign with.)
        _log.error("policy-not-followed", cause=error.detail, reason=error.reason)
    return watcher


def _local_tls(settings: Settings, *, may_make_ca: bool) -> LocalTls:
    """Make sure of the local CA and certificate.

    Raises:
        ConfigurationError: the CA is not there, and may not be made.

    """
    tls = LocalTls(settings.data_dir / "tls")
    if not may_make_ca and not tls.ca.exists():
        raise ConfigurationError(
            "other servers are on this database, and this one has neither a TLS certificate nor their CA",
            remedy="set KMS_TLS_CERT and KMS_TLS_KEY, or copy tls/ca.pem and tls/ca-key.pem from the data"
            " folder of the first server",
        )
    names = {"localhost", "127.0.0.1", "::1", socket.gethostname(), *settings.tls_names}
    if settings.listen.host not in {"0.0.0.0", "::"}:  # noqa: S104 -- compared, not bound
        names.add(settings.listen.host)
    tls.ensure(names, utc_now())
    return tls
