"""The collateral store: what is kept stays, what is damaged is left out, and of many exactly one fetches.

Everything but the query plans and the migration opens its database by `open_another`, where another kind of
database can be put.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import Connection, event, insert, inspect, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from kms.database.collateral import CollateralDatabase
from kms.database.engine import open_engine, reading, sqlite_url, writing
from kms.database.migrate import migrate
from kms.database.schema import certificates, collateral_claims, revocation_lists, spent_challenges
from kms.errors import LedgerUnavailable
from kms.identifiers import ChipId
from kms.packaged import packaged_folder
from kms.ports import CollateralStore, Role, StoredCertificate, StoredRevocationList
from kms.simulator.chip import simulated_chip_id
from kms.simulator.hierarchy import AmdHierarchy
from kms.simulator.platforms import TYPICAL
from kms.simulator.revocation_lists import RevocationListDraft
from kms.snp.endorsement import load_der
from kms.snp.flags import Signer
from kms.snp.kds_paths import Line
from kms.snp.product import Product
from kms.snp.revocation_list import load_revocation_list
from kms.snp.tcb import TcbVersion
from tests.unit.database.conftest import OpenAnother
from tests.unit.database.dialects import ON_SQLITE
from tests.world import NOW

SCRIPTS = packaged_folder("migrations")
DAY = timedelta(days=1)
PATH = "/vcek/v1/Milan/crl"

Hierarchies = Mapping[Product, AmdHierarchy]


@dataclass
class SettableClock:
    now: datetime = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> SettableClock:
    return SettableClock()


@pytest.fixture
def database(engine: AsyncEngine, clock: SettableClock) -> CollateralDatabase:
    return CollateralDatabase(engine, clock)


@pytest.fixture
def store(database: CollateralDatabase) -> CollateralStore:
    return database


@dataclass(frozen=True)
class Amd:
    """Makes what a store keeps."""

    hierarchies: Hierarchies

    def vcek(
        self,
        seed: bytes = b"chip",
        product: Product = Product.MILAN,
        *,
        key: ec.EllipticCurvePrivateKey | None = None,
        not_before: datetime = NOW - DAY,
        not_after: datetime = NOW + 2555 * DAY,
        **levels: int,
    ) -> StoredCertificate:
        tcb = replace(TYPICAL[product].tcb, **levels)
        chip_id = simulated_chip_id(product, seed)
        key = key or ec.generate_private_key(ec.SECP384R1())
        der = self.hierarchies[product].issue_vcek(
            key.public_key(), tcb, chip_id, not_before=not_before, not_after=not_after
        )
        line = Line(Signer.VCEK, product)
        return stored(der, line, Role.LEAF, chip_id=chip_id, tcb=tcb)

    def vlek(self, product: Product = Product.MILAN, **levels: int) -> StoredCertificate:
        tcb = replace(TYPICAL[product].tcb, **levels)
        key = ec.generate_private_key(ec.SECP384R1()).public_key()
        der = self.hierarchies[product].issue_vlek(
            key, tcb, "cloud.example", not_before=NOW - DAY, not_after=NOW + 365 * DAY
        )
        return stored(der, Line(Signer.VLEK, product), Role.LEAF, csp_id="cloud.example", tcb=tcb)

    def authorities(self, product: Product = Product.MILAN) -> list[StoredCertificate]:
        amd = self.hierarchies[product]
        return [
            stored(amd.ark.certificate, Line(Signer.VCEK, product), Role.ARK),
            stored(amd.ask.certificate, Line(Signer.VCEK, product), Role.AUTHORITY),
            stored(amd.asvk.certificate, Line(Signer.VLEK, product), Role.AUTHORITY),
        ]

    def revocation_list(
        self,
        number: int | None,
        product: Product = Product.MILAN,
        signer: Signer = Signer.VCEK,
        this_update: datetime = NOW - DAY,
    ) -> StoredRevocationList:
        ark = self.hierarchies[product].ark
        draft = RevocationListDraft.by(
            ark, (0x10001,), number=number, this_update=this_update, next_update=NOW + 30 * DAY
        )
        line = Line(signer, product)
        return StoredRevocationList(
            list=load_revocation_list(draft.signed(ark.key), line=line),
            line=line,
            ark=load_der(ark.certificate).public_key_sha256,
            source="kds",
        )


@pytest.fixture(scope="session")
def amd(simulated_hierarchies: Hierarchies) -> Amd:
    return Amd(simulated_hierarchies)


def stored(
    der: bytes,
    line: Line,
    role: Role,
    *,
    chip_id: ChipId | None = None,
    csp_id: str | None = None,
    tcb: TcbVersion | None = None,
) -> StoredCertificate:
    return StoredCertificate(
        certificate=load_der(der),
        line=line,
        role=role,
        source="kds",
        chip_id=chip_id,
        csp_id=csp_id,
        tcb=tcb,
    )


def chip_of(item: StoredCertificate) -> ChipId:
    assert item.chip_id is not None
    return item.chip_id


async def edit(engine: AsyncEngine, statement: Any) -> None:
    async with writing(engine) as connection:
        assert (await connection.execute(statement)).rowcount > 0


class TestCertificates:
    @pytest.mark.parametrize("product", list(Product))
    async def test_what_is_kept_is_read_back(
        self, store: CollateralStore, amd: Amd, product: Product
    ) -> None:
        vcek, vlek, authorities = amd.vcek(product=product), amd.vlek(product), amd.authorities(product)
        assert await store.keep(vcek, vlek, *authorities) == 5
        assert await store.vceks(product, chip_of(vcek)) == (vcek,)
        assert await store.vceks(None, chip_of(vcek)) == (vcek,)
        assert await store.vleks(product, vlek.tcb) == (vlek,)
        assert set_of(await store.authorities()) == set_of(authorities)

    async def test_keeping_again_changes_nothing(
        self, store: CollateralStore, amd: Amd, clock: SettableClock
    ) -> None:
        vcek, ark = amd.vcek(), amd.authorities()[0]
        assert await store.keep(vcek, ark, vcek) == 2
        clock.now += DAY
        assert await store.keep(replace(vcek, source="guest"), replace(ark, source="import")) == 0
        assert await store.keep() == 0
        assert {each.source for each in await store.all_certificates()} == {"kds"}

    async def test_a_chips_certificates_the_last_kept_first(
        self, store: CollateralStore, amd: Amd, clock: SettableClock
    ) -> None:
        older, newer, other = amd.vcek(snp=23), amd.vcek(snp=24), amd.vcek(b"another chip")
        await store.keep(newer, other)
        clock.now += timedelta(seconds=1)
        await store.keep(older)
        assert await store.vceks(Product.MILAN, chip_of(older)) == (older, newer)
        assert await store.vceks(Product.GENOA, chip_of(older)) == ()
        assert await store.vceks(None, simulated_chip_id(Product.MILAN, b"unknown")) == ()

    async def test_vleks_by_product_and_tcb(
        self, store: CollateralStore, amd: Amd, clock: SettableClock
    ) -> None:
        old, new, genoa = amd.vlek(snp=9), amd.vlek(snp=24), amd.vlek(Product.GENOA)
        for each in (old, new, genoa):
            await store.keep(each)
            clock.now += timedelta(seconds=1)
        await store.keep(amd.vcek(snp=9), *amd.authorities())
        assert await store.vleks(None, None) == (genoa, new, old)
        assert await store.vleks(Product.MILAN, None) == (new, old)
        assert await store.vleks(Product.MILAN, old.tcb) == (old,)
        assert await store.vleks(Product.GENOA, old.tcb) == ()
        assert await store.vleks(Product.TURIN, None) == ()

    async def test_all_are_in_order_and_levels_are_numbers(self, store: CollateralStore, amd: Amd) -> None:
        ark, ask, asvk = amd.authorities()
        ordered = [ark, ask, amd.vcek(snp=9), amd.vcek(snp=24), amd.vcek(snp=100), asvk, amd.vlek()]
        await store.keep(*reversed(ordered))
        assert await store.all_certificates() == tuple(ordered)

    async def test_the_tcb_has_one_text(self, engine: AsyncEngine, store: CollateralStore, amd: Amd) -> None:
        milan = amd.vcek(bootloader=4, tee=0, snp=24, microcode=219)
        turin = amd.vcek(product=Product.TURIN, fmc=1, bootloader=4, tee=0, snp=24, microcode=219)
        await store.keep(milan, turin, amd.authorities()[0])
        async with reading(engine) as connection:
            texts = (await connection.execute(select(certificates.c.tcb))).scalars().all()
        expected = "bootloader=4 tee=0 snp=24 microcode=219"
        assert set(texts) == {expected, f"fmc=1 {expected}", None}

    async def test_one_bad_item_keeps_them_all_out(self, store: CollateralStore, amd: Amd) -> None:
        bad = replace(amd.vcek(b"bad"), source=None)  # type: ignore[arg-type]
        with pytest.raises(LedgerUnavailable):
            await store.keep(amd.vcek(), bad, amd.revocation_list(1))
        assert await store.all_certificates() == ()
        assert await store.revocation_lists() == ()

    async def test_two_processes_that_keep_the_same(self, open_another: OpenAnother, amd: Amd) -> None:
        items = [amd.vcek(bytes([number])) for number in range(10)]
        stores = [CollateralDatabase(open_another(), lambda: NOW) for _ in range(2)]
        numbers = await asyncio.gather(stores[0].keep(*items), stores[1].keep(*reversed(items)))
        assert sum(numbers) == 10
        assert len(await stores[0].all_certificates()) == 10

    async def test_many_at_once(
        self, store: CollateralStore, amd: Amd, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("kms.database.collateral._IN_ONE_STATEMENT", 4)
        items = [amd.vcek(bytes([number])) for number in range(10)]
        assert await store.keep(*items[:3]) == 3
        assert await store.keep(*items, *amd.authorities()) == 10
        assert set_of(await store.all_certificates()) == set_of([*items, *amd.authorities()])


class TestManyCertificatesOfOneKey:
    """Else whoever runs a guest could send one genuine certificate after another, until look-ups crawl."""

    async def test_one_that_does_not_live_longer_is_not_kept(self, store: CollateralStore, amd: Amd) -> None:
        key = ec.generate_private_key(ec.SECP384R1())
        first = amd.vcek(key=key)
        assert await store.keep(first) == 1
        assert await store.keep(amd.vcek(key=key), amd.vcek(key=key, not_after=NOW + 2554 * DAY)) == 0
        assert await store.vceks(None, chip_of(first)) == (first,)

    async def test_one_that_lives_longer_takes_its_place(self, store: CollateralStore, amd: Amd) -> None:
        key = ec.generate_private_key(ec.SECP384R1())
        assert await store.keep(amd.vcek(key=key)) == 1
        for days in range(2556, 2560):
            longer = amd.vcek(key=key, not_after=NOW + days * DAY)
            assert await store.keep(longer) == 1
            assert await store.keep(longer) == 0
            assert await store.all_certificates() == (longer,)

    async def test_of_those_that_come_together_one_is_kept(self, store: CollateralStore, amd: Amd) -> None:
        key = ec.generate_private_key(ec.SECP384R1())
        short, longest, long = (amd.vcek(key=key, not_after=NOW + days * DAY) for days in (1, 3, 2))
        assert await store.keep(short, longest, long) == 1
        assert await store.all_certificates() == (longest,)

    async def test_other_keys_tcbs_and_chips_are_kept(self, store: CollateralStore, amd: Amd) -> None:
        key = ec.generate_private_key(ec.SECP384R1())
        others = [amd.vcek(), amd.vcek(key=key, snp=1), amd.vcek(b"another chip", key=key)]
        assert await store.keep(amd.vcek(key=key), *others) == 4

    @pytest.mark.parametrize("days", [2554, 2556])
    async def test_a_damaged_one_stands_for_none(
        self, engine: AsyncEngine, store: CollateralStore, amd: Amd, days: int
    ) -> None:
        key = ec.generate_private_key(ec.SECP384R1())
        await store.keep(amd.vcek(key=key))
        await edit(engine, update(certificates).values(der=b"damaged"))
        other = amd.vcek(key=key, not_after=NOW + days * DAY)
        assert await store.keep(other) == 1
        assert await store.vceks(None, chip_of(other)) == (other,)


DAMAGES: dict[str, dict[str, object]] = {
    "der": {"der": b"0\x03\x02\x01\x00"},
    "empty-der": {"der": b""},
    "text-for-der": {"der": text("'certificate'")},
    "role": {"role": "root"},
    "signer": {"signer": "vdek"},
    "product": {"product": "rome"},
    "tcb-words": {"tcb": "old"},
    "tcb-names": {"tcb": "bootloader=4 tee=0 snp=24"},
    "tcb-levels": {"tcb": "bootloader=four tee=0 snp=24 microcode=219"},
}


class TestDamage:
    @pytest.mark.parametrize("name", DAMAGES)
    async def test_a_damaged_row_is_left_out_and_told_and_mended(
        self, engine: AsyncEngine, store: CollateralStore, amd: Amd, name: str
    ) -> None:
        good, bad = amd.vcek(snp=1), amd.vcek(snp=2)
        await store.keep(good, bad)
        fingerprint = bad.certificate.fingerprint.hex()
        place = certificates.c.fingerprint == fingerprint
        await edit(engine, update(certificates).where(place).values(**DAMAGES[name]))
        with capture_logs() as logs:
            assert await store.vceks(None, chip_of(good)) == (good,)
            assert await store.all_certificates() == (good,)
        assert [(line["event"], line["log_level"], line["row"]) for line in logs] == [
            ("collateral-row-damaged", "warning", fingerprint)
        ] * 2
        assert await store.keep(good, replace(bad, source="import")) == 1
        assert set_of(await store.vceks(None, chip_of(good))) == set_of([good, bad])

    async def test_a_certificate_in_the_place_of_another(
        self, engine: AsyncEngine, store: CollateralStore, amd: Amd
    ) -> None:
        vcek, other = amd.vcek(), amd.vcek()
        await store.keep(vcek)
        await edit(engine, update(certificates).values(der=other.certificate.der))
        assert await store.vceks(None, chip_of(vcek)) == ()

    async def test_a_row_that_says_something_else_of_its_certificate_is_mended(
        self, engine: AsyncEngine, store: CollateralStore, amd: Amd
    ) -> None:
        vcek = amd.vcek()
        await store.keep(vcek)
        await edit(engine, update(certificates).values(role="authority", not_after="2999"))
        assert await store.keep(replace(vcek, source="guest")) == 1
        assert await store.all_certificates() == (vcek,)

    @pytest.mark.parametrize("chip_id", ["11", "zz" * 64, "00" * 64])
    async def test_a_damaged_chip_id(
        self, engine: AsyncEngine, store: CollateralStore, amd: Amd, chip_id: str
    ) -> None:
        vcek = amd.vcek()
        await store.keep(vcek)
        await edit(engine, update(certificates).values(chip_id=chip_id))
        assert await store.all_certificates() == ()
        assert await store.keep(vcek) == 1
        assert await store.all_certificates() == (vcek,)

    async def test_damaged_authorities_and_counts(
        self, engine: AsyncEngine, database: CollateralDatabase, amd: Amd
    ) -> None:
        ark, ask, asvk = amd.authorities()
        await database.keep(ark, ask, asvk)
        place = certificates.c.fingerprint == ask.certificate.fingerprint.hex()
        await edit(engine, update(certificates).where(place).values(product="rome"))
        assert set_of(await database.authorities()) == set_of([ark, asvk])
        assert sum(each.count for each in await database.counts()) == 2

    @pytest.mark.parametrize("call", ["read", "keep", "claim"])
    async def test_a_database_that_fails(
        self, engine: AsyncEngine, database: CollateralDatabase, amd: Amd, call: str
    ) -> None:
        async with engine.begin() as connection:
            for table in (certificates, revocation_lists, collateral_claims):
                await connection.execute(text(f"DROP TABLE {table.name}"))
        vcek = amd.vcek()
        calls: dict[str, list[Callable[[], Awaitable[object]]]] = {
            "read": [
                database.authorities,
                database.revocation_lists,
                lambda: database.vceks(None, chip_of(vcek)),
                lambda: database.vleks(None, None),
                database.all_certificates,
                database.counts,
            ],
            "keep": [lambda: database.keep(vcek), lambda: database.keep(amd.revocation_list(1))],
            "claim": [lambda: database.claim(PATH, "a", 1), lambda: database.release(PATH, "a")],
        }
        for each in calls[call]:
            with pytest.raises(LedgerUnavailable):
                await each()


class TestCounts:
    async def test_an_empty_store(self, database: CollateralDatabase) -> None:
        assert await database.counts() == ()

    async def test_lines_and_roles(
        self, database: CollateralDatabase, amd: Amd, clock: SettableClock
    ) -> None:
        ended = amd.vcek(b"ended", not_after=NOW - timedelta(hours=1))
        await database.keep(ended, amd.vlek(), *amd.authorities())
        clock.now += DAY
        await database.keep(amd.vcek(b"soon", not_after=NOW + 10 * DAY), amd.vcek(b"late"))
        counts = {(each.line.signer, each.role): each for each in await database.counts()}
        assert {key: each.count for key, each in counts.items()} == {
            (Signer.VCEK, Role.ARK): 1,
            (Signer.VCEK, Role.AUTHORITY): 1,
            (Signer.VCEK, Role.LEAF): 3,
            (Signer.VLEK, Role.AUTHORITY): 1,
            (Signer.VLEK, Role.LEAF): 1,
        }
        leaves = counts[Signer.VCEK, Role.LEAF]
        assert leaves.line == Line(Signer.VCEK, Product.MILAN)
        assert (leaves.first_kept, leaves.last_kept) == (NOW, NOW + DAY)
        assert leaves.next_expiry == NOW + 10 * DAY

    async def test_all_have_ended(self, database: CollateralDatabase, amd: Amd) -> None:
        await database.keep(amd.vcek(not_after=NOW - timedelta(hours=1)))
        [count] = await database.counts()
        assert count.next_expiry is None


class TestIndexes:
    """With 100,000 VCEKs no look-up of a release may walk through the table. This one is about SQLite."""

    @ON_SQLITE
    @pytest.mark.parametrize(
        ("call", "index"),
        [
            ("vceks", "certificates_by_chip (chip_id=?)"),
            ("vceks of a product", "certificates_by_chip (chip_id=?)"),
            ("vleks", "certificates_by_tcb (role=? AND signer=? AND product=? AND tcb=?)"),
            ("authorities", "certificates_by_tcb (role=?)"),
            ("keep", "certificates_by_chip (chip_id=?)"),
        ],
    )
    async def test_a_look_up_searches_its_index(
        self, engine: AsyncEngine, store: CollateralStore, amd: Amd, call: str, index: str
    ) -> None:
        asked: list[tuple[str, Any]] = []

        def note(_c: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
            if statement.startswith("SELECT"):
                asked.append((statement, parameters))

        vcek = amd.vcek()
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "vceks": lambda: store.vceks(None, chip_of(vcek)),
            "vceks of a product": lambda: store.vceks(Product.MILAN, chip_of(vcek)),
            "vleks": lambda: store.vleks(Product.MILAN, vcek.tcb),
            "authorities": store.authorities,
            "keep": lambda: store.keep(vcek),
        }
        event.listen(engine.sync_engine, "before_cursor_execute", note)
        await calls[call]()
        event.remove(engine.sync_engine, "before_cursor_execute", note)
        [(statement, parameters)] = asked
        async with reading(engine) as connection:
            rows = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plan = [row.detail for row in rows]
        assert plan[0] == f"SEARCH certificates USING INDEX {index}"
        assert not any("SCAN" in step for step in plan)


class TestRevocationLists:
    async def test_each_ark_and_line_has_its_own(self, store: CollateralStore, amd: Amd) -> None:
        lists = [
            amd.revocation_list(1),
            amd.revocation_list(1, signer=Signer.VLEK),
            amd.revocation_list(1, Product.GENOA),
            replace(amd.revocation_list(1), ark=bytes(32)),
        ]
        assert await store.keep(*lists) == 4
        assert set_of(await store.revocation_lists()) == set_of(lists)
        newer = [replace(amd.revocation_list(2), ark=each.ark, line=each.line) for each in lists[:2]]
        assert await store.keep(*newer) == 2
        assert await store.keep(*lists) == 0
        assert set_of(await store.revocation_lists()) == set_of([*newer, *lists[2:]])

    async def test_only_a_newer_one_takes_its_place(self, store: CollateralStore, amd: Amd) -> None:
        five, six, seven = (amd.revocation_list(number) for number in (5, 6, 7))
        assert await store.keep(six) == 1
        assert await store.keep(five, replace(six, source="guest")) == 0
        assert await store.revocation_lists() == (six,)
        assert await store.keep(seven) == 1
        assert await store.keep(six) == 0
        assert await store.revocation_lists() == (seven,)

    async def test_numbers_may_be_longer_than_an_integer_column(
        self, store: CollateralStore, amd: Amd
    ) -> None:
        small, large, larger = (amd.revocation_list(number) for number in (99, 2**158, 2**158 + 1))
        assert await store.keep(large) == 1
        assert await store.keep(small) == 0
        assert await store.keep(larger) == 1
        assert await store.revocation_lists() == (larger,)

    @pytest.mark.parametrize(
        "damage", [{"der": b"damaged"}, {"der": text("'list'")}, {"signer": "vdek"}, {"ark": "not hex"}]
    )
    async def test_a_damaged_row_is_left_out_and_told(
        self, engine: AsyncEngine, store: CollateralStore, amd: Amd, damage: dict[str, object]
    ) -> None:
        genoa = amd.revocation_list(1, Product.GENOA)
        await store.keep(amd.revocation_list(7), genoa)
        place = revocation_lists.c.product == "milan"
        await edit(engine, update(revocation_lists).where(place).values(**damage))
        with capture_logs() as logs:
            assert await store.revocation_lists() == (genoa,)
        assert [line["event"] for line in logs] == ["collateral-row-damaged"]
        # Whatever it was, it keeps no list out.
        older = amd.revocation_list(5)
        assert await store.keep(older) == 1
        assert set_of(await store.revocation_lists()) == set_of([older, genoa])

    @pytest.mark.parametrize("order", [(5, 7), (7, 5)])
    async def test_of_two_at_once_the_newer_stays(
        self, open_another: OpenAnother, amd: Amd, order: tuple[int, int]
    ) -> None:
        stores = [CollateralDatabase(open_another(), lambda: NOW) for _ in range(2)]
        lists = [amd.revocation_list(number) for number in order]
        await asyncio.gather(*(store.keep(each) for store, each in zip(stores, lists, strict=True)))
        [kept] = await stores[0].revocation_lists()
        assert kept.list.number == 7

    async def test_of_many_at_once_the_newest_stays(self, open_another: OpenAnother, amd: Amd) -> None:
        stores = [CollateralDatabase(open_another(), lambda: NOW) for _ in range(2)]
        numbers = [(7 * step) % 20 for step in range(20)]
        await asyncio.gather(
            *(stores[number % 2].keep(amd.revocation_list(number)) for number in numbers),
        )
        [kept] = await stores[0].revocation_lists()
        assert kept.list.number == 19


class TestClaims:
    async def test_of_twenty_in_two_processes_one_wins(self, open_another: OpenAnother) -> None:
        stores = [CollateralDatabase(open_another(), lambda: NOW) for _ in range(2)]
        for what in ("a", "b", "c"):
            won = await asyncio.gather(
                *(stores[number % 2].claim(what, f"owner-{number}", 60) for number in range(20))
            )
            assert sum(won) == 1

    async def test_an_expired_one_is_taken_over_by_one(
        self, open_another: OpenAnother, clock: SettableClock
    ) -> None:
        stores = [CollateralDatabase(open_another(), clock) for _ in range(2)]
        assert await stores[0].claim(PATH, "gone", 60)
        clock.now += timedelta(seconds=59.9)
        assert not await stores[1].claim(PATH, "other", 60)
        clock.now += timedelta(seconds=0.1)
        won = await asyncio.gather(
            *(stores[number % 2].claim(PATH, f"owner-{number}", 60) for number in range(20))
        )
        assert sum(won) == 1
        assert not await stores[0].claim(PATH, "gone", 60)

    async def test_its_owner_may_renew_it(self, store: CollateralStore, clock: SettableClock) -> None:
        assert await store.claim(PATH, "owner", 60)
        clock.now += timedelta(seconds=50)
        assert await store.claim(PATH, "owner", 60)
        clock.now += timedelta(seconds=50)
        assert not await store.claim(PATH, "other", 60)

    async def test_only_its_owner_gives_it_back(self, store: CollateralStore) -> None:
        assert await store.claim(PATH, "owner", 60)
        await store.release(PATH, "other")
        assert not await store.claim(PATH, "other", 60)
        await store.release("/vcek/v1/Genoa/crl", "owner")
        assert not await store.claim(PATH, "other", 60)
        await store.release(PATH, "owner")
        assert await store.claim(PATH, "other", 60)

    async def test_each_thing_has_its_own(self, store: CollateralStore) -> None:
        assert await store.claim(PATH, "a", 60)
        assert await store.claim("/vcek/v1/Genoa/crl", "b", 60)

    async def test_a_claim_of_a_clock_that_leapt_stops_nobody_for_years(
        self, store: CollateralStore, clock: SettableClock
    ) -> None:
        clock.now += 3650 * DAY
        assert await store.claim(PATH, "from the future", 60)
        clock.now = NOW
        assert await store.claim(PATH, "other", 60)
        assert not await store.claim(PATH, "from the future", 60)


class TestMigration:
    async def test_from_the_first_schema_and_back(self, tmp_path: Path, amd: Amd) -> None:
        engine = open_engine(sqlite_url(tmp_path))

        def move(connection: Connection, to: Callable[[Config, str], None], revision: str) -> set[str]:
            config = Config()
            config.set_main_option("script_location", str(SCRIPTS))
            config.attributes["connection"] = connection
            to(config, revision)
            return set(inspect(connection).get_table_names())

        new = {table.name for table in (certificates, revocation_lists, collateral_claims)}
        async with engine.begin() as connection:
            first = await connection.run_sync(move, command.upgrade, "0001")
            await connection.execute(insert(spent_challenges).values(challenge=b"spent", expires_at=1))
        assert not first & new
        await migrate(engine, SCRIPTS)
        store = CollateralDatabase(engine, lambda: NOW)
        assert await store.keep(amd.vcek(), amd.revocation_list(1)) == 2
        async with engine.begin() as connection:
            assert await connection.run_sync(move, command.downgrade, "0001") == first
        await migrate(engine, SCRIPTS)
        assert await store.all_certificates() == ()
        async with reading(engine) as connection:
            spent = (await connection.execute(select(spent_challenges.c.challenge))).scalars().all()
        assert spent == [b"spent"]
        await engine.dispose()


def set_of(items: Any) -> set[bytes]:
    """The DERs: certificates hold keys and mappings that do not hash."""
    return {each.certificate.der if isinstance(each, StoredCertificate) else each.list.der for each in items}
