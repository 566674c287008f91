"""The whole way over real HTTP, to the simulated service and its bad days, with the real database."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from kms.database.collateral import CollateralDatabase
from kms.database.engine import open_engine, sqlite_url
from kms.database.migrate import migrate
from kms.errors import CollateralUnavailable, CollateralUnknown
from kms.kds.client import KdsClient
from kms.kds.service import CollateralService
from kms.packaged import packaged_folder
from kms.simulator.chip import SimulatedChip, simulated_chip_id
from kms.simulator.hierarchy import AmdHierarchy
from kms.simulator.kds import SimulatedKds
from kms.simulator.kds_faults import Faults, RetryAfter
from kms.snp.endorsement import load_der
from kms.snp.flags import Signer
from kms.snp.kds_paths import ChainOf, Line, RevocationListOf, VcekOf
from kms.snp.product import Product
from kms.snp.report import Report
from kms.snp.roots import TrustedRoots

pytestmark = pytest.mark.enable_socket

GUEST = "192.0.2.1"
MILAN = Line(Signer.VCEK, Product.MILAN)


def utc_now() -> datetime:
    return datetime.now(UTC)


def make_chip(hierarchy: AmdHierarchy, number: int) -> SimulatedChip:
    chip_id = simulated_chip_id(hierarchy.product, b"over http %d" % number)
    chip = SimulatedChip.typical(hierarchy, chip_id=chip_id, now=utc_now())
    return replace(chip, secret=sha256(chip_id).digest())


def wanted_of(chip: SimulatedChip) -> VcekOf:
    return VcekOf(chip.hierarchy.product, chip.chip_id, chip.reported_tcb)


@pytest.fixture(scope="module")
def hierarchy() -> AmdHierarchy:
    return AmdHierarchy.generate(Product.MILAN, now=utc_now(), rsa_bits=2048)


@dataclass(frozen=True)
class Place:
    """A data folder, a simulated service that runs, and chips that it knows."""

    folder: Path
    hierarchy: AmdHierarchy
    chips: list[SimulatedChip]
    kds: SimulatedKds

    @asynccontextmanager
    async def serving(self, *urls: str) -> AsyncIterator[CollateralService]:
        """Run the service of one server process on the database in the folder."""
        engine = open_engine(sqlite_url(self.folder))
        await migrate(engine, packaged_folder("migrations"))
        service = CollateralService(
            store=CollateralDatabase(engine, utc_now),
            kds=KdsClient(urls or [self.kds.url], clock=utc_now),
            roots=TrustedRoots.with_development([load_der(self.hierarchy.ark.certificate)]),
            clock=utc_now,
        )
        service.start()
        try:
            yield service
        finally:
            await service.stop()
            await engine.dispose()


@pytest.fixture
def place(tmp_path: Path, hierarchy: AmdHierarchy) -> Iterator[Place]:
    chips = [make_chip(hierarchy, number) for number in range(4)]
    with SimulatedKds([hierarchy], chips) as kds:
        yield Place(tmp_path, hierarchy, chips, kds)


@pytest.fixture(autouse=True)
def short_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kms.kds.asking.DEADLINE", 1.0)


async def leaves(service: CollateralService, chip: SimulatedChip) -> list[bytes]:
    report = Report.parse(chip.launch(bytes(48)).report(bytes(64)))
    return [each.der for each in await service.leaves(report)]


async def test_a_certificate_and_a_list_come_and_stay(place: Place) -> None:
    async with place.serving() as service:
        await service.fetch(wanted_of(place.chips[0]), GUEST)
        await service.fetch(RevocationListOf(MILAN), GUEST)
        fetched = await leaves(service, place.chips[0])
        assert len(fetched) == 1
        assert len(await service.revocation_lists()) == 1
    place.kds.faults = Faults(down=True)
    async with place.serving() as restarted:
        assert await leaves(restarted, place.chips[0]) == fetched
        assert len(await restarted.authorities()) == 2
        assert len(await restarted.revocation_lists()) == 1
    assert place.kds.asked() == 3


async def test_a_chip_that_nobody_made_is_unknown(place: Place) -> None:
    async with place.serving() as service:
        with pytest.raises(CollateralUnknown):
            await service.fetch(wanted_of(make_chip(place.hierarchy, 99)), GUEST)


async def test_two_servers_share_one_request(place: Place) -> None:
    place.kds.faults = Faults(latency=0.5)
    async with (
        place.serving() as one,
        place.serving() as other,
    ):
        await asyncio.gather(
            *(service.fetch(wanted_of(place.chips[0]), GUEST) for service in (one, other) for _ in range(10))
        )
        assert await leaves(one, place.chips[0]) == await leaves(other, place.chips[0]) != []
    assert place.kds.served(wanted_of(place.chips[0]).path) == 1
    assert place.kds.served(ChainOf(MILAN).path) == 1


@pytest.mark.parametrize(
    ("faults", "failure"),
    [
        (Faults(down=True), "connection"),
        (Faults(failing=1.0), "status-5"),
        (Faults(redirect="http://127.0.0.1:9/"), "redirect"),
        (Faults(wrong_certificate=True), "wrong-certificate"),
        (Faults(garbage=True), "unreadable"),
        (Faults(oversized=True), "too-large"),
        (Faults(cut=True), "connection"),
        (Faults(drip=200.0), "timeout"),
        (Faults(latency=3600.0), "timeout"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_bad_days_lead_to_the_next_service(place: Place, faults: Faults, failure: str) -> None:
    async with place.serving() as before:
        await before.fetch(ChainOf(MILAN), GUEST)
    place.kds.faults = faults
    with SimulatedKds([place.hierarchy], place.chips) as good:
        async with place.serving(place.kds.url, good.url) as service:
            with capture_logs() as logs:
                await service.fetch(wanted_of(place.chips[0]), GUEST)
            assert len(await leaves(service, place.chips[0])) == 1
            failed = [line["failure"] for line in logs if line["event"] == "collateral-failed"]
            assert len(failed) == 1
            assert failed[0].startswith(failure)


@pytest.mark.parametrize("form", list(RetryAfter))
async def test_the_throttle_is_waited_for_and_nothing_is_asked_meanwhile(
    place: Place, form: RetryAfter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kms.kds.pace.HOLD_WITHOUT_HEADER", 2.0)
    place.kds.faults = Faults(interval=1.0, retry_after=form)
    async with place.serving() as service:
        await service.fetch(wanted_of(place.chips[0]), GUEST)
        await service.fetch(wanted_of(place.chips[1]), GUEST)
        assert len(await leaves(service, place.chips[1])) == 1
        refused = [each for each in place.kds.log if each.status == 429]
        assert len(refused) <= 1


async def test_a_service_that_does_not_verify_as_its_name_is_not_asked_further(place: Place) -> None:
    async with place.serving(place.kds.url.replace("http:", "https:")) as service:
        with capture_logs() as logs, pytest.raises(CollateralUnavailable):
            await service.fetch(wanted_of(place.chips[0]), GUEST)
        assert {line["failure"] for line in logs if line["event"] == "collateral-failed"} == {"connection"}


async def test_a_fleet_boots_through_limits_and_failures(place: Place) -> None:
    fleet = [make_chip(place.hierarchy, number) for number in range(100, 112)]
    place.kds.add(*fleet)
    place.kds.faults = Faults(interval=0.2, failing=0.3)

    async def boot(service: CollateralService, chip: SimulatedChip, address: str) -> None:
        while True:
            try:
                await service.fetch(wanted_of(chip), address)
            except CollateralUnavailable:
                await asyncio.sleep(0.3)
            else:
                return

    async with place.serving() as service, asyncio.timeout(60):
        await asyncio.gather(
            *(boot(service, chip, f"192.0.2.{number}") for number, chip in enumerate(fleet * 4))
        )
    assert {place.kds.served(wanted_of(chip).path) for chip in fleet} == {1}


async def test_a_service_on_this_machine_is_asked_without_the_proxy(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    async with place.serving() as service:
        await service.fetch(wanted_of(place.chips[0]), GUEST)
