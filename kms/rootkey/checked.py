"""The root key, held against the key-check values of the database that lives by it."""

import hmac
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final, Protocol

import structlog
from typing_extensions import override

from kms.errors import ConfigurationError, RootKeyUnavailable
from kms.keys.check_value import check_value
from kms.keys.root_messages import FOUNDING_EPOCH, Mode, check_message, in_development
from kms.rootkey.provider import RootAccess, RootKeyMissing, RootProvider
from kms.rootkey.registry import create_provider, open_provider

_log = structlog.get_logger("kms.start")

_HEALTHY_FOR: Final = 1.0  # seconds that an answer of the provider counts for readiness


class CheckValues(Protocol):
    """Where the key-check value (32 bytes) of each epoch is kept."""

    async def check_values(self) -> dict[int, bytes]:
        """Give the stored ones."""
        ...

    async def remember_check_values(self, values: Mapping[int, bytes]) -> None:
        """Store those of new epochs."""
        ...


class CheckedRoot:
    """Implements `kms.ports.RootKey`: every answer comes with the proof that it is the same root's.

    With each message goes the question for the key-check value, in the same round trip. A key that was
    deleted and made again while the server ran (in Vault, in an HSM) would otherwise answer with other keys,
    and a guest would encrypt its disk under one that nobody can derive again.
    """

    def __init__(
        self,
        provider: RootProvider,
        stored: CheckValues,
        *,
        mode: Mode,
        random: Callable[[int], bytes],
    ) -> None:
        self._provider = provider
        self._stored = stored
        self._mode = mode
        self._random = random
        self._values: dict[int, bytes] = {}
        self._healthy_until = 0.0

    @property
    def provider(self) -> RootProvider:
        """The provider itself, for what is done with whole roots (backups)."""
        return self._provider

    async def prf(self, epoch: int, message: bytes) -> bytes:
        """Give the PRF's 64 bytes; see `kms.ports.RootKey.prf`."""
        expected = self._values.get(epoch)
        if expected is None:
            self._values = await self._stored.check_values()
            expected = self._values.get(epoch)
        if expected is None:
            raise RootKeyUnavailable(f"epoch {epoch} was never adopted", reason="root-epoch-missing")
        shown, output = await self._ask(epoch, message)
        if not hmac.compare_digest(expected, shown):
            raise RootKeyUnavailable(
                f"epoch {epoch} of the root key is not the one that this database was made with",
                reason="root-key-changed",
            )
        return output

    async def check(self) -> None:
        """Ask whether the root can be used now; see `kms.ports.RootKey.check`."""
        if time.monotonic() < self._healthy_until:
            return
        # What is held in memory still answers when the place that it came from is lost, until the restart.
        await self._provider.versions()
        await self.prf(FOUNDING_EPOCH, check_message(self._mode, FOUNDING_EPOCH))
        self._healthy_until = time.monotonic() + _HEALTHY_FOR

    async def versions(self) -> tuple[int, ...]:
        """Give the epochs that exist at the provider, adopted or not; see `RootVersions`."""
        return await self._provider.versions()

    async def ensure(self, epoch: int) -> bytes:
        """Make sure that the next epoch exists, and give its key-check value; see `RootVersions`."""
        await self._provider.ensure(epoch, self._random)
        shown, _ = await self._ask(epoch, check_message(self._mode, epoch))
        return shown

    async def verify_all(self) -> None:
        """Hold every adopted epoch against its value, and adopt the founding one of a new database.

        Raises:
            ConfigurationError: lost, damaged, or not the root that made this database's keys.

        """
        stored = await self._stored.check_values()
        present = set(await self._provider.versions())
        epochs = sorted(set(stored) or {FOUNDING_EPOCH})
        shown = {
            epoch: (await self._ask(epoch, check_message(self._mode, epoch)))[0]
            for epoch in epochs
            if epoch in present
        }
        wrong = [
            epoch
            for epoch in epochs
            if epoch not in shown or not hmac.compare_digest(stored.get(epoch, shown[epoch]), shown[epoch])
        ]
        if wrong:
            raise ConfigurationError(
                f"the root key is not the one of this database (epochs {wrong})",
                remedy="restore the root key that belongs to this database",
            )
        if not stored:
            await self._stored.remember_check_values(shown)
        self._values = shown

    def start(self) -> None:
        """Begin what the provider does beside the requests; see `RootProvider.start`."""
        self._provider.start()

    async def close(self) -> None:
        """Close the provider."""
        await self._provider.close()

    async def _ask(self, epoch: int, message: bytes) -> tuple[bytes, bytes]:
        """Give the key-check value that the provider shows, and the output, of one round trip."""
        asked = [check_message(self._mode, epoch), message]
        if self._mode is Mode.DEVELOPMENT and not self._provider.marked:
            asked = [in_development(each) for each in asked]
        shown, output = await self._provider.outputs(epoch, asked)
        return check_value(shown), output

    @override
    def __repr__(self) -> str:
        return f"CheckedRoot({type(self._provider).__name__}, {self._mode})"


async def open_checked_root(
    uri: str, stored: CheckValues, access: RootAccess, *, now: datetime, random: Callable[[int], bytes]
) -> CheckedRoot:
    """Open the root key at `uri` and hold it against the key-check values.

    A root is made only where no check value exists: silently making a new one would lock every guest out
    of its data (field lesson 30).

    Raises:
        ConfigurationError: lost, damaged, of another mode, or not the root that made this database's keys.
        RootKeyUnavailable: it cannot be reached now.

    """
    try:
        provider = await open_provider(uri, access)
    except RootKeyMissing as error:
        if await stored.check_values():
            raise ConfigurationError(
                f"the root key is lost: {error.detail}, and this database needs it",
                remedy="restore it from its backup; it is never made again for an existing database",
            ) from error
        provider = await create_provider(uri, access, now=now, random=random)
        _log.info("root-key-made", mode=access.mode.value)
    root = CheckedRoot(provider, stored, mode=access.mode, random=random)
    try:
        await root.verify_all()
    except BaseException:
        await root.close()
        raise
    return root
