"""The server: from settings to one that can release keys."""

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

import structlog
from fastapi import FastAPI

from kms.administration.authentication import Authentication
from kms.desk import ReleaseDesk
from kms.errors import ConfigurationError, LedgerUnavailable, RootKeyUnavailable
from kms.http.app import create_app
from kms.http.authentication import RequestAuthentication
from kms.http.limits import AddressLimiter
from kms.http.routes import Readiness
from kms.http.tls import LocalTls, server_context
from kms.kds.importing import import_folder
from kms.oidc import open_oidc
from kms.policy_authority import PolicyUntrusted
from kms.policy_folder.watching import FolderWatcher
from kms.preflight import Checked, check_settings
from kms.readiness import NotReady
from kms.settings import Settings
from kms.start_lock import alone_in
from kms.wiring.core import Core, PolicyParts, build_core
from kms.wiring.office import build_office
from kms.wiring.stores import new_id, utc_now

_log = structlog.get_logger("kms.start")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kms:
    """A server, built and ready to listen."""

    app: FastAPI
    desk: ReleaseDesk
    tls: ssl.SSLContext


# What operators mend beside a server: what the database says of epochs, and what is kept outside of it.
_MENDED_OUTSIDE: Final = frozenset({"epochs-untrusted", "anchor-unusable"})


class ToldToStop(Exception):
    """The server was told to stop before it could be built."""


@asynccontextmanager
async def open_kms(settings: Settings, told: asyncio.Event) -> AsyncIterator[Kms]:
    """Build the server, and take it apart again in order. While the root key does not answer, it waits.

    Raises:
        ConfigurationError: the operator must change something; it says what. Where the settings, or what
            they name, are wrong, nothing was made on disk.
        ToldToStop: `told` was set while it waited.

    """
    async with AsyncExitStack() as stack:
        kms = await _build(settings, told, stack)
        yield kms


async def _build(settings: Settings, told: asyncio.Event, stack: AsyncExitStack) -> Kms:
    checked = check_settings(settings, serving=True)
    core = await _when_the_root_answers(settings, checked, told, stack)
    parts, desk = core.parts, core.desk
    async with alone_in(settings.data_dir):
        local_tls = None if checked.tls is not None else _local_tls(settings)
    watcher = await _policy_in_force(settings, checked, parts)
    await import_folder(settings.certificate_folder, core.stores.collateral, checked.roots, utc_now())
    not_ready = NotReady(
        revisions=parts.store,
        policies=parts.followed,
        decisions=core.decisions,
        root_key=desk.root_key,
        epochs=desk.epochs,
        clock=utc_now,
        collateral=core.collateral,
        watcher=watcher,
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
        limiter=AddressLimiter(settings.rate_limit.per_second, settings.rate_limit.burst, time.monotonic),
        new_request_id=new_id,
        tls_ca=None if local_tls is None else local_tls.ca.read_text("ascii"),
        office=build_office(core.stores.engine, parts, desk, core.keys, parts.followed),
        authenticate=authentication,
    )
    tls = checked.tls
    if local_tls is not None:
        tls = server_context(local_tls.certificate, local_tls.key, settings.tls_minimum, settings.operator_ca)
    if tls is None:
        raise ConfigurationError("there is no TLS certificate")
    core.root.start()
    core.decisions.start()
    stack.push_async_callback(core.decisions.stop)
    core.collateral.start()
    stack.push_async_callback(core.collateral.stop)
    parts.followed.start()
    stack.push_async_callback(parts.followed.stop)
    if watcher is not None:
        watcher.start()
        stack.push_async_callback(watcher.stop)
    return Kms(app=app, desk=desk, tls=tls)


async def _when_the_root_answers(
    settings: Settings, checked: Checked, told: asyncio.Event, stack: AsyncExitStack
) -> Core:
    """Build the core as soon as the root key answers, and the database may be believed of its keys.

    A server that starts before Vault is unsealed waits for it.
    """
    while True:
        async with AsyncExitStack() as attempt:
            try:
                core = await build_core(settings, checked, attempt)
            except RootKeyUnavailable as error:
                _log.warning("root-key-awaited", reason=error.reason, cause=error.detail)
                wait = error.retry_after
            except LedgerUnavailable as error:
                if error.reason not in _MENDED_OUTSIDE:
                    raise
                _log.error("keys-awaited", reason=error.reason, cause=error.detail)
                wait = error.retry_after
            else:
                await stack.enter_async_context(attempt.pop_all())
                return core
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
    except LedgerUnavailable as error:
        raise ConfigurationError(error.detail, remedy="is the database there, and whole?") from error
    return watcher


def _local_tls(settings: Settings) -> LocalTls:
    """Make sure of the local CA and certificate."""
    tls = LocalTls(settings.data_dir / "tls")
    names = {"localhost", "127.0.0.1", "::1", socket.gethostname(), *settings.tls_names}
    if settings.listen.host not in {"0.0.0.0", "::"}:  # noqa: S104 -- compared, not bound
        names.add(settings.listen.host)
    tls.ensure(names, utc_now())
    return tls
