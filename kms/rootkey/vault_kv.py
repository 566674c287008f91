"""The ``vault-kv:`` provider: the root secrets of all epochs in one secret of Vault's KV engine, version 2.

The secret has one field with the text that a root key file has (`kms.rootkey.root_document`). It is read
once and held in memory, so that a Vault that is away stops no release; it is only ever written by
check-and-set, so that of two servers that add an epoch at once, one sees the other's.
"""

import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import structlog
from typing_extensions import override

from kms.errors import ConfigurationError
from kms.keys.root_messages import FOUNDING_EPOCH, MAX_EPOCHS, SECRET_LENGTH, Mode, root_prf
from kms.keys.wiping import wipe
from kms.rootkey.provider import Opener, RootAccess, RootKeyMissing
from kms.rootkey.root_document import RootDocument, RootDocumentError, read, write
from kms.rootkey.vault_exchange import members, unavailable, whole
from kms.rootkey.vault_location import Location, check_vault, require_vault
from kms.rootkey.vault_session import VaultSession, closed_on_failure

_log = structlog.get_logger("kms.vault")

_FIELD: Final = "root"
_NEW: Final = 0  # the version to name where there must be none yet
_TRIES: Final = 5  # at adding an epoch while others do


@dataclass(frozen=True, slots=True)
class _Stored:
    """The document, the version of the secret that it was read from, and whether Vault will delete that."""

    document: RootDocument
    version: int
    ends: bool


class KvRootKey:
    """Implements `kms.rootkey.provider.RootProvider`."""

    marked = True

    def __init__(self, session: VaultSession, location: Location, mode: Mode) -> None:
        self._session = session
        self._location = location
        self._path = f"{location.mount}/data/{location.name}"
        self._mode = mode
        self._secrets: dict[int, bytearray] = {}
        self._closed = False

    async def outputs(self, epoch: int, messages: Sequence[bytes]) -> tuple[bytes, ...]:
        """Give HMAC-SHA-512 of each message; see `RootProvider.outputs`."""
        if epoch not in self._secrets:
            await self._load()  # another server may have added it
        secret = self._secrets.get(epoch)
        if secret is None:
            raise unavailable("root-epoch-missing", f"the root in Vault has no epoch {epoch}")
        return tuple(root_prf(secret, message) for message in messages)

    async def versions(self) -> tuple[int, ...]:
        """Give the epochs that are in Vault now; see `RootProvider.versions`."""
        return tuple((await self._load()).document.secrets)

    async def ensure(self, epoch: int, random: Callable[[int], bytes]) -> None:
        """Add `epoch` if it is the next one; see `RootProvider.ensure`."""
        for _ in range(_TRIES):
            stored = await self._load()
            document = stored.document
            if epoch in document.secrets:
                return
            if epoch != len(document.secrets) + 1 or epoch > MAX_EPOCHS:
                raise ConfigurationError(
                    f"epoch {epoch} cannot be made: the root in Vault has {len(document.secrets)}",
                    remedy="epochs follow each other",
                )
            grown = RootDocument(
                document.mode, document.created_at, {**document.secrets, epoch: random(SECRET_LENGTH)}
            )
            if await self._write(grown, instead_of=stored.version):
                self._keep(grown)
                return
        raise unavailable("root-key-failing", "Vault took none of several writes of the root")

    async def secrets(self) -> Mapping[int, bytes]:
        """Give the secret of each epoch; see `RootProvider.secrets`."""
        return (await self._load()).document.secrets

    def start(self) -> None:
        """Begin to renew the token."""
        self._session.start()

    async def close(self) -> None:
        """Close the session, and overwrite the secrets. Copies that the JSON parser made are beyond reach."""
        self._closed = True
        for secret in self._secrets.values():
            wipe(secret)
        self._secrets.clear()
        await self._session.close()

    async def open(self) -> None:
        """Read the root for the first time.

        Raises:
            RootKeyMissing: there is none.
            ConfigurationError: damaged, or of the other mode.

        """
        stored = await self._read()
        if stored is None:
            raise RootKeyMissing(f"there is no secret {self._location.name} in Vault, or it was deleted")
        if stored.ends:
            _log.warning("root-key-deletable", key=self._location.name)
        self._keep(stored.document)

    async def make(self, document: RootDocument) -> None:
        """Write a new root. Raises `ConfigurationError` where anything is or was."""
        if not await self._write(document, instead_of=_NEW):
            raise ConfigurationError(
                f"something is at {self._location.name} in Vault, maybe deleted, and it is never overwritten",
                remedy="use or undelete what is there, or choose another path",
            )
        self._keep(document)

    async def _load(self) -> _Stored:
        """Read a root that was there before: whatever is wrong with it now is an accident, or an attack."""
        try:
            stored = await self._read()
        except ConfigurationError as error:
            raise unavailable("root-key-changed", error.detail) from None
        if stored is None:
            raise unavailable("root-key-missing", "the root in Vault is gone")
        self._keep(stored.document)
        return stored

    async def _read(self) -> _Stored | None:
        answer = await self._session.get(self._path)
        if answer.status == 404:
            return None
        text = members(answer.data.get("data")).get(_FIELD)
        metadata = members(answer.data.get("metadata"))
        if answer.status != 200 or not isinstance(text, str):
            raise ConfigurationError(f"the secret {self._location.name} in Vault is no root key")
        try:
            document = read(text.encode())
        except RootDocumentError as error:
            raise ConfigurationError(
                f"the root in Vault: {error}", remedy="roll the secret back to a version before the damage"
            ) from None
        if document.mode is not self._mode:
            raise ConfigurationError(
                f"the root in Vault was made for {document.mode} mode; this server runs in {self._mode} mode",
                remedy="name the root of this mode; a root never changes from one mode to the other",
            )
        return _Stored(document, whole(metadata.get("version")), bool(metadata.get("deletion_time")))

    async def _write(self, document: RootDocument, *, instead_of: int) -> bool:
        """Write the next version; False where `instead_of` is not the newest one."""
        body = {"options": {"cas": instead_of}, "data": {_FIELD: write(document).decode("ascii")}}
        answer = await self._session.post(self._path, body)
        if answer.status == 400:
            return False
        # An engine of version 1 takes anything, checks nothing, and says nothing.
        if answer.status != 200 or whole(answer.data.get("version")) != instead_of + 1:
            raise ConfigurationError(
                f"Vault did not write the root as a KV engine of version 2 does ({answer.status})",
                remedy=f"mount one at {self._location.mount}, and delete what was written",
            )
        return True

    def _keep(self, document: RootDocument) -> None:
        if self._closed:  # meanwhile; nobody would overwrite what is kept now
            raise unavailable("root-key-unreachable", "the root key was closed")
        for epoch, secret in document.secrets.items():
            held = self._secrets.setdefault(epoch, bytearray(secret))
            if not hmac.compare_digest(held, secret):
                raise unavailable(
                    "root-key-changed", f"epoch {epoch} of the root in Vault is another one now"
                )

    @override
    def __repr__(self) -> str:
        return f"KvRootKey({self._location}, {self._mode})"


class _KvOpener:
    """Implements `kms.rootkey.provider.Opener`."""

    def check(self, rest: str, access: RootAccess) -> None:
        """Read the location, and look at what we log in with."""
        Location.of_secret(rest)
        check_vault(access)

    async def open(self, rest: str, access: RootAccess) -> KvRootKey:
        """Log in, and read the root; see `Opener.open`."""
        root = self._root(rest, access)
        async with closed_on_failure(root):
            await root.open()
        return root

    async def create(
        self, rest: str, access: RootAccess, *, now: datetime, random: Callable[[int], bytes]
    ) -> KvRootKey:
        """Write a root with epoch 1; see `Opener.create`."""
        return await self.restore(rest, access, {FOUNDING_EPOCH: random(SECRET_LENGTH)}, now=now)

    async def restore(
        self, rest: str, access: RootAccess, secrets: Mapping[int, bytes], *, now: datetime
    ) -> KvRootKey:
        """Write a root of these secrets; see `Opener.restore`."""
        root = self._root(rest, access)
        async with closed_on_failure(root):
            await root.make(RootDocument(access.mode, now, dict(secrets)))
        return root

    def _root(self, rest: str, access: RootAccess) -> KvRootKey:
        return KvRootKey(VaultSession(require_vault(access)), Location.of_secret(rest), access.mode)


OPENER: Final[Opener] = _KvOpener()
