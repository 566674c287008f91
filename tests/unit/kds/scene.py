"""A store in memory, a key distribution service behind a mock transport, and the service between them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from urllib.parse import parse_qsl

import httpx2

from kms.errors import CollateralUnavailable, LedgerUnavailable
from kms.identifiers import ChipId
from kms.kds.client import KdsClient
from kms.kds.service import CollateralService
from kms.ports import Role, StoredCertificate, StoredRevocationList
from kms.simulator.chip import SimulatedChip, simulated_chip_id
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.endorsement import load_der
from kms.snp.flags import Signer
from kms.snp.kds_paths import ChainOf, Line, RevocationListOf, VcekOf, parse_path
from kms.snp.product import Product
from kms.snp.report import Report
from kms.snp.roots import TrustedRoots
from kms.snp.tcb import TcbVersion
from tests.unit.kds.virtual_time import now

START = datetime(2026, 11, 21, 12, tzinfo=UTC)
URL = "https://kds.test"
OTHER_URL = "http://mirror.test/amd"
MILAN = Line(Signer.VCEK, Product.MILAN)

Handler = Callable[[httpx2.Request], Awaitable[httpx2.Response]]


class StoreInMemory:
    """Implements `kms.ports.CollateralStore`, for several owners. `broken`: as if it were gone."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self.certificates: dict[bytes, StoredCertificate] = {}
        self.lists: dict[tuple[bytes, Line], StoredRevocationList] = {}
        self.claims: dict[str, tuple[str, datetime]] = {}
        self.broken = False
        self.reads = 0
        self.writes = 0
        self._clock = clock

    async def authorities(self) -> tuple[StoredCertificate, ...]:
        await self._work()
        return tuple(each for each in self.certificates.values() if each.role is not Role.LEAF)

    async def revocation_lists(self) -> tuple[StoredRevocationList, ...]:
        await self._work()
        return tuple(self.lists.values())

    async def vceks(self, product: Product | None, chip_id: ChipId) -> tuple[StoredCertificate, ...]:
        await self._work()
        self.reads += 1
        return tuple(
            each
            for each in self.certificates.values()
            if each.chip_id == chip_id and product in {None, each.line.product}
        )

    async def vleks(self, product: Product | None, tcb: TcbVersion | None) -> tuple[StoredCertificate, ...]:
        await self._work()
        return tuple(
            each
            for each in self.certificates.values()
            if each.role is Role.LEAF
            and each.line.signer is Signer.VLEK
            and product in {None, each.line.product}
            and tcb in {None, each.tcb}
        )

    async def keep(self, *items: StoredCertificate | StoredRevocationList) -> int:
        await self._work()
        self.writes += 1
        before = len(self.certificates) + len(self.lists)
        for item in items:
            if isinstance(item, StoredCertificate):
                self.certificates.setdefault(item.certificate.fingerprint, item)
                continue
            older = self.lists.get((item.ark, item.line))
            if older is None or item.list.replaces(older.list):
                self.lists[item.ark, item.line] = item
        return len(self.certificates) + len(self.lists) - before

    async def all_certificates(self) -> tuple[StoredCertificate, ...]:
        return tuple(self.certificates.values())

    async def claim(self, what: str, owner: str, seconds: float) -> bool:
        await self._work()
        holder, until = self.claims.get(what, (owner, self._clock()))
        if holder != owner and until > self._clock():
            return False
        self.claims[what] = (owner, self._clock() + timedelta(seconds=seconds))
        return True

    async def release(self, what: str, owner: str) -> None:
        await self._work()
        if self.claims.get(what, ("", START))[0] == owner:
            del self.claims[what]

    def leaves(self) -> list[StoredCertificate]:
        return [each for each in self.certificates.values() if each.role is Role.LEAF]

    async def _work(self) -> None:
        await asyncio.sleep(0.001)
        if self.broken:
            raise LedgerUnavailable("the test's database is gone")


@dataclass
class FakeKds:
    """A service that knows some chips. `answer` may be replaced; `asked` has time, host and path of each."""

    hierarchies: Mapping[Product, AmdHierarchy]
    chips: dict[ChipId, SimulatedChip] = field(default_factory=dict)
    lists: dict[Line, bytes] = field(default_factory=dict)
    asked: list[tuple[float, str, str]] = field(default_factory=list)
    latency: float = 0.05
    answer: Handler | None = None
    in_flight: int = 0
    most_in_flight: int = 0

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append((now(), request.url.host, request.url.raw_path.decode()))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.latency)
            return await (self.answer or self.genuine)(request)
        finally:
            self.in_flight -= 1

    async def genuine(self, request: httpx2.Request) -> httpx2.Response:
        body = self.body(request)
        return httpx2.Response(404) if body is None else httpx2.Response(200, content=body)

    def body(self, request: httpx2.Request) -> bytes | None:
        path = "/" + "/".join(request.url.path.split("/")[-4:])
        match parse_path(path, dict(parse_qsl(request.url.query.decode()))):
            case VcekOf(product, chip_id, tcb):
                chip = self.chips.get(chip_id)
                if chip is None or chip.hierarchy.product is not product:
                    return None
                at_tcb = chip if chip.reported_tcb == tcb else replace(chip, reported_tcb=tcb)
                return at_tcb.endorsement.certificate
            case ChainOf(line):
                hierarchy = self.hierarchies[line.product]
                authority = hierarchy.ask if line.signer is Signer.VCEK else hierarchy.asvk
                return authority.pem + hierarchy.ark.pem
            case RevocationListOf(line):
                return self.lists.get(line)
        return None

    def asked_for(self, wanted: VcekOf | ChainOf | RevocationListOf) -> list[float]:
        """Give when something was asked for."""
        return [at for at, _, path in self.asked if path.endswith(wanted.path)]

    def vceks_asked(self) -> list[tuple[float, str, str]]:
        return [each for each in self.asked if "SPL=" in each[2]]


class Scene:
    """Time, a store, a service, and what a test asks of them. Random numbers are always 0.5."""

    def __init__(self, hierarchies: Mapping[Product, AmdHierarchy], *, chips: int = 1) -> None:
        self.hierarchies = hierarchies
        self.roots = TrustedRoots.with_development(
            load_der(each.ark.certificate) for each in hierarchies.values()
        )
        self.chips = [self.chip(number) for number in range(chips)]
        self.kds = FakeKds(hierarchies, {each.chip_id: each for each in self.chips})
        self._began = now()
        self.store = StoreInMemory(self.clock)

    def clock(self) -> datetime:
        return START + timedelta(seconds=now() - self._began)

    def chip(self, number: int, product: Product = Product.MILAN) -> SimulatedChip:
        chip_id = simulated_chip_id(product, b"%d" % number)
        chip = SimulatedChip.typical(self.hierarchies[product], chip_id=chip_id, now=START)
        return replace(chip, secret=sha256(b"%d" % number).digest())

    @asynccontextmanager
    async def service(
        self,
        *urls: str,
        start: bool = False,
        per_second: float = 5.0,
        burst: int = 100,
        renew_lists: bool = True,
    ) -> AsyncIterator[CollateralService]:
        """Give a service like that of one server process; without URLs, one that asks nobody."""
        client = None
        if urls:
            client = KdsClient(
                urls,
                per_second=per_second,
                burst=burst,
                clock=self.clock,
                monotonic=now,
                random=lambda: 0.5,
                transport=httpx2.MockTransport(self.kds),
            )
        service = CollateralService(
            store=self.store,
            kds=client,
            roots=self.roots,
            clock=self.clock,
            monotonic=now,
            random=lambda: 0.5,
            renew_lists=renew_lists,
        )
        if start:
            service.start()
        try:
            yield service
        finally:
            await service.stop()

    def publish(
        self, *serials: int, line: Line = MILAN, number: int = 1, made: datetime = START, days: float = 30
    ) -> bytes:
        """Have the service give a revocation list."""
        made -= timedelta(hours=1)
        body = self.hierarchies[line.product].revocation_list(
            serials, number=number, this_update=made, next_update=made + timedelta(days=days)
        )
        self.kds.lists[line] = body
        return body


def wanted_of(chip: SimulatedChip) -> VcekOf:
    """Name a chip's certificate."""
    return VcekOf(chip.hierarchy.product, chip.chip_id, chip.reported_tcb)


def invented(number: int) -> VcekOf:
    """Name a certificate that nobody has."""
    chip_id = ChipId(sha256(b"invented %d" % number).digest() * 2)
    return VcekOf(Product.MILAN, chip_id, TcbVersion(bootloader=4, tee=0, snp=24, microcode=219))


def report_of(chip: SimulatedChip) -> Report:
    """Give a report of the chip."""
    return Report.parse(chip.launch(bytes(48)).report(bytes(64)))


async def boot(service: CollateralService, chip: SimulatedChip, address: str) -> int:
    """Be a guest: ask for the certificate, come again when told so; say how often it took."""
    for attempt in range(1, 1_000):
        try:
            await service.fetch(wanted_of(chip), address)
        except CollateralUnavailable as error:
            await asyncio.sleep(error.retry_after)
        else:
            return attempt
    raise TimeoutError
