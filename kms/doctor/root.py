"""The root key: whether it answers, and is the one that made this database's keys."""

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from secrets import token_bytes
from typing import Final

from kms.doctor.asking import Heard, ask
from kms.doctor.database import Seen
from kms.doctor.diagnosis import Diagnoses
from kms.errors import KmsError
from kms.findings import Finding, failed, ok, refused, unknown, warning
from kms.https_client import client_context
from kms.identity_book import FIRST_GENERATION
from kms.keys.identity import Identity
from kms.keys.root_messages import FOUNDING_EPOCH, identity_message
from kms.rootkey import CheckedRoot, RootAccess, RootKeyMissing, open_provider

_REMEDY: Final = "kms keys list says more; restore the root that belongs to this database"


@dataclass(slots=True, kw_only=True)
class SeenRoot:
    """The root, None where it cannot be used; what is said of it, and how far its clock is before ours."""

    root: CheckedRoot | None = None
    ahead: float | None = None
    diagnoses: Diagnoses = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Stored:
    """Implements `kms.rootkey.checked.CheckValues` with what was read. Nothing is adopted by looking."""

    values: dict[int, bytes]

    async def check_values(self) -> dict[int, bytes]:
        return self.values

    async def remember_check_values(self, values: Mapping[int, bytes]) -> None:
        del values


@asynccontextmanager
async def seen_root(uri: str, access: RootAccess, database: Seen) -> AsyncIterator[SeenRoot]:
    """Open the root as a server does, without ever making one, and hold it against the database's values."""
    seen = SeenRoot()
    if access.vault is not None:
        seen.ahead = await _vault_clock(access)
    try:
        provider = await open_provider(uri, access)
    except RootKeyMissing as error:
        seen.diagnoses.append(_missing(error, database))
        yield seen
        return
    except KmsError as error:
        seen.diagnoses.append(refused("root-key", error, _REMEDY))
        yield seen
        return
    root = CheckedRoot(provider, _Stored(database.check_values), mode=access.mode, random=token_bytes)
    try:
        try:
            seen.diagnoses += await _judged(root, database)
            if database.check_values:
                seen.root = root
        except KmsError as error:
            seen.diagnoses.append(refused("root-key", error, _REMEDY))
        yield seen
    finally:
        await root.close()


async def founding_identity(root: CheckedRoot) -> bytes:
    """Give the public key of the first generation, which names this KMS. Raises `RootKeyUnavailable`."""
    return Identity.from_prf(await root.prf(FOUNDING_EPOCH, identity_message(FIRST_GENERATION))).public_key


async def _judged(root: CheckedRoot, database: Seen) -> Iterable[Finding]:
    versions = await root.versions()
    if not database.check_values:
        detail = f"it answers, with epochs {_listed(versions)}; no database was there to compare it with"
        return [ok("root-key", detail) if database.new else unknown("root-key", detail)]
    await root.verify_all()
    found = [ok("root-key", f"it answers, and epochs {_listed(database.check_values)} are this database's")]
    if more := sorted(set(versions) - set(database.check_values)):
        found.append(
            warning(
                "root-key-versions",
                f"epochs {_listed(more)} exist at the provider and were never adopted",
                "kms keys rotate adopts the next one",
            )
        )
    return found


def _missing(error: RootKeyMissing, database: Seen) -> Finding:
    if database.new:
        return warning("root-key", error.detail, "the server makes one when it starts for the first time")
    if not database.check_values:
        return unknown("root-key", f"{error.detail}, and only a database tells whether there was one")
    return failed(
        "root-key",
        f"{error.detail}, and this KMS had one",
        "restore it from its backup (kms keys restore); it is never made again for an existing KMS",
    )


async def _vault_clock(access: RootAccess) -> float | None:
    """Hear Vault's clock: a sealed Vault has one too."""
    vault = access.vault
    if vault is None:
        return None
    trust = client_context(vault.ca)
    heard = await ask(f"{vault.address}/v1/sys/health", trust=trust, proxies=False)
    return heard.ahead if isinstance(heard, Heard) else None


def _listed(epochs: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(epochs)))
