"""Asking key distribution services: which one, when, and on whose behalf."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from secrets import SystemRandom
from types import TracebackType
from typing import Final, Self, TypeAlias

import httpx2

from kms.errors import ConfigurationError
from kms.kds.asking import Answer, Body, Failed, KdsHttp, Missing, Throttled
from kms.kds.endpoint import Endpoint, EndpointStatus
from kms.kds.pace import Shares
from kms.kds.turns import MOST_LINES, FairQueue
from kms.ports import Clock
from kms.snp.kds_paths import ChainOf, RevocationListOf, VcekOf, Wanted
from kms.snp.revocation_list import MAX_LENGTH

# Bytes. Genuine ones have about 1.4, 5 and 1 KiB.
LARGEST: Final = {VcekOf: 16 << 10, ChainOf: 64 << 10, RevocationListOf: 2 * MAX_LENGTH}
RANDOM: Final = SystemRandom().random
_LATE: Final = 0.001  # seconds: a timer must not ring too early
# Of a request; see `outcome_of`.
OUTCOMES: Final = ("answered", "missing", "throttled", "failed")
ObserveRequest: TypeAlias = Callable[[str, str, float], None]


def unobserved(_host: str, _outcome: str, _seconds: float) -> None:
    """Take note of nothing."""


def outcome_of(answer: Answer) -> str:
    """Name an answer, for whoever measures: one of `OUTCOMES`."""
    match answer:
        case Body():
            return "answered"
        case Missing():
            return "missing"
        case Throttled():
            return "throttled"
        case Failed():
            return "failed"


@dataclass(eq=False, slots=True)
class Asker:
    """Who waits for a turn: the services that it may still ask, and from when (`monotonic` seconds)."""

    not_before: dict[Endpoint, float]
    future: "asyncio.Future[Turn | None] | None" = field(default=None, repr=False)


class Turn:
    """The right to send one request to one service. It ends with the `with` block."""

    def __init__(self, kds: "KdsClient", endpoint: Endpoint, address: str) -> None:
        self.endpoint = endpoint
        self.address = address
        self._kds = kds
        self._used = False
        self._ended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()

    async def ask(self, wanted: Wanted) -> Answer:
        """Send the request. What the answer says of the service is noted, except for a body's worth."""
        self._used = True
        began = self._kds.monotonic()
        answer = await self._kds.get(self.endpoint, wanted)
        self._kds.observe(self.endpoint.host, outcome_of(answer), self._kds.monotonic() - began)
        match answer:
            case Throttled(seconds):
                self.endpoint.hold(seconds)
            case Missing() | Failed(healthy=True):
                self.endpoint.succeeded()
            case Failed(kind, hold):
                self.endpoint.failed(kind)
                if hold is not None:
                    self.endpoint.hold(hold)
        return answer

    def charge(self, tokens: float) -> None:
        """Take more from the share of the address on whose behalf it was asked."""
        self._kds.charge(self.address, tokens)

    def end(self) -> None:
        """Give the place up for others, and the tokens too if nothing was sent."""
        if not self._ended:
            self._ended = True
            self._kds.end_turn(self.endpoint, self.address, used=self._used)


class KdsClient:
    """The services of `urls`, tried in order.

    `per_second` and `burst` are the budget of requests for each of them; an address gets at most half of it
    (`kms.kds.pace.Shares`). `clock` reads dates in `Retry-After`; `monotonic` gives seconds, `random` a
    number from 0 to below 1. Budgets, holds and breakers are those of one server process. `observe` is told
    of each request its host, its outcome (`outcome_of`) and its seconds.

    Raises:
        ConfigurationError: a URL is not a plain http or https one, or there is none.

    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        per_second: float = 5.0,
        burst: int = 100,
        clock: Clock,
        monotonic: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = RANDOM,
        transport: httpx2.AsyncBaseTransport | None = None,
        observe: ObserveRequest = unobserved,
    ) -> None:
        if not urls:
            raise ConfigurationError("there is no URL of a key distribution service")
        bases = dict.fromkeys(url.rstrip("/") for url in urls)
        self.endpoints = tuple(
            Endpoint(url, per_second=per_second, burst=burst, clock=clock, monotonic=monotonic)
            for url in bases
        )
        self.monotonic = monotonic
        self.observe = observe
        self.random = random
        self._shares = Shares(per_second, burst, monotonic)
        self._queue: FairQueue[Asker] = FairQueue()
        self._http = KdsHttp(clock, transport=transport)
        self._alarm: asyncio.TimerHandle | None = None

    def new_asker(self) -> Asker:
        """Give an asker that may ask every service, at once."""
        return Asker(dict.fromkeys(self.endpoints, -math.inf))

    def join(self, addresses: list[str], address: str, asker: Asker) -> None:
        """Let an asker stand in an address's line too; `addresses`, those of its lines, are changed.

        One that stands in enough lines leaves that with the longest wait, if the new one has a shorter. Else
        strangers who ask first for somebody's chip, each at the end of a long line, would keep it there.
        Strangers cannot push out a line in the same way: only one that is nearer its turn can.
        """
        if address in addresses:
            return
        if len(addresses) >= MOST_LINES:
            worst = max(addresses, key=lambda each: self._wait_in_line(each, asker))
            if self._wait_in_line(worst, asker) <= self._wait_in_line(address, asker):
                return
            addresses.remove(worst)
            self._queue.leave(worst, asker)
        addresses.append(address)
        if asker in self._queue:
            self._queue.add(address, asker)
            self._pump()

    async def turn(self, addresses: Sequence[str], asker: Asker) -> Turn | None:
        """Wait for a turn; None when every service that may still be asked has an open breaker."""
        asker.future = asyncio.get_running_loop().create_future()
        for address in addresses:
            self._queue.add(address, asker)
        self._pump()
        try:
            return await asker.future
        except asyncio.CancelledError:
            self._give_up(asker)
            raise
        finally:
            self._queue.remove(asker)

    def expected_wait(self, addresses: Sequence[str], asker: Asker) -> float:
        """Give about how many seconds an asker will wait for a turn in the best of these addresses' lines."""
        usable = [each for each in asker.not_before if not each.shut] or self.endpoints
        best = min(addresses, key=lambda each: self._wait_in_line(each, asker))
        ahead = self._queue.ahead_of(best, asker)
        return max(self._shares.wait(best), min(each.delay + ahead * each.spacing for each in usable))

    def crowd_wait(self) -> float:
        """Give about how many seconds somebody would wait who came now, behind everybody."""
        return min(each.delay + len(self._queue) * each.spacing for each in self.endpoints)

    async def get(self, endpoint: Endpoint, wanted: Wanted) -> Answer:
        """Send one request."""
        return await self._http.get(endpoint.url + wanted.path, most=LARGEST[type(wanted)])

    def charge(self, address: str, tokens: float) -> None:
        """Take more from an address's share."""
        self._shares.take(address, tokens)

    def end_turn(self, endpoint: Endpoint, address: str, *, used: bool) -> None:
        """Take note that a turn is over."""
        endpoint.end(used=used)
        if not used:
            self._shares.give_back(address)
        self._pump()

    def status(self) -> tuple[EndpointStatus, ...]:
        """Describe each service, in order."""
        return tuple(each.status() for each in self.endpoints)

    async def close(self) -> None:
        """Close every connection; whoever waits for a turn waits no more."""
        if self._alarm is not None:
            self._alarm.cancel()
        await self._http.close()

    def _wait_in_line(self, address: str, asker: Asker) -> float:
        """Give about how many seconds of an asker's wait are due to an address: its debt and its line."""
        spacing = min(each.spacing for each in self.endpoints)
        return self._shares.wait(address) + self._queue.before(address, asker) * spacing

    def _give_up(self, asker: Asker) -> None:
        """Give back a turn that came in the same moment as the cancellation."""
        future = asker.future
        if future is not None and future.done() and not future.cancelled():
            turn = future.result()
            if turn is not None:
                turn.end()

    def _pump(self) -> None:
        """Give turns to whoever may have one now, and set the alarm for the next."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        soonest = 0.0
        while soonest == 0.0 and len(self._queue):
            soonest = self._give_turn()
        if len(self._queue) and soonest < math.inf:
            loop = asyncio.get_running_loop()
            self._alarm = loop.call_later(soonest + _LATE, self._pump)

    def _give_turn(self) -> float:
        """Give one turn and 0, or give the seconds until there may be one."""
        now = self.monotonic()
        shut = {each for each in self.endpoints if each.shut}
        waits = {each: each.wait for each in self.endpoints if each not in shut}
        if not shut and min(waits.values()) > 0:
            return min(waits.values())  # the usual case of many waiting, without looking at each of them
        soonest = min((each.delay for each in shut), default=math.inf)  # then one may be probed
        for address, line in self._queue.lines():
            share = self._shares.wait(address)
            for asker in line:
                if asker.future is None or asker.future.done():
                    continue  # cancelled, and about to leave
                usable = {each: start for each, start in asker.not_before.items() if each not in shut}
                if not usable:
                    self._resolve(asker, None)
                    return 0.0
                for endpoint, start in usable.items():
                    wait = max(waits[endpoint], share, start - now)
                    if wait <= 0:
                        endpoint.begin()
                        self._shares.take(address)
                        self._queue.served(address)
                        self._resolve(asker, Turn(self, endpoint, address))
                        return 0.0
                    soonest = min(soonest, wait)
        return soonest

    def _resolve(self, asker: Asker, turn: Turn | None) -> None:
        self._queue.remove(asker)
        if asker.future is not None:
            asker.future.set_result(turn)
