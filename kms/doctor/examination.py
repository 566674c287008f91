"""The examination: everything in turn. What one fault hides of another is said to be unknown."""

from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from sqlalchemy.engine import make_url

from kms.database.engine import is_shared
from kms.doctor.anchor import anchored, ledger_in
from kms.doctor.certificates import certificates
from kms.doctor.clocks import compared
from kms.doctor.collateral import kept, services
from kms.doctor.database import Seen, seen_database
from kms.doctor.diagnosis import Diagnoses, examined
from kms.doctor.files import disk_space, files
from kms.doctor.machine import machine
from kms.doctor.policy import policy_in_force
from kms.doctor.root import SeenRoot, seen_root
from kms.errors import ConfigurationError
from kms.findings import Finding, ok, refused, unknown, warning
from kms.preflight import Checked, check_settings
from kms.settings import Settings

_TLS_FOLDER: Final = "tls"


def _now() -> datetime:
    return datetime.now(UTC)


async def examine(settings: Settings, warnings: Iterable[str]) -> tuple[Finding, ...]:
    """Look at everything that a server with these settings stands on.

    `warnings` are those of reading the settings. Nothing raises: what cannot be looked at is a finding too.
    """
    ahead: dict[str, float] = {}

    async def tls_files() -> Iterable[Finding]:
        folder = settings.data_dir / _TLS_FOLDER
        key = settings.tls_key or folder / "server-key.pem"
        certificate = settings.tls_cert or folder / "server.pem"
        return [*files(settings, key), *certificates(settings, certificate, key, _now())]

    async def this_machine() -> Iterable[Finding]:
        return machine(settings)

    async def key_services() -> Iterable[Finding]:
        said, clocks = await services(settings)
        ahead.update(clocks)
        return said

    return (
        *_settings(settings, warnings),
        _development(settings),
        *await examined("machine", this_machine),
        *await examined("tls", tls_files),
        *await _kept(settings, ahead),
        *await examined("kds", key_services),
        compared(ahead),
    )


def _settings(settings: Settings, warnings: Iterable[str]) -> Iterable[Finding]:
    """Judge the settings as `kms serve` does before it makes anything."""
    for each in warnings:
        yield warning("settings-unused", each, "correct its name, or unset it")
    try:
        check_settings(settings, serving=True)
    except ConfigurationError as error:
        yield refused("settings", error, "`kms serve` does not start with these settings")
    else:
        yield ok("settings", "a server starts with these settings, and with what they name")


def _development(settings: Settings) -> Finding:
    if settings.development:
        return warning(
            "development-mode",
            f"DEVELOPMENT MODE: the roots in {settings.development_roots} are trusted beside AMD's",
            "unset KMS_DEVELOPMENT_ROOTS, and use another database, for keys that matter",
        )
    return ok("development-mode", "off: only AMD's roots are trusted")


async def _kept(settings: Settings, ahead: dict[str, float]) -> Diagnoses:
    """Look at what is kept; of what breaks in the middle, what was seen before it stays."""
    found: Diagnoses = []

    async def look() -> Iterable[Finding]:
        async for each in _state(settings, ahead):
            # One by one: an exception would take a list comprehension's along.
            found.append(each)
        return ()

    rest = await examined("state", look)
    return [*found, *rest]


async def _state(settings: Settings, ahead: dict[str, float]) -> AsyncIterator[Finding]:
    """Look at what is kept: database, anchor, root key, policy, collateral. `ahead` gets others' clocks."""
    try:
        checked = check_settings(settings, serving=False)
    except ConfigurationError:
        yield unknown("state", "database, root key and policy are looked at when the settings are right")
        return
    url = checked.database_url
    async with AsyncExitStack() as stack:
        stack.push_async_callback(checked.anchor.close)
        database = await stack.enter_async_context(seen_database(url, checked.root_access.mode))

        async def anchor() -> Iterable[Finding]:
            return await anchored(checked.anchor, url, data_dir=settings.data_dir, new=database.new)

        for each in (*database.diagnoses, _space(settings, url), *await examined("anchor", anchor)):
            yield each
        if database.ahead is not None:
            ahead["the database"] = database.ahead
        async with seen_root(checked.root_key_uri, checked.root_access, database) as root:
            policy = await _policy(settings, checked, database, root)
            for each in (*root.diagnoses, *await _ledger(checked, database, root), *policy):
                yield each
            if root.ahead is not None:
                ahead["Vault"] = root.ahead
        for each in await _collateral(settings, database):
            yield each


def _space(settings: Settings, url: str) -> Finding:
    return disk_space(settings.data_dir if is_shared(url) else Path(make_url(url).database or "").parent)


async def _ledger(checked: Checked, database: Seen, root: SeenRoot) -> Diagnoses:
    engine, usable = database.engine, root.root
    if engine is None or usable is None:
        return [unknown("ledger", "it can only be told with the database and its root key")]
    return await examined(
        "ledger",
        lambda: ledger_in(engine, usable, checked.anchor),
        remedy="kms ledger verify says more; bring the newest database back, and only where that is lost:"
        " kms ledger accept-rollback",
    )


async def _policy(settings: Settings, checked: Checked, database: Seen, root: SeenRoot) -> Diagnoses:
    engine, usable = database.engine, root.root
    if engine is None or usable is None:
        return [unknown("policy", "it can only be told with the database and its root key")]
    return await examined(
        "policy",
        lambda: policy_in_force(engine, usable, checked, settings, _now),
        remedy="kms policy status says more; if the database is an old copy, bring the newest one back",
    )


async def _collateral(settings: Settings, database: Seen) -> Diagnoses:
    engine = database.engine
    if engine is None:
        return [unknown("certificates", "they can only be told with the database")]
    return await examined("certificates", lambda: kept(engine, settings, _now))
