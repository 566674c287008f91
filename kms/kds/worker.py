"""Doing one fetch: turns, claims, answers, until it is had, known not to exist, or given up for now."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import structlog

from kms.errors import LedgerUnavailable
from kms.kds.acceptance import UNVERIFIED, Unacceptable, accept_chain, accept_list, accept_vcek
from kms.kds.asking import Body, Failed, Missing, Throttled
from kms.kds.client import KdsClient, Turn
from kms.kds.endpoint import Endpoint
from kms.kds.job import FOUND, Job, Outcome, Settled, kind_of, line_of
from kms.kds.judging import Judge
from kms.kds.keeping import Keeper
from kms.kds.memory import Memory
from kms.kds.stored import Item, KnownDigests
from kms.ports import Clock, CollateralStore
from kms.snp.kds_paths import ChainOf, Line, RevocationListOf, VcekOf, Wanted
from kms.snp.roots import TrustedRoots

_log = structlog.get_logger("kms.collateral")

_SOURCE: Final = "kds"
_TRIES: Final = 2  # of each service in one job, so that one broken chip does not open a breaker by itself
_BACKOFF: Final = (0.2, 0.6)  # seconds, between them
_CLAIM: Final = 20.0  # seconds: one answer may take 10, and storing it takes less
_POLL: Final = (0.2, 0.5)  # seconds, while another server process is asking
# Whoever invents chip ids makes us ask for what is not there: each such answer uses up six tokens of the
# inventor's own share, not one, long before the budget of all suffers.
_COST_OF_NOTHING: Final = 5.0
# An ASK is made anew once in years. When a certificate does not fit the one we know, the chain is fetched
# again, and not more often than this, whatever certificates a service makes up.
_CHAIN_FRESH: Final = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What fetches work with. `owner` names this server process in claims."""

    kds: KdsClient
    store: CollateralStore
    memory: Memory
    keeper: Keeper
    known: KnownDigests
    roots: TrustedRoots
    clock: Clock
    owner: str


@dataclass(slots=True, kw_only=True)
class Worker:
    """Does jobs, with some means. `fetch_chain` waits for a fetch of its own."""

    means: Means
    fetch_chain: Callable[[ChainOf, Job], Awaitable[Settled]]
    _chains_sought: dict[Line, float] = field(default_factory=dict)

    async def run(self, job: Job) -> Settled:
        """Do a job to its end."""
        try:
            if await self._is_there(job):
                return FOUND
            line = line_of(job.wanted)
            if not isinstance(job.wanted, ChainOf) and self.means.memory.chain(line) is None:
                settled = await self._chain(line, job)
                if settled.outcome is not Outcome.FOUND:
                    return Settled(Outcome.UNAVAILABLE, f"no chain {line.folder}", settled.at_least)
            return await self._ask_services(job)
        except LedgerUnavailable as error:
            _log.warning("collateral-store-failed", what=kind_of(job.wanted), cause=error.detail)
            return Settled(Outcome.UNAVAILABLE, "the collateral store does not answer")

    async def _ask_services(self, job: Job) -> Settled:
        """Ask service after service, as their turns come, until one answers or all have failed."""
        while job.asker.not_before:
            turn = await self.means.kds.turn(job.addresses, job.asker)
            if turn is None:  # only services with an open breaker are left
                break
            with turn:
                settled = await self._use(turn, job)
            if settled is not None:
                return settled
        if len(job.missing) == len(self.means.kds.endpoints):
            _log.info("collateral-unknown", what=kind_of(job.wanted))
            return Settled(Outcome.UNKNOWN, f"no service knows this {kind_of(job.wanted)}")
        at_least = min(each.delay for each in self.means.kds.endpoints)
        return Settled(Outcome.UNAVAILABLE, f"no service gave a usable {kind_of(job.wanted)}", at_least)

    async def _use(self, turn: Turn, job: Job) -> Settled | None:
        """Ask one service once, unless another server process has asked or is asking."""
        path = job.wanted.path
        if not await self.means.store.claim(path, self.means.owner, _CLAIM):
            turn.end()
            if isinstance(job.wanted, RevocationListOf) and self.means.memory.has_current_list(
                job.wanted.line, self.means.clock()
            ):
                return FOUND  # somebody else sees whether there is a newer one
            await asyncio.sleep(self._between(_POLL))
            return FOUND if await self._is_there(job) else None
        try:
            # Looked for again now that nobody else can be asking: whoever had the claim before us stored it.
            return FOUND if await self._is_there(job) else await self._ask(turn, job)
        finally:
            await self._release(path)

    async def _ask(self, turn: Turn, job: Job) -> Settled | None:
        endpoint, wanted = turn.endpoint, job.wanted
        match await turn.ask(wanted):
            case Body(data):
                return await self._judge(data, turn, job)
            case Missing():
                job.missing.add(endpoint)
                del job.asker.not_before[endpoint]
                if isinstance(wanted, VcekOf):
                    turn.charge(_COST_OF_NOTHING)
            case Throttled():
                pass  # waiting is not failing: its turn comes again after the hold
            case Failed(kind, healthy=healthy):
                if healthy and isinstance(wanted, VcekOf):
                    turn.charge(_COST_OF_NOTHING)
                self._failed(endpoint, job, kind)
        return None

    async def _judge(self, body: bytes, turn: Turn, job: Job) -> Settled | None:
        """Keep what verifies. Nothing else of an answer is remembered."""
        endpoint, wanted = turn.endpoint, job.wanted
        judged = self._accept(body, wanted)
        if isinstance(judged, Unacceptable) and judged.kind == UNVERIFIED and isinstance(wanted, VcekOf):
            line = line_of(wanted)
            if self._chain_may_be_old(line):
                turn.end()  # the chain needs a turn of its own
                await self._chain(line, job)
                judged = self._accept(body, wanted)
        if not isinstance(judged, Unacceptable):
            endpoint.succeeded()
            await self._keep(judged)
            _log.info("collateral-fetched", what=kind_of(wanted), host=endpoint.host)
            return FOUND
        if judged.authentic:
            # A genuine answer to another question says nothing against the service: AMD's own may give one
            # to invented levels, and must not lose its breaker to whoever invents them.
            endpoint.succeeded()
            if isinstance(wanted, VcekOf):
                turn.charge(_COST_OF_NOTHING)
        else:
            endpoint.failed(judged.kind)
        self._failed(endpoint, job, judged.kind)
        return None

    def _accept(self, body: bytes, wanted: Wanted) -> tuple[Item, ...] | Unacceptable:
        judge = Judge(
            roots=self.means.roots,
            now=self.means.clock(),
            source=_SOURCE,
            authorities=self.means.memory.authorities,
        )
        match wanted:
            case VcekOf():
                leaf = accept_vcek(body, wanted, judge)
                return leaf if isinstance(leaf, Unacceptable) else (leaf,)
            case ChainOf(line):
                return accept_chain(body, line, judge)
            case RevocationListOf(line):
                found = accept_list(body, line, self.means.memory.lists_of(line), judge)
                return found if isinstance(found, Unacceptable) else (found,)

    async def _keep(self, items: tuple[Item, ...]) -> None:
        self.means.memory.add(*items)
        try:
            await self.means.store.keep(*items)
            self.means.known.add(*items)
        except LedgerUnavailable as error:
            # It was hard to get: later, then.
            _log.warning("collateral-store-failed", what="keep", cause=error.detail)
            self.means.keeper.put(*items)

    async def _release(self, path: str) -> None:
        try:
            await self.means.store.release(path, self.means.owner)
        except LedgerUnavailable as error:
            # The claim ends by itself, and says nothing of what was fetched.
            _log.warning("collateral-store-failed", what="release", cause=error.detail)

    def _failed(self, endpoint: Endpoint, job: Job, kind: str) -> None:
        _log.warning("collateral-failed", what=kind_of(job.wanted), host=endpoint.host, failure=kind)
        job.tries[endpoint] += 1
        if job.tries[endpoint] < _TRIES:
            job.asker.not_before[endpoint] = self.means.kds.monotonic() + self._between(_BACKOFF)
        else:
            del job.asker.not_before[endpoint]

    async def _is_there(self, job: Job) -> bool:
        """Say whether it is there by now: another process, an import or a guest may have brought it."""
        match job.wanted:
            case VcekOf():
                return await self.means.memory.has(job.wanted)
            case ChainOf(line):
                await self.means.memory.refresh()
                chain = self.means.memory.chain(line)
                return chain is not None and chain != job.had
            case RevocationListOf(line):
                await self.means.memory.refresh()
                return self.means.memory.lists_of(line) not in ((), job.had)

    async def _chain(self, line: Line, job: Job) -> Settled:
        self._chains_sought[line] = self.means.kds.monotonic()
        return await self.fetch_chain(ChainOf(line), job)

    def _chain_may_be_old(self, line: Line) -> bool:
        sought = self._chains_sought.get(line)
        return sought is None or self.means.kds.monotonic() - sought > _CHAIN_FRESH

    def _between(self, bounds: tuple[float, float]) -> float:
        low, high = bounds
        return low + (high - low) * self.means.kds.random()
