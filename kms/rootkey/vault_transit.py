"""The ``vault-transit:`` provider: an HMAC key in Vault's transit engine. The root never leaves Vault.

The versions of the key are the epochs. Every question names its version and its hash: Vault's own choice
would be the latest version, and SHA-256. That a key deleted and made again answers otherwise is noticed by
the key-check value (`kms.rootkey.checked`); Vault itself would count its versions from 1 again.
"""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NoReturn, Self

import structlog
from typing_extensions import override

from kms.errors import ConfigurationError
from kms.keys.root_messages import FOUNDING_EPOCH, MAX_EPOCHS, PRF_LENGTH, SECRET_LENGTH
from kms.rootkey.provider import NotExportable, Opener, RootAccess, RootKeyMissing
from kms.rootkey.vault_exchange import Answer, members, unavailable, whole
from kms.rootkey.vault_location import Location, check_vault, require_vault
from kms.rootkey.vault_session import VaultSession, closed_on_failure

_log = structlog.get_logger("kms.vault")

_STAYS: Final = "a key of Vault's transit engine never leaves Vault: back up Vault itself"


@dataclass(frozen=True, slots=True, kw_only=True)
class _TransitKey:
    """What Vault says of the key."""

    kind: str
    oldest: int  # the first version that may be used
    latest: int
    leaves: bool  # its secrets can be read out of Vault
    deletable: bool
    rotatable: bool

    @classmethod
    def of(cls, data: Mapping[str, object]) -> Self:
        # HMACs are refused under versions before either limit, though "decryption" is no part of it.
        limits = (whole(data.get(f"min_{limit}_version")) for limit in ("encryption", "decryption"))
        return cls(
            kind=str(data.get("type")),
            oldest=max(FOUNDING_EPOCH, *limits),
            latest=whole(data.get("latest_version")),
            leaves=data.get("exportable") is True or data.get("allow_plaintext_backup") is True,
            deletable=data.get("deletion_allowed") is True,
            # Vault answers 500 when it is asked to rotate an imported key that it may not.
            rotatable=data.get("imported_key") is not True or data.get("imported_key_allow_rotation") is True,
        )

    @property
    def versions(self) -> range:
        return range(self.oldest, self.latest + 1)


class TransitRootKey:
    """Implements `kms.rootkey.provider.RootProvider`."""

    marked = False

    def __init__(self, session: VaultSession, location: Location) -> None:
        self._session = session
        self._location = location
        self._key_path = f"{location.mount}/keys/{location.name}"
        self._hmac_path = f"{location.mount}/hmac/{location.name}/sha2-512"

    async def outputs(self, epoch: int, messages: Sequence[bytes]) -> tuple[bytes, ...]:
        """Give HMAC-SHA-512 of each message; see `RootProvider.outputs`."""
        if epoch < FOUNDING_EPOCH:  # 0 would be the latest version
            raise unavailable("root-epoch-missing", f"there is no epoch {epoch}")
        batch = [{"input": base64.b64encode(message).decode("ascii")} for message in messages]
        answer = await self._session.post(self._hmac_path, {"key_version": epoch, "batch_input": batch})
        if answer.status != 200:
            await self._explain(epoch, answer)
        results = answer.data.get("batch_results")
        if not isinstance(results, list) or len(results) != len(messages):
            raise unavailable("root-key-failing", "Vault did not answer each question")
        return tuple(_output(epoch, members(result).get("hmac")) for result in results)

    async def versions(self) -> tuple[int, ...]:
        """Give the versions that Vault lets us use; see `RootProvider.versions`."""
        return tuple((await self._present_key()).versions)

    async def ensure(self, epoch: int, random: Callable[[int], bytes]) -> None:
        """Rotate the key if `epoch` is its next version; see `RootProvider.ensure`. `random` is not used."""
        del random
        key = await self._present_key()
        if epoch == key.latest + 1 and key.rotatable:
            # Somebody else may do so too: a version more does no harm, it is adopted when its turn comes.
            await self._session.post(f"{self._key_path}/rotate", {})
            key = await self._present_key()
        if epoch not in key.versions:
            raise ConfigurationError(
                f"epoch {epoch} cannot be made: the key's versions are {key.oldest} to {key.latest}",
                remedy="epochs follow each other; look at the key's min_…_version and allow_rotation",
            )

    async def secrets(self) -> NoReturn:
        """Raise `NotExportable`."""
        raise NotExportable(_STAYS)

    def start(self) -> None:
        """Begin to renew the token."""
        self._session.start()

    async def close(self) -> None:
        """Close the session."""
        await self._session.close()

    async def require_usable(self) -> None:
        """Look at the key before it is used.

        Raises:
            RootKeyMissing: there is none.
            ConfigurationError: it is not for HMACs.

        """
        key = await self._read_key()
        if key is None:
            raise RootKeyMissing(f"there is no transit key {self._location.name} in Vault")
        if key.kind != "hmac":
            raise ConfigurationError(
                f"the transit key {self._location.name} is of type {key.kind[:32]!r}",
                remedy="it must be of type hmac",
            )
        if key.leaves:
            _log.warning("root-key-exportable", key=self._location.name)
        if key.deletable:
            _log.warning("root-key-deletable", key=self._location.name)

    async def make(self) -> None:
        """Make the key. Raises `ConfigurationError` where there is one."""
        if await self._read_key() is not None:
            raise ConfigurationError(f"there is a transit key {self._location.name} already")
        answer = await self._session.post(
            self._key_path,
            {
                "type": "hmac",
                "key_size": SECRET_LENGTH,
                "exportable": False,
                "allow_plaintext_backup": False,
            },
        )
        if answer.status not in {200, 204}:
            raise ConfigurationError(
                f"Vault refused to make the transit key {self._location.name} ({answer.status})",
                remedy="is a transit engine mounted there?",
            )
        # Vault does nothing, and says so to nobody, where a key exists. Another server's first start in the
        # same moment makes the very same kind of key; whatever else is there is not ours.
        key = await self._present_key()
        if key.kind != "hmac" or list(key.versions) != [FOUNDING_EPOCH] or key.leaves:
            raise ConfigurationError(f"somebody else just made a transit key {self._location.name}")

    async def _read_key(self) -> _TransitKey | None:
        answer = await self._session.get(self._key_path)
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise unavailable("root-key-failing", f"Vault answered with status {answer.status}")
        key = _TransitKey.of(answer.data)
        if not FOUNDING_EPOCH <= key.latest <= MAX_EPOCHS:
            raise unavailable(
                "root-key-failing", f"Vault does not name a transit key of 1 to {MAX_EPOCHS} versions"
            )
        return key

    async def _present_key(self) -> _TransitKey:
        key = await self._read_key()
        if key is None:
            raise unavailable("root-key-missing", f"the transit key {self._location.name} is gone")
        return key

    async def _explain(self, epoch: int, answer: Answer) -> NoReturn:
        """Vault answers 400 for a key that is gone as for a version that is: only a look tells."""
        key = await self._present_key()
        if epoch not in key.versions:
            raise unavailable(
                "root-epoch-missing", f"the transit key has versions {key.oldest} to {key.latest}"
            )
        raise unavailable("root-key-failing", f"Vault answered with status {answer.status}")

    @override
    def __repr__(self) -> str:
        return f"TransitRootKey({self._location})"


def _output(epoch: int, text: object) -> bytes:
    """Read ``vault:v<version>:<base64>``: 64 bytes, of the version that was asked."""
    prefix = f"vault:v{epoch}:"
    try:
        if not isinstance(text, str) or not text.startswith(prefix):
            raise ValueError
        output = base64.b64decode(text.removeprefix(prefix), validate=True)
        if len(output) != PRF_LENGTH:
            raise ValueError
    except ValueError:
        raise unavailable(
            "root-key-changed", f"Vault's answer is no HMAC-SHA-512 of version {epoch}"
        ) from None
    return output


class _TransitOpener:
    """Implements `kms.rootkey.provider.Opener`."""

    def check(self, rest: str, access: RootAccess) -> None:
        """Read the location, and look at what we log in with."""
        Location.of_key(rest)
        check_vault(access)

    async def open(self, rest: str, access: RootAccess) -> TransitRootKey:
        """Log in, and look at the key; see `Opener.open`."""
        root = self._root(rest, access)
        async with closed_on_failure(root):
            await root.require_usable()
        return root

    async def create(
        self, rest: str, access: RootAccess, *, now: datetime, random: Callable[[int], bytes]
    ) -> TransitRootKey:
        """Have Vault make a key that is not there; see `Opener.create`."""
        del now, random  # Vault has its own
        root = self._root(rest, access)
        async with closed_on_failure(root):
            await root.make()
        return root

    async def restore(
        self, rest: str, access: RootAccess, secrets: Mapping[int, bytes], *, now: datetime
    ) -> NoReturn:
        """Refuse: a key that was outside is not one that never leaves Vault."""
        raise NotExportable(_STAYS)

    def _root(self, rest: str, access: RootAccess) -> TransitRootKey:
        return TransitRootKey(VaultSession(require_vault(access)), Location.of_key(rest))


OPENER: Final[Opener] = _TransitOpener()
