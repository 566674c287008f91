"""Where the contract suite makes its roots: for each provider, its real server and who tampers with it."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Final, Protocol

from kms.keys.root_messages import Mode
from kms.rootkey import RootAccess, RootProvider, create_provider, open_provider, restore_provider
from tests.servers.softhsm import SoftHsm
from tests.servers.vault import VaultServer

NOW: Final = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarantees:
    """What a provider promises beyond the protocol.

    `marked`: the root says for which mode it was made. `exportable`: it can be had, and restored from
    outside. `held`: it is in this process's memory, so that what is in use stays usable when its place is
    lost. `secret_length`: bytes of a root. `replaced`: the reason why nothing is made in another one's place.
    """

    marked: bool
    exportable: bool
    held: bool
    secret_length: int = 32
    replaced: str = "root-key-changed"


class Ground(Protocol):
    """A place for roots of one kind, and what can happen to them behind the provider's back."""

    guarantees: Guarantees

    def access(self, mode: Mode = Mode.PRODUCTION) -> RootAccess:
        """Give how to get at it."""
        ...

    def fresh_uri(self) -> str:
        """Name a root that is not there."""
        ...

    async def place(self, uri: str, secret: bytes) -> None:
        """Make a root whose epoch 1 has this secret."""
        ...

    async def replace(self, uri: str) -> None:
        """Put another root in place of one with one epoch."""
        ...

    async def destroy(self, uri: str) -> None:
        """Destroy a root with one epoch."""
        ...


async def open_root(ground: Ground, uri: str, mode: Mode = Mode.PRODUCTION) -> RootProvider:
    """Open a root as a server does."""
    return await open_provider(uri, ground.access(mode))


async def create_root(ground: Ground, uri: str, random: Callable[[int], bytes] = os.urandom) -> RootProvider:
    """Make a root for production."""
    return await create_provider(uri, ground.access(), now=NOW, random=random)


async def _restore(ground: Ground, uri: str, secret: bytes) -> None:
    root = await restore_provider(uri, ground.access(), {1: secret}, now=NOW)
    await root.close()


class FileGround:
    """Files."""

    guarantees = Guarantees(marked=True, exportable=True, held=True, replaced="root-key-damaged")

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._fresh = count(1)

    def access(self, mode: Mode = Mode.PRODUCTION) -> RootAccess:
        return RootAccess(mode=mode)

    def fresh_uri(self) -> str:
        return f"file:{self._folder}/root-{next(self._fresh)}.key"

    async def place(self, uri: str, secret: bytes) -> None:
        await _restore(self, uri, secret)

    async def replace(self, uri: str) -> None:
        other = self.fresh_uri()
        await _restore(self, other, os.urandom(32))
        _path(other).replace(_path(uri))

    async def destroy(self, uri: str) -> None:
        _path(uri).unlink()


def _path(uri: str) -> Path:
    return Path(uri.removeprefix("file:"))


class _VaultGround:
    """A mount of Vault's; the login is one token for all."""

    _scheme: str

    def __init__(self, vault: VaultServer) -> None:
        self._vault = vault
        self._access = {mode: vault.access(mode) for mode in Mode}

    def access(self, mode: Mode = Mode.PRODUCTION) -> RootAccess:
        return self._access[mode]

    def fresh_uri(self) -> str:
        return self._vault.fresh_uri(self._scheme)


class TransitGround(_VaultGround):
    """Vault's transit engine: a key that is deleted and made again counts its versions from 1 again."""

    guarantees = Guarantees(marked=False, exportable=False, held=False)
    _scheme = "vault-transit"

    async def place(self, uri: str, secret: bytes) -> None:
        self._vault.import_hmac_key(uri.rpartition("/")[2], secret)

    async def replace(self, uri: str) -> None:
        await self.destroy(uri)
        await (await create_root(self, uri)).close()

    async def destroy(self, uri: str) -> None:
        self._vault.delete_key(uri.rpartition("/")[2])


class KvGround(_VaultGround):
    """Vault's KV engine: the document of another root is written over it."""

    guarantees = Guarantees(marked=True, exportable=True, held=True)
    _scheme = "vault-kv"

    async def place(self, uri: str, secret: bytes) -> None:
        await _restore(self, uri, secret)

    async def replace(self, uri: str) -> None:
        other = self.fresh_uri()
        await _restore(self, other, os.urandom(32))
        kv = self._vault.root.secrets.kv.v2
        data = kv.read_secret_version(self._name(other), mount_point="kv", raise_on_deleted_version=True)
        kv.create_or_update_secret(self._name(uri), secret=data["data"]["data"], mount_point="kv")

    async def destroy(self, uri: str) -> None:
        self._vault.root.secrets.kv.v2.delete_metadata_and_all_versions(self._name(uri), mount_point="kv")

    def _name(self, uri: str) -> str:
        return uri.removeprefix("vault-kv:kv/")


class Pkcs11Ground:
    """A token of SoftHSM's."""

    guarantees = Guarantees(marked=False, exportable=False, held=False, secret_length=64)

    def __init__(self, softhsm: SoftHsm) -> None:
        self._softhsm = softhsm

    def access(self, mode: Mode = Mode.PRODUCTION) -> RootAccess:
        return RootAccess(mode=mode)

    def fresh_uri(self) -> str:
        return self._softhsm.fresh_uri()

    async def place(self, uri: str, secret: bytes) -> None:
        self._softhsm.put(uri, 1, secret)

    async def replace(self, uri: str) -> None:
        self._softhsm.destroy(uri, 1)
        self._softhsm.put(uri, 1)

    async def destroy(self, uri: str) -> None:
        self._softhsm.destroy(uri, 1)
