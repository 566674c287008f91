"""The collateral that a server has and gets: memory, then the store, then the key distribution services."""

import math
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import structlog

from kms.addresses import network_of
from kms.background import Background
from kms.errors import CollateralUnavailable, LedgerUnavailable, NobodyToAsk
from kms.kds.client import RANDOM, KdsClient
from kms.kds.endpoint import EndpointStatus
from kms.kds.fetching import Fetches
from kms.kds.job import kind_of
from kms.kds.keeping import Keeper, brought
from kms.kds.memory import LookUps, Memory
from kms.kds.renewing import Renewals
from kms.kds.stored import KnownDigests
from kms.kds.worker import Means
from kms.ports import Clock, CollateralStore
from kms.snp.certificate import Certificate
from kms.snp.chain import Chain
from kms.snp.kds_paths import ChainOf, Line, RevocationListOf, VcekOf, Wanted
from kms.snp.report import Report
from kms.snp.revocation_list import RevocationList
from kms.snp.roots import TrustedRoots

_log = structlog.get_logger("kms.collateral")

_REFRESH_EVERY: Final = 5.0  # seconds
_LOOK_AGAIN_AFTER: Final = 1.0  # seconds
_WITHOUT_KDS: Final = 30  # seconds: an operator must bring what is missing
_LIST_FAILED_FOR: Final = 60.0  # seconds
_SAY_STALE_EVERY: Final = 3600.0  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class CollateralStatus:
    """What a server process is doing about collateral; what is stored, the store says.

    `next_updates` says when the newest known list of a line is to be replaced; None where it does not say.
    `dropped` counts what guests brought and could not be queued for storing.
    """

    services: tuple[EndpointStatus, ...]
    fetching: int
    authorities: int
    revocation_lists: int
    next_updates: Mapping[Line, datetime | None]
    look_ups: LookUps
    dropped: int


class CollateralService:
    """Implements `kms.ports.Collateral`.

    `kds` is None where nobody is asked. `patience` is how many seconds a caller of `fetch` waits at most.
    With `renew_lists` revocation lists are renewed in the background (not for `KMS_CRL=off`).
    `monotonic` gives seconds, `random` a number from 0 to below 1; give `kds` the same. It works without
    `start` too, for commands: then only `stop` stores what `keep` noted.
    """

    def __init__(
        self,
        *,
        store: CollateralStore,
        kds: KdsClient | None,
        roots: TrustedRoots,
        clock: Clock,
        monotonic: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = RANDOM,
        patience: float = 5.0,
        renew_lists: bool = True,
    ) -> None:
        self._kds = kds
        self._clock = clock
        self._monotonic = monotonic
        self._looked_at = -math.inf
        self._said_stale: dict[Line, float] = {}
        self._known = KnownDigests()
        self._memory = Memory(store, roots, self._known, clock)
        self._keeper = Keeper(store, self._known)
        self._fetches: Fetches | None = None
        self._renewals: Renewals | None = None
        if kds is not None:
            means = Means(
                kds=kds,
                store=store,
                memory=self._memory,
                keeper=self._keeper,
                known=self._known,
                roots=roots,
                clock=clock,
                owner=secrets.token_hex(16),
            )
            self._fetches = Fetches(means, patience=patience)
            if renew_lists:
                self._renewals = Renewals(self._fetches, self._memory, clock, monotonic, random)
        self._refresher = Background("collateral-refresher", self._refresh, pause=_REFRESH_EVERY)

    @property
    def alive(self) -> bool:
        """Whether the background work goes on."""
        return self._refresher.alive and self._keeper.alive

    def start(self) -> None:
        """Start the background work in the running event loop."""
        self._keeper.start()
        self._refresher.start()

    async def stop(self) -> None:
        """End every fetch, store what waits to be stored, and close the connections."""
        await self._refresher.stop()
        if self._fetches is not None:
            await self._fetches.stop()
        await self._keeper.stop()
        if self._kds is not None:
            await self._kds.close()

    async def authorities(self) -> tuple[Certificate, ...]:
        """See `kms.ports.Collateral.authorities`.

        Raises:
            LedgerUnavailable: the database was never read yet, and does not answer.

        """
        await self._load()
        return self._memory.authorities

    async def revocation_lists(self) -> tuple[RevocationList, ...]:
        """See `kms.ports.Collateral.revocation_lists`. Raises as `authorities`."""
        await self._load()
        return self._memory.lists

    async def leaves(self, report: Report) -> tuple[Certificate, ...]:
        """See `kms.ports.Collateral.leaves`: those for the reported TCB, as no other can fit.

        Raises:
            LedgerUnavailable: the database had to be asked, and does not answer.

        """
        return await self._memory.leaves(report)

    async def fetch(self, wanted: Wanted, client: str) -> None:
        """See `kms.ports.Collateral.fetch`.

        Raises:
            CollateralUnknown, CollateralUnavailable: as there.
            NobodyToAsk: it is not stored, and no service is configured.
            LedgerUnavailable: the database was never read yet, and does not answer.

        """
        await self._load()
        if self._has(wanted):
            return
        if self._fetches is not None:
            await self._fetches.fetch(wanted, network_of(client))
        elif not await self._is_stored(wanted):
            raise NobodyToAsk(
                f"no {kind_of(wanted)} was sent or is stored, and no service is configured",
                retry_after=_WITHOUT_KDS,
            )

    def keep(self, chain: Chain) -> None:
        """See `kms.ports.Collateral.keep`."""
        certificates = (chain.leaf, chain.authority, chain.ark)
        if all(each is None or each.fingerprint in self._known for each in certificates):
            return  # as nearly always: this is on the path of every release
        items = brought(chain)
        self._memory.add(*items)
        self._keeper.put(*items)

    def status(self) -> CollateralStatus:
        """Describe what goes on, for operators."""
        return CollateralStatus(
            services=() if self._kds is None else self._kds.status(),
            fetching=0 if self._fetches is None else len(self._fetches),
            authorities=len(self._memory.authorities),
            revocation_lists=len(self._memory.lists),
            next_updates={line: self._next_update(line) for line in self._memory.lines_with_lists()},
            look_ups=self._memory.look_ups,
            dropped=self._keeper.dropped,
        )

    def _next_update(self, line: Line) -> datetime | None:
        return max(
            (each.list.next_update for each in self._memory.lists_of(line) if each.list.next_update),
            default=None,
        )

    def _has(self, wanted: Wanted) -> bool:
        match wanted:
            case VcekOf():
                return self._memory.remembers(wanted)
            case ChainOf(line):
                return self._memory.chain(line) is not None
            case RevocationListOf(line):
                return self._has_list(line)

    async def _is_stored(self, wanted: Wanted) -> bool:
        if isinstance(wanted, VcekOf):
            return await self._memory.has(wanted)
        # Where there is no list, every release comes here: one of them reads the store for all of a second.
        now = self._monotonic()
        if now - self._looked_at >= _LOOK_AGAIN_AFTER:
            self._looked_at = now
            await self._memory.refresh()
        return self._has(wanted)

    def _has_list(self, line: Line) -> bool:
        """Say whether nobody need wait for a list of this line.

        Raises:
            CollateralUnavailable: one was sought in vain a moment ago: guests do not wait again.

        """
        fetches = self._fetches
        current = self._memory.has_current_list(line, self._clock())
        if fetches is None:
            return current
        if self._renewals is not None:
            self._renewals.saw(line)
        if current:
            return True
        attempt = fetches.attempts.get(line)
        since = None if attempt is None else self._monotonic() - attempt.at
        if attempt is None or since is None or since >= _LIST_FAILED_FOR:
            return False
        if attempt.good:
            return True  # the services have no newer one
        raise CollateralUnavailable(
            f"no service gave a usable {kind_of(RevocationListOf(line))} a moment ago",
            retry_after=max(1, round(_LIST_FAILED_FOR - since)),
        )

    async def _load(self) -> None:
        if not self._memory.loaded:
            await self._memory.refresh()

    async def _refresh(self) -> None:
        try:
            await self._memory.refresh()
        except LedgerUnavailable as error:
            _log.warning("collateral-store-failed", what="refresh", cause=error.detail)
            return
        self._say_what_is_stale()
        if self._renewals is not None:
            self._renewals.begin_what_is_due()

    def _say_what_is_stale(self) -> None:
        """Say which lists are past their next update: a guest that passes by them must not pass silently."""
        now = self._clock()
        for line in self._memory.lines_with_lists():
            said = self._said_stale.get(line, -math.inf)
            if self._memory.has_current_list(line, now) or self._monotonic() - said < _SAY_STALE_EVERY:
                continue
            self._said_stale[line] = self._monotonic()
            ends = [each.list.next_update or each.list.this_update for each in self._memory.lists_of(line)]
            _log.warning("revocation-list-stale", line=line.folder, since=max(ends).isoformat())
