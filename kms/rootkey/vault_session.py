"""One authenticated session to a Vault server, for many callers at once.

Callers wait for each other only so long: in front of a Vault that hangs they would otherwise pile up until
the whole server answers nobody. Whatever goes wrong is `RootKeyUnavailable` with a reason by name, and goes
away by itself once its cause has gone.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, TypeVar

import structlog
from typing_extensions import override

from kms.background import Background
from kms.errors import RootKeyUnavailable
from kms.rootkey.provider import RootProvider
from kms.rootkey.vault_access import VaultAccess
from kms.rootkey.vault_breaker import Breaker
from kms.rootkey.vault_exchange import AT_ONCE, Answer, VaultConnection, unavailable
from kms.rootkey.vault_login import Lease, VaultLogin

_log = structlog.get_logger("kms.vault")

_T = TypeVar("_T")

_MOST_CALLERS: Final = 512
# A caller who gives up leaves its thread to the exchange until that one's time is over. Those who come next,
# and find Vault well again, have others.
_THREADS: Final = 2 * AT_ONCE
_LOOK_AT_LEASE_EVERY: Final = 1.0  # seconds
_REST_AFTER_LOGIN: Final = 5.0  # seconds in which a refusal is the policy's, not the token's
# What Vault says of one path or of our rights says nothing about the next call.
_ABOUT_ALL_CALLS: Final = frozenset(
    {
        "root-key-slow",
        "root-key-unreachable",
        "root-key-standby",
        "root-key-failing",
        "root-key-sealed",
        "root-key-token-expired",
    }
)


class VaultSession:
    """Sends requests as whom `access` says; logs in, renews and logs in again without being told.

    `get` and `post` raise `RootKeyUnavailable`, for a 403 too; what another 4xx means, the caller knows.
    """

    def __init__(self, access: VaultAccess) -> None:
        self._connection = VaultConnection(access)
        self._login = VaultLogin(self._connection, access.login)
        # A login and a second try may be in it.
        self._patience = 2 * access.timeout.total_seconds()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="kms-vault")
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._callers = 0
        self._breaker = Breaker()
        self._lease: Lease | None = None
        self._logging_in = asyncio.Lock()
        self._renewal = Background("vault-token", self._keep_alive, pause=_LOOK_AT_LEASE_EVERY)
        self._renewal_failed = False
        self._closed = False

    def start(self) -> None:
        """Begin to renew the token, in the running event loop."""
        self._renewal.start()

    async def close(self) -> None:
        """Stop that, and use no connection any more. Calls on their way end with their time."""
        self._closed = True
        await self._renewal.stop()
        self._threads.shutdown(wait=False)
        self._connection.close()
        self._lease = None

    async def get(self, path: str) -> Answer:
        """Read ``/v1/{path}``."""
        return await self._in_turn(partial(self._send, "get", path, None))

    async def post(self, path: str, body: Mapping[str, object]) -> Answer:
        """Write to ``/v1/{path}``."""
        return await self._in_turn(partial(self._send, "post", path, body))

    async def _in_turn(self, work: Callable[[], Awaitable[_T]]) -> _T:
        if self._callers >= _MOST_CALLERS:
            raise unavailable("root-key-slow", "too many wait for Vault")
        self._callers += 1
        try:
            async with asyncio.timeout(self._patience), self._slots:
                # Not before the wait: those who queued up in front of a Vault that hangs go home together.
                self._breaker.check()
                return await self._noted(work)
        except TimeoutError:
            failure = unavailable("root-key-slow", "Vault did not answer in time")
            self._breaker.failed(failure)
            raise failure from None
        finally:
            self._callers -= 1

    async def _noted(self, work: Callable[[], Awaitable[_T]]) -> _T:
        try:
            result = await work()
        except RootKeyUnavailable as error:
            if error.reason in _ABOUT_ALL_CALLS:
                self._breaker.failed(error)
            raise
        self._breaker.succeeded()
        return result

    async def _send(self, method: str, path: str, body: Mapping[str, object] | None) -> Answer:
        lease = self._lease
        if lease is None or lease.over:
            lease = await self._log_in(instead_of=lease)
        answer = await self._exchange(method, path, body, lease)
        # Vault says 403 for a token that it no longer knows, too.
        if answer.status == 403 and (lease.due or lease.age >= _REST_AFTER_LOGIN):
            answer = await self._exchange(method, path, body, await self._log_in(instead_of=lease))
        if answer.status == 403:
            raise unavailable("root-key-forbidden", f"Vault's policies do not let us {method} {path}")
        return answer

    async def _exchange(
        self, method: str, path: str, body: Mapping[str, object] | None, lease: Lease
    ) -> Answer:
        return await self._in_thread(
            partial(self._connection.exchange, method, path, body, token=lease.token)
        )

    async def _log_in(self, *, instead_of: Lease | None) -> Lease:
        """Get a token, unless another caller just got one."""
        async with self._logging_in:
            if self._lease is None or self._lease is instead_of:
                self._lease = await self._in_thread(self._login.log_in)
                _log.info("vault-logged-in", lease_seconds=self._lease.seconds)
            return self._lease

    async def _keep_alive(self) -> None:
        lease = self._lease
        if lease is None:
            return
        try:
            # Not in turn: by the breaker, a token that works to its end would be one that Vault refuses from
            # the moment that no other can be had.
            async with asyncio.timeout(self._patience), self._slots:
                if await self._in_thread(self._login.superseded):
                    await self._log_in(instead_of=lease)
                elif lease.due:
                    await self._renew(lease)
        except TimeoutError:
            self._not_renewed("root-key-slow")
        except RootKeyUnavailable as error:
            self._not_renewed(error.reason)
        else:
            self._renewal_failed = False

    def _not_renewed(self, reason: str) -> None:
        if not self._renewal_failed:
            _log.warning("vault-token-not-renewed", reason=reason)
        self._renewal_failed = True

    async def _renew(self, lease: Lease) -> None:
        renewed = await self._in_thread(partial(self._login.renew, lease))
        if renewed is None:
            await self._log_in(instead_of=lease)
        elif self._lease is lease:
            self._lease = renewed

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        if self._closed:
            raise unavailable("root-key-unreachable", "the session with Vault was closed")
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    @override
    def __repr__(self) -> str:
        return "VaultSession()"


@asynccontextmanager
async def closed_on_failure(root: RootProvider) -> AsyncIterator[None]:
    """Close a root if it turns out, in this context, that it is of no use."""
    try:
        yield
    except BaseException:
        await root.close()
        raise
