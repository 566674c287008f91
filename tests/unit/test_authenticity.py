"""Whom to ask for what is missing, and when not to ask: the guest, the store, then AMD's service."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest

from kms.authenticity import Authenticator, NotSought
from kms.checks import Check, failures
from kms.errors import CollateralUnavailable, CollateralUnknown, NobodyToAsk
from kms.simulator.chip import SimulatedChip, SimulatedGuest, simulated_chip_id
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp import tcb
from kms.snp.certificate import Certificate
from kms.snp.chain import Chain
from kms.snp.endorsed import certified_tcb
from kms.snp.endorsement import load_der
from kms.snp.flags import Signer
from kms.snp.kds_paths import ChainOf, Line, RevocationListOf, VcekOf, Wanted
from kms.snp.product import Product
from kms.snp.report import Report
from kms.snp.revocation import Revocation, RevocationList, RevocationMode, load_revocation_list
from kms.snp.roots import TrustedRoots
from kms.snp.verify import Unverified, VerifiedReport
from tests.world import NOW

CLIENT = "192.0.2.1"


@dataclass
class Shelf:
    """Collateral as a test says it: what is stored, what a fetch brings or raises, and what was asked."""

    stored: list[Certificate] = field(default_factory=list)
    lists: list[RevocationList] = field(default_factory=list)
    kds: dict[object, list[Certificate] | list[RevocationList] | Exception] = field(default_factory=dict)
    asked: list[Wanted] = field(default_factory=list)
    kept: list[Chain] = field(default_factory=list)

    async def authorities(self) -> tuple[Certificate, ...]:
        return tuple(each for each in self.stored if each.serial != 0)

    async def revocation_lists(self) -> tuple[RevocationList, ...]:
        return tuple(self.lists)

    async def leaves(self, report: Report) -> tuple[Certificate, ...]:
        leaves = [each for each in self.stored if each.serial == 0]
        certified = {each.fingerprint: certified_tcb(each) for each in leaves}
        return tuple(
            each
            for each in leaves
            if tcb.decode(report.tcbs.reported, certified[each.fingerprint][0])
            == certified[each.fingerprint][1]
        )

    async def fetch(self, wanted: Wanted, client: str) -> None:
        assert client == CLIENT
        self.asked.append(wanted)
        brought = self.kds.get(wanted, self.kds.get(type(wanted), NobodyToAsk("nobody to ask")))
        if isinstance(brought, Exception):
            raise brought
        for each in brought:
            if isinstance(each, RevocationList):
                self.lists.append(each)
            else:
                self.stored.append(each)

    def keep(self, chain: Chain) -> None:
        self.kept.append(chain)

    def asked_for(self, kind: type[Any]) -> int:
        return sum(isinstance(each, kind) for each in self.asked)


@dataclass
class Scene:
    """A chip, its report, and the certificates that it could send."""

    chip: SimulatedChip
    shelf: Shelf
    mode: RevocationMode = RevocationMode.WHEN_AVAILABLE
    worthless: frozenset[Product] = frozenset()
    root_known: bool = True  # else only its key is pinned, as AMD's are

    @property
    def hierarchy(self) -> AmdHierarchy:
        return self.chip.hierarchy

    @property
    def ask(self) -> Certificate:
        return load_der(self.hierarchy.ask.certificate)

    @property
    def leaf(self) -> Certificate:
        return load_der(self.chip.certificates()[0])

    @property
    def line(self) -> Line:
        return Line(Signer.VCEK, self.hierarchy.product)

    def revocation_list(self, *serials: int, **changes: Any) -> RevocationList:
        times = {"this_update": NOW - timedelta(days=1), "next_update": NOW + timedelta(days=30)}
        der = self.hierarchy.revocation_list(serials, **{**times, **changes})
        return replace(load_revocation_list(der), line=self.line)

    async def judge(
        self, *sent: Certificate, report: bytes | None = None
    ) -> VerifiedReport | Unverified | NotSought:
        async def worth(product: Product) -> tuple[Check, ...]:
            return (Check.of("chip-listed", product not in self.worthless, "", reason="chip-not-listed"),)

        roots = TrustedRoots.with_development([load_der(self.hierarchy.ark.certificate)])
        authenticator = Authenticator(
            roots=roots if self.root_known else replace(roots, development=()),
            revocation=Revocation(mode=self.mode, max_age=timedelta(days=7)),
            collateral=self.shelf,
        )
        return await authenticator.authenticate(
            Report.parse(report or self.guest.report(bytes(64))),
            sent,
            (),
            now=NOW,
            client=CLIENT,
            worth=worth,
        )

    @property
    def guest(self) -> SimulatedGuest:
        return self.chip.launch(measurement=bytes(48))


@pytest.fixture(params=list(Product))
def scene(request: pytest.FixtureRequest, simulated_hierarchies: Mapping[Product, AmdHierarchy]) -> Scene:
    """A chip of each product and a service that has everything; nothing is stored or sent."""
    hierarchy = simulated_hierarchies[request.param]
    chip_id = simulated_chip_id(hierarchy.product, b"authenticity")
    scene = Scene(SimulatedChip.typical(hierarchy, chip_id=chip_id, now=NOW - timedelta(days=1)), Shelf())
    lists = [scene.revocation_list()]
    scene.shelf.kds = {ChainOf: [scene.ask], VcekOf: [scene.leaf], RevocationListOf: lists}
    return scene


def another_tcb(chip: SimulatedChip) -> SimulatedChip:
    """The same chip before its firmware was updated."""
    older = replace(chip.reported_tcb, snp=chip.reported_tcb.snp - 1)
    return replace(chip, reported_tcb=older)


class TestWhoIsAsked:
    async def test_nobody_for_what_the_guest_sent(self, scene: Scene) -> None:
        outcome = await scene.judge(scene.leaf, scene.ask)
        assert isinstance(outcome, VerifiedReport)
        assert (scene.shelf.asked_for(ChainOf), scene.shelf.asked_for(VcekOf)) == (0, 0)
        assert scene.shelf.kept == [outcome.chain]

    async def test_nobody_for_what_is_stored(self, scene: Scene) -> None:
        scene.shelf.stored = [scene.leaf, scene.ask]
        assert isinstance(await scene.judge(), VerifiedReport)
        assert (scene.shelf.asked_for(ChainOf), scene.shelf.asked_for(VcekOf)) == (0, 0)

    async def test_the_service_for_what_nobody_has(self, scene: Scene) -> None:
        scene.shelf.stored = [scene.ask]
        assert isinstance(await scene.judge(), VerifiedReport)
        chip = scene.chip
        assert scene.shelf.asked[0] == VcekOf(scene.hierarchy.product, chip.chip_id, chip.reported_tcb)

    async def test_the_service_for_the_authority_of_a_leaf_alone(self, scene: Scene) -> None:
        assert isinstance(await scene.judge(scene.leaf), VerifiedReport)
        assert scene.shelf.asked[0] == ChainOf(scene.line)

    async def test_the_service_for_the_root_of_a_leaf_and_its_authority(self, scene: Scene) -> None:
        scene.root_known = False
        scene.shelf.kds[ChainOf] = [scene.ask, load_der(scene.hierarchy.ark.certificate)]
        assert isinstance(await scene.judge(scene.leaf, scene.ask), VerifiedReport)
        assert scene.shelf.asked[0] == ChainOf(scene.line)

    async def test_nobody_for_the_root_of_an_authority_that_did_not_sign(self, scene: Scene) -> None:
        scene.root_known = False
        outcome = await scene.judge(scene.leaf, load_der(scene.hierarchy.asvk.certificate))
        assert isinstance(outcome, Unverified)
        assert scene.shelf.asked == []

    async def test_a_stored_leaf_without_its_authority(self, scene: Scene) -> None:
        scene.shelf.stored = [scene.leaf]
        assert isinstance(await scene.judge(), VerifiedReport)
        assert (scene.shelf.asked_for(ChainOf), scene.shelf.asked_for(VcekOf)) == (1, 0)

    async def test_nobody_for_the_authority_of_a_leaf_that_came_with_another(self, scene: Scene) -> None:
        """An ASK that is sent is judged, and not repaired from the store."""
        scene.shelf.stored = [scene.ask]
        impostor = load_der(scene.hierarchy.asvk.certificate)
        outcome = await scene.judge(scene.leaf, impostor)
        assert isinstance(outcome, Unverified)
        assert "leaf-signature" in failures(outcome.checks)
        assert scene.shelf.asked == []

    async def test_a_stored_leaf_of_another_tcb_is_no_answer(self, scene: Scene) -> None:
        scene.shelf.stored = [load_der(another_tcb(scene.chip).certificates()[0]), scene.ask]
        assert isinstance(await scene.judge(), VerifiedReport)
        assert scene.shelf.asked_for(VcekOf) == 1

    async def test_a_forged_report_of_a_known_chip_asks_nobody(self, scene: Scene) -> None:
        scene.shelf.stored = [scene.leaf, scene.ask]
        forged = bytearray(scene.guest.report(bytes(64)))
        forged[0x90] ^= 1
        outcome = await scene.judge(report=bytes(forged))
        assert isinstance(outcome, Unverified)
        assert failures(outcome.checks) == ("report-signature",)
        assert (scene.shelf.asked, scene.shelf.kept) == ([], [])

    async def test_a_zero_chip_id_asks_nobody(self, scene: Scene) -> None:
        scene.chip = replace(scene.chip, mask_chip_id=True)
        outcome = await scene.judge()
        assert isinstance(outcome, Unverified)
        assert "chip-id-zero" in failures(outcome.checks)
        assert scene.shelf.asked == []

    async def test_a_missing_vlek_asks_nobody(self, scene: Scene) -> None:
        scene.chip = replace(scene.chip, csp_id="example-provider")
        outcome = await scene.judge()
        assert isinstance(outcome, Unverified)
        assert failures(outcome.checks) == ("endorsement-certificate",)
        assert scene.shelf.asked == []

    async def test_the_right_one_of_many_imported_vleks(self, scene: Scene) -> None:
        """A VLEK report does not say whose it is, and a verification judges only a few leaves."""
        scene.chip = replace(scene.chip, csp_id="example-provider")
        others = [replace(scene.chip, csp_id=f"other-{number}") for number in range(6)]
        asvk = load_der(scene.hierarchy.asvk.certificate)
        vleks = [load_der(each.certificates()[0]) for each in (*others, scene.chip)]
        scene.shelf.stored = [*vleks, asvk]
        outcome = await scene.judge()
        assert isinstance(outcome, VerifiedReport)
        assert outcome.csp_id == "example-provider"
        assert scene.shelf.asked_for(VcekOf) == 0

    async def test_an_unknown_cpu_asks_nobody(self, scene: Scene) -> None:
        scene.chip = replace(scene.chip, cpuid=replace(scene.chip.cpuid, family=0x1B))
        outcome = await scene.judge()
        assert isinstance(outcome, Unverified)
        assert "product" in failures(outcome.checks)
        assert scene.shelf.asked == []


class TestWhatIsNotWorthIt:
    async def test_a_claim_that_nobody_accepts_asks_nobody(self, scene: Scene) -> None:
        scene.worthless = frozenset(Product)
        outcome = await scene.judge()
        assert isinstance(outcome, NotSought)
        assert failures(outcome.checks) == ("chip-not-listed",)
        assert scene.shelf.asked == []

    async def test_nor_for_an_authority(self, scene: Scene) -> None:
        scene.worthless = frozenset(Product)
        assert isinstance(await scene.judge(scene.leaf), NotSought)
        assert scene.shelf.asked == []

    async def test_a_stale_table_then_is_judged_as_it_is(self, scene: Scene) -> None:
        scene.worthless = frozenset(Product)
        outcome = await scene.judge(load_der(another_tcb(scene.chip).certificates()[0]), scene.ask)
        assert isinstance(outcome, Unverified)
        assert outcome.stale_leaf


class TestStaleTables:
    async def test_are_set_aside(self, scene: Scene) -> None:
        outcome = await scene.judge(load_der(another_tcb(scene.chip).certificates()[0]), scene.ask)
        assert isinstance(outcome, VerifiedReport)
        assert outcome.leaf == scene.leaf

    async def test_wait_for_the_service(self, scene: Scene) -> None:
        scene.shelf.kds[VcekOf] = CollateralUnavailable("down")
        with pytest.raises(CollateralUnavailable):
            await scene.judge(load_der(another_tcb(scene.chip).certificates()[0]), scene.ask)

    @pytest.mark.parametrize("error", [CollateralUnknown("404"), NobodyToAsk("none")])
    async def test_are_refused_where_nothing_can_come(self, scene: Scene, error: Exception) -> None:
        scene.shelf.kds[VcekOf] = error
        outcome = await scene.judge(load_der(another_tcb(scene.chip).certificates()[0]), scene.ask)
        assert isinstance(outcome, Unverified)
        assert failures(outcome.checks) == ("certificate-tcb", "report-signature")

    async def test_a_bad_leaf_is_not_replaced(self, scene: Scene) -> None:
        """A leaf of another chip is no stale one: the store must not repair what a guest forged."""
        other = replace(scene.chip, chip_id=simulated_chip_id(scene.hierarchy.product, b"other"))
        scene.shelf.stored = [scene.leaf, scene.ask]
        outcome = await scene.judge(load_der(other.certificates()[0]))
        assert isinstance(outcome, Unverified)
        assert "hwid-mismatch" in failures(outcome.checks)


class TestWhatTheServiceSays:
    async def test_no_such_chip(self, scene: Scene) -> None:
        scene.shelf.kds[VcekOf] = CollateralUnknown("404")
        outcome = await scene.judge()
        assert isinstance(outcome, Unverified)
        assert failures(outcome.checks) == ("certificate-unknown",)

    @pytest.mark.parametrize("error", [CollateralUnavailable("slow"), NobodyToAsk("none")])
    async def test_nothing(self, scene: Scene, error: Exception) -> None:
        scene.shelf.kds[VcekOf] = error
        with pytest.raises(CollateralUnavailable):
            await scene.judge()

    async def test_no_such_chain_is_no_proof(self, scene: Scene) -> None:
        scene.shelf.kds[ChainOf] = CollateralUnknown("404")
        with pytest.raises(CollateralUnavailable):
            await scene.judge(scene.leaf)


class TestVersion2:
    """A version 2 report has no CPUID: the chip id says Turin or not, and the rest is tried in order."""

    async def test_each_product_that_it_may_be(self, scene: Scene) -> None:
        scene.chip = replace(scene.chip, report_version=2)
        product = scene.hierarchy.product
        mine = VcekOf(product, scene.chip.chip_id, scene.chip.reported_tcb)
        scene.shelf.kds = {mine: [scene.leaf, scene.ask], VcekOf: CollateralUnknown("404")}
        assert isinstance(await scene.judge(), VerifiedReport)
        tried = [each.product for each in scene.shelf.asked if isinstance(each, VcekOf)]
        expected = {
            Product.MILAN: [Product.MILAN],
            Product.GENOA: [Product.MILAN, Product.GENOA],
            Product.TURIN: [Product.TURIN],
        }
        assert tried == expected[product]

    async def test_only_what_some_app_accepts(self, scene: Scene) -> None:
        scene.chip = replace(scene.chip, report_version=2)
        scene.worthless = frozenset({Product.MILAN})
        await_none = scene.hierarchy.product is Product.MILAN
        scene.shelf.kds[VcekOf] = CollateralUnknown("404") if await_none else [scene.leaf, scene.ask]
        await scene.judge()
        assert Product.MILAN not in {each.product for each in scene.shelf.asked if isinstance(each, VcekOf)}


class TestRevocation:
    async def test_a_list_is_asked_for_once_the_report_is_authentic(self, scene: Scene) -> None:
        scene.shelf.kds[RevocationListOf] = [scene.revocation_list(scene.ask.serial)]
        outcome = await scene.judge(scene.leaf, scene.ask)
        assert isinstance(outcome, Unverified)
        assert failures(outcome.checks) == ("certificate-revoked",)
        assert scene.shelf.kept == []

    async def test_not_for_a_forged_one(self, scene: Scene) -> None:
        forged = bytearray(scene.guest.report(bytes(64)))
        forged[0x90] ^= 1
        await scene.judge(scene.leaf, scene.ask, report=bytes(forged))
        assert scene.shelf.asked_for(RevocationListOf) == 0

    async def test_not_again_while_one_is_known(self, scene: Scene) -> None:
        scene.shelf.lists = [scene.revocation_list()]
        assert isinstance(await scene.judge(scene.leaf, scene.ask), VerifiedReport)
        assert scene.shelf.asked_for(RevocationListOf) == 0

    async def test_not_at_all_when_off(self, scene: Scene) -> None:
        scene.mode = RevocationMode.OFF
        assert isinstance(await scene.judge(scene.leaf, scene.ask), VerifiedReport)
        assert scene.shelf.asked == []

    @pytest.mark.parametrize(
        "error", [CollateralUnavailable("slow"), CollateralUnknown("404"), NobodyToAsk("none")]
    )
    async def test_without_one(self, scene: Scene, error: Exception) -> None:
        scene.shelf.kds[RevocationListOf] = error
        assert isinstance(await scene.judge(scene.leaf, scene.ask), VerifiedReport)
        scene.mode = RevocationMode.REQUIRE
        with pytest.raises(CollateralUnavailable):
            await scene.judge(scene.leaf, scene.ask)

    async def test_required_and_fetched(self, scene: Scene) -> None:
        scene.mode = RevocationMode.REQUIRE
        assert isinstance(await scene.judge(scene.leaf, scene.ask), VerifiedReport)
        assert scene.shelf.asked_for(RevocationListOf) == 1

    async def test_required_and_too_old(self, scene: Scene) -> None:
        scene.mode = RevocationMode.REQUIRE
        old = scene.revocation_list(this_update=NOW - timedelta(days=90), next_update=NOW - timedelta(days=8))
        scene.shelf.lists = [old]
        scene.shelf.kds[RevocationListOf] = []
        with pytest.raises(CollateralUnavailable):
            await scene.judge(scene.leaf, scene.ask)

    async def test_required_with_a_stale_table(self, scene: Scene) -> None:
        scene.mode = RevocationMode.REQUIRE
        outcome = await scene.judge(load_der(another_tcb(scene.chip).certificates()[0]), scene.ask)
        assert isinstance(outcome, VerifiedReport)
