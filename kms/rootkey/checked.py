"""The root key, held against the key-check values of the database that lives by it."""

import asyncio
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final, Protocol, TypeAlias

import structlog
from typing_extensions import override

from kms.errors import ConfigurationError, RootKeyUnavailable
from kms.keys.check_value import agrees, check_value
from kms.keys.root_messages import FOUNDING_EPOCH, Mode, check_message, in_development
from kms.rootkey.provider import RootAccess, RootKeyMissing, RootProvider
from kms.rootkey.registry import create_provider, open_provider

_log = structlog.get_logger("kms.start")

_LOOK_EVERY: Final = 1.0  # seconds that what was seen of the provider counts for readiness


# Only people bring the right root back.
_CHANGED_RETRY: Final = 30  # seconds


class CheckValues(Protocol):
    """Where the key-check value (32 bytes) of each epoch is kept."""

    async def check_values(self) -> dict[int, bytes]:
        """Give the stored ones."""
        ...

    async def remember_check_values(self, values: Mapping[int, bytes]) -> None:
        """Store those of new epochs."""
        ...


Observe: TypeAlias = Callable[[float, str | None], None]


def _unobserved(_seconds: float, _reason: str | None) -> None:
    """Take note of nothing."""


class CheckedRoot:
    """Implements `kms.ports.RootKey`: every answer comes with the proof that it is the same root's.

    With each message goes the question for the key-check value, in the same round trip. A key that was
    deleted and made again while the server ran (in Vault, in an HSM) would otherwise answer with other keys,
    and a guest would encrypt its disk under one that nobody can derive again.

    `observe` is told of each call of the provider how many seconds it took, and the reason if it failed.
    """

    def __init__(
        self,
        provider: RootProvider,
        stored: CheckValues,
        *,
        mode: Mode,
        random: Callable[[int], bytes],
        observe: Observe = _unobserved,
    ) -> None:
        self._provider = provider
        self._stored = stored
        self._mode = mode
        self._random = random
        self._observe = observe
        self._values: dict[int, bytes] = {}
        self._look: asyncio.Task[None] | None = None
        self._looked_for = 0
        self._look_again_at = 0.0

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
        shown, output = await self._ask(epoch, check_message(self._mode, epoch), message)
        if not agrees(expected, shown):
            raise _changed(epoch)
        return output

    async def check(self, epoch: int) -> None:
        """Ask whether the root can be used now; see `kms.ports.RootKey.check`.

        Whoever asks at the same moment, or within a second, shares one look: anybody may ask for readiness,
        and nobody shall keep Vault or an HSM busy with it.
        """
        look = self._look
        if (
            look is None
            or self._looked_for != epoch
            or (look.done() and time.monotonic() > self._look_again_at)
        ):
            look = self._look = asyncio.create_task(self._look_at(epoch))
            self._looked_for = epoch
            look.add_done_callback(self._looked)
        await asyncio.shield(look)

    async def _look_at(self, epoch: int) -> None:
        # What is held in memory still answers when the place that it came from is lost, until the restart.
        await self._provider.versions()
        for each in sorted({FOUNDING_EPOCH, epoch}):
            await self.prf(each, check_message(self._mode, each))

    def _looked(self, look: "asyncio.Task[None]") -> None:
        self._look_again_at = time.monotonic() + _LOOK_EVERY
        if not look.cancelled():
            look.exception()  # heard here, for whoever asked may be gone

    async def versions(self) -> tuple[int, ...]:
        """Give the epochs that exist at the provider, adopted or not; see `RootVersions`."""
        return await self._provider.versions()

    async def ensure(self, epoch: int) -> bytes:
        """Make sure that the next epoch exists, and give its key-check value; see `RootVersions`.

        The root is proven before anything is made, and once more before what it shows is believed: an epoch
        that is made or adopted from a key in our root's place would never agree with the others, and the
        guests that had its keys meanwhile would lose their data when the right root comes back.

        Raises:
            RootKeyUnavailable: reason ``root-key-changed``, it is not this database's root; or as
                `RootProvider.ensure`.

        """
        await self._prove()
        await self._provider.ensure(epoch, self._random)
        shown = await self._show(epoch)
        await self._prove()
        return check_value(shown)

    async def verify_all(self) -> None:
        """Hold every adopted epoch against its value, and adopt the founding one of a new database.

        Raises:
            ConfigurationError: lost, damaged, or not the root that made this database's keys.

        """
        stored = await self._stored.check_values()
        present = set(await self._provider.versions())
        epochs = sorted(set(stored) or {FOUNDING_EPOCH})
        shown = {epoch: await self._show(epoch) for epoch in epochs if epoch in present}
        wrong = [
            epoch
            for epoch in epochs
            if epoch not in shown or (epoch in stored and not agrees(stored[epoch], shown[epoch]))
        ]
        if wrong:
            raise ConfigurationError(
                f"the root key is not the one of this database (epochs {wrong})",
                remedy="restore the root key that belongs to this database",
            )
        values = {epoch: check_value(output) for epoch, output in shown.items()}
        if not stored:
            await self._stored.remember_check_values(values)
        self._values = values

    def start(self) -> None:
        """Begin what the provider does beside the requests; see `RootProvider.start`."""
        self._provider.start()

    async def close(self) -> None:
        """Close the provider."""
        await self._provider.close()

    async def _prove(self) -> None:
        """Hold the first and the newest adopted epoch against their values."""
        self._values = values = await self._stored.check_values()
        if not values:
            raise RootKeyUnavailable("no epoch was ever adopted", reason="root-epoch-missing")
        for epoch in sorted({min(values), max(values)}):
            if not agrees(values[epoch], await self._show(epoch)):
                raise _changed(epoch)

    async def _show(self, epoch: int) -> bytes:
        """Give the output (64 bytes) that the key-check value of an epoch is made of."""
        (shown,) = await self._ask(epoch, check_message(self._mode, epoch))
        return shown

    async def _ask(self, epoch: int, *messages: bytes) -> tuple[bytes, ...]:
        """Give the provider's outputs, of one round trip."""
        if self._mode is Mode.DEVELOPMENT and not self._provider.marked:
            messages = tuple(map(in_development, messages))
        began = time.perf_counter()
        try:
            outputs = await self._provider.outputs(epoch, messages)
        except RootKeyUnavailable as error:
            self._observe(time.perf_counter() - began, error.reason)
            raise
        self._observe(time.perf_counter() - began, None)
        return outputs

    @override
    def __repr__(self) -> str:
        return f"CheckedRoot({type(self._provider).__name__}, {self._mode})"


def _changed(epoch: int) -> RootKeyUnavailable:
    return RootKeyUnavailable(
        f"epoch {epoch} of the root key is not the one that this database was made with",
        reason="root-key-changed",
        retry_after=_CHANGED_RETRY,
    )


async def open_checked_root(
    uri: str,
    stored: CheckValues,
    access: RootAccess,
    *,
    now: datetime,
    random: Callable[[int], bytes],
    may_be_made: bool,
    observe: Observe = _unobserved,
) -> CheckedRoot:
    """Open the root key at `uri` and hold it against the key-check values.

    A root is made only where it `may_be_made`, because nothing knows of one that there was: silently making a
    new one would lock every guest out of its data (field lesson 30).

    Raises:
        ConfigurationError: lost, damaged, of another mode, or not the root that made this database's keys.
        RootKeyUnavailable: it cannot be reached now.

    """
    try:
        provider = await open_provider(uri, access)
    except RootKeyMissing as error:
        if not may_be_made:
            raise ConfigurationError(
                f"the root key is lost: {error.detail}, and this KMS had one",
                remedy="restore it from its backup; it is never made again for an existing KMS."
                " For a new one, use a new data folder and anchor",
            ) from error
        provider = await create_provider(uri, access, now=now, random=random)
        _log.info("root-key-made", mode=access.mode.value)
    root = CheckedRoot(provider, stored, mode=access.mode, random=random, observe=observe)
    try:
        await root.verify_all()
    except BaseException:
        await root.close()
        raise
    return root
