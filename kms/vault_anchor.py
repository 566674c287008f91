"""The anchor in Vault: one secret of the KV engine, version 2, whose fields are the members.

Several servers share it. It is only ever written by check-and-set, so that of two servers that write at once,
one sees what the other wrote.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from typing import Final, Self, cast

import structlog
from typing_extensions import override

from kms.anchor import Anchor, AnchorUnusable, Members, Seen
from kms.errors import LedgerUnavailable, RootKeyUnavailable
from kms.rootkey import RootAccess
from kms.rootkey.vault_access import VaultAccess
from kms.rootkey.vault_exchange import members, whole
from kms.rootkey.vault_location import Location, check_vault, require_vault
from kms.rootkey.vault_session import VaultSession
from kms.strict_json import JsonError

_log = structlog.get_logger("kms.anchor")

SCHEME: Final = "vault-kv"
_SETTING: Final = "KMS_LEDGER_ANCHOR"
_UNAVAILABLE: Final = "anchor-unavailable"
_NEW: Final = 0  # the version to name where there must be none yet
_TRIES: Final = 16  # at a write while others write
_STEP_ASIDE: Final = 0.02  # seconds, once more for each try
_SAY_AGAIN_AFTER: Final = 60.0  # seconds
_RESTORE: Final = (
    "Roll the secret back to its newest version that was right. Only where there is none: look at the policy"
    " in the database, at its epochs and at its ledger, stop the servers, and delete the secret's metadata;"
    " when they start, they take what the database says."
)


class VaultAnchor(Anchor):
    """An anchor at `location`. The session with Vault is opened when it is first needed.

    While Vault does not answer, what this process read or wrote last is what it knows: a database that is
    older than that is still noticed, and nothing that must be kept first can be used.
    """

    __slots__ = ("_access", "_last", "_location", "_one_at_a_time", "_path", "_said_at", "_session")

    def __init__(self, access: VaultAccess, location: Location) -> None:
        self._access = access
        self._location = location
        self._path = f"{location.mount}/data/{location.name}"
        self._session: VaultSession | None = None
        self._last: tuple[int, Seen] | None = None  # the newest version that was seen, and what it says
        self._one_at_a_time = asyncio.Lock()
        self._said_at = float("-inf")

    @classmethod
    def from_setting(cls, rest: str, access: RootAccess) -> Self:
        """Read ``MOUNT/PATH``, what follows ``vault-kv:``; Vault is not asked yet.

        Raises:
            ConfigurationError: no such place, no Vault, or what we log in with cannot be used.

        """
        location = Location.of_secret(rest, setting=_SETTING)
        check_vault(access, setting=_SETTING)
        return cls(require_vault(access, setting=_SETTING), location)

    @property
    @override
    def place(self) -> str:
        return f"{SCHEME}:{self._location.mount}/{self._location.name}"

    @override
    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    @override
    async def _seen(self) -> Seen:
        try:
            return self._newest(*await self._read())
        except RootKeyUnavailable as error:
            if self._last is None:
                raise self._unavailable("read", error) from None
            if time.monotonic() - self._said_at >= _SAY_AGAIN_AFTER:
                self._said_at = time.monotonic()
                _log.warning("anchor-not-read", anchor=self.place, cause=error.detail, reason=error.reason)
            return self._last[1]

    @override
    async def _renew(self, renewed: Callable[[Seen], Seen]) -> None:
        try:
            async with self._one_at_a_time:
                for number in range(_TRIES):
                    # Servers that follow one ledger have the same to write at the same moment.
                    await asyncio.sleep(number * _STEP_ASIDE * random.random())  # noqa: S311 -- no secret
                    version, seen = await self._read()
                    new = renewed(seen)
                    if new == seen:
                        self._newest(version, seen)
                        return
                    if await self._write(new.to_json(), instead_of=version):
                        self._newest(version + 1, new)
                        return
        except RootKeyUnavailable as error:
            raise self._unavailable("written", error) from None
        raise LedgerUnavailable(f"the anchor {self.place}: others write it all the time", reason=_UNAVAILABLE)

    def _newest(self, version: int, seen: Seen) -> Seen:
        """Give the newest of what was seen: a standby, or an answer that was overtaken, says older things."""
        if self._last is None or version >= self._last[0]:
            self._last = version, seen
        return self._last[1]

    async def _read(self) -> tuple[int, Seen]:
        """Give the version of the secret, and what is kept in it."""
        answer = await self._opened().get(self._path)
        metadata = members(answer.data.get("metadata"))
        if answer.status == 404 and not metadata:
            return _NEW, Seen()
        kept, version = answer.data.get("data"), whole(metadata.get("version"))
        if answer.status != 200 or not isinstance(kept, dict) or not version:
            raise AnchorUnusable(f"the anchor {self.place} was deleted, or is none", remedy=_RESTORE)
        try:
            return version, Seen.from_json(cast("Members", kept))
        except JsonError as error:
            raise AnchorUnusable(f"the anchor {self.place} is damaged: {error}", remedy=_RESTORE) from None

    async def _write(self, content: Mapping[str, object], *, instead_of: int) -> bool:
        """Write the next version; False where `instead_of` is not the newest one."""
        body = {"options": {"cas": instead_of}, "data": content}
        answer = await self._opened().post(self._path, body)
        if answer.status == 400:
            return False
        # An engine of version 1 takes anything, checks nothing, and says nothing.
        if answer.status != 200 or whole(answer.data.get("version")) != instead_of + 1:
            raise AnchorUnusable(
                f"Vault did not write the anchor {self.place} as a KV engine of version 2 does"
                f" ({answer.status})",
                remedy=f"Mount one at {self._location.mount}, and delete what was written.",
            )
        return True

    def _opened(self) -> VaultSession:
        if self._session is None:
            self._session = VaultSession(self._access)
            self._session.start()
        return self._session

    def _unavailable(self, what: str, error: RootKeyUnavailable) -> LedgerUnavailable:
        return LedgerUnavailable(
            f"the anchor {self.place} cannot be {what}: {error.detail}",
            reason=_UNAVAILABLE,
            retry_after=error.retry_after,
        )
