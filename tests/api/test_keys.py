"""Which keys come out: scopes, epochs, apps, chips, and what cannot be had."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from kms.database.decisions import DecisionStore
from kms.desk import ReleaseDesk
from kms.keys.epochs import EpochTable
from kms.keys.released import ReleasedKey
from kms.keys.root_messages import FOUNDING_EPOCH
from kms.ledger.entries import DecisionEntry
from kms.operators import Actor, Proof, Role
from kms.ports import Decisions
from kms.simulator.chip import SimulatedChip, simulated_chip_id
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.product import Product
from tests.roots import ROOT_SECRET, FixedEpochs, MemoryRoot
from tests.world import (
    INSTANCE_ID,
    NOW,
    World,
    app_document,
    document,
    image_document,
    open_world,
    tcb_document,
)

Hierarchies = Mapping[Product, AmdHierarchy]
ADMIN = Actor(name="root", role=Role.ADMIN, proof=Proof.COMMAND_LINE)
SCOPES = ["app", "instance", "chip"]
OTHER_INSTANCE = "cd" * 20
CSP = "Example Cloud"


def disk(scope: str = "app", **members: object) -> dict[str, object]:
    return {"name": "disk", "scope": scope, **members}


async def fetch_one(world: World, key: dict[str, object]) -> ReleasedKey:
    [released] = (await world.fetch(keys=[key])).keys
    return released


class OfOtherEpochs:
    """Records what was judged by epochs that the database has no rows of."""

    def __init__(self, decisions: Decisions) -> None:
        self._decisions = decisions
        self.is_spent = decisions.is_spent

    async def record(
        self, entry: DecisionEntry, expires_at: datetime | None, judged_by: EpochTable | None = None
    ) -> None:
        await self._decisions.record(entry, expires_at)


def two_epochs(desk: ReleaseDesk) -> ReleaseDesk:
    """A root that was rotated once; its first epoch is the one that every other test has."""
    return replace(
        desk,
        root_key=MemoryRoot({FOUNDING_EPOCH: ROOT_SECRET, 2: b"s" * 32}),
        epochs=FixedEpochs(2),
        decisions=OfOtherEpochs(desk.decisions),
    )


class TestScopes:
    async def test_each_scope_is_a_key_of_its_own_and_stable(self, world: World) -> None:
        world.machine = world.launch(app_document=document(instance_id=INSTANCE_ID))
        first = {scope: (await fetch_one(world, disk(scope))).value for scope in SCOPES}
        assert len(set(first.values())) == 3
        world.machine = world.launch(app_document=document(instance_id=INSTANCE_ID), vcpus=4)
        assert {scope: (await fetch_one(world, disk(scope))).value for scope in SCOPES} == first

    async def test_another_instance_gets_another_instance_key_only(self, world: World) -> None:
        world.machine = world.launch(app_document=document(instance_id=INSTANCE_ID))
        one = {scope: (await fetch_one(world, disk(scope))).value for scope in SCOPES}
        world.machine = world.launch(app_document=document(instance_id=OTHER_INSTANCE))
        other = {scope: (await fetch_one(world, disk(scope))).value for scope in SCOPES}
        assert [one[scope] == other[scope] for scope in SCOPES] == [True, False, True]

    async def test_another_chip_gets_another_chip_key_only(self, world: World) -> None:
        world.machine = world.launch(app_document=document(instance_id=INSTANCE_ID))
        one = {scope: (await fetch_one(world, disk(scope))).value for scope in SCOPES}
        hierarchy = world.chip.hierarchy
        chip_id = simulated_chip_id(hierarchy.product, b"chip 2")
        other_chip = SimulatedChip.typical(hierarchy, chip_id=chip_id, now=world.chip.now)
        await world.apply_changed(app={"chips": [world.chip.chip_id.hex(), chip_id.hex()]})
        world.machine = world.launch(chip=other_chip, app_document=document(instance_id=INSTANCE_ID))
        other = {scope: (await fetch_one(world, disk(scope))).value for scope in SCOPES}
        assert [one[scope] == other[scope] for scope in SCOPES] == [True, True, False]

    async def test_another_app_gets_other_keys(self, world: World) -> None:
        other_app = "ab" * 32
        documents = world.default_policy()
        await world.apply(*documents, app_document(world.chip, id=other_app, name="other"))
        names = ["disk", "env", "signing", "custom:db/a"]
        keys = [{"name": name, "scope": "app"} for name in names]
        one = await world.fetch(keys=keys)
        world.machine = world.launch(app_document=document(app_id=other_app))
        other = await world.fetch(keys=keys)
        assert not {key.value for key in one.keys} & {key.value for key in other.keys}
        assert other.app_id.hex() == other_app

    async def test_an_instance_key_without_an_instance(self, world: World) -> None:
        (await world.ask(keys=[disk("instance")])).check_refused(403, "policy-denied", "instance-unbound")

    async def test_the_requests_word_is_no_instance(self, world: World) -> None:
        answer = await world.ask(keys=[disk("instance")], app={"instance_id": INSTANCE_ID})
        answer.check_refused(403, "policy-denied", "app-claim-disagrees", "instance-unbound")

    @pytest.mark.parametrize("masked", [True, False])
    async def test_a_vlek_proves_no_chip(
        self, tmp_path: Path, simulated_hierarchies: Hierarchies, masked: bool
    ) -> None:
        """Whatever CHIP_ID it shows: neither a chip key nor a chip list, but everything else."""

        def of_a_provider(chip: SimulatedChip) -> SimulatedChip:
            return replace(chip, csp_id=CSP, mask_chip_id=masked)

        async with open_world(
            tmp_path, simulated_hierarchies[Product.MILAN], make_chip=of_a_provider
        ) as world:
            guest: dict[str, object] = {"signers": ["vlek"], "csp": [CSP]}
            await world.apply_changed(app={"guest": "g"}, guest=guest)
            (await world.ask()).check_refused(403, "policy-denied", "chip-not-listed")
            await world.apply_changed(app={"guest": "g", "chips": "any"}, guest=guest)
            (await world.ask(keys=[disk("chip")])).check_refused(403, "policy-denied", "chip-unbound")
            answer = await world.ask()
            assert answer.status == 200
            shown = None if masked else world.chip.chip_id.hex()
            assert answer.body["boot_info"]["chip_id"] == shown
            revoked: dict[str, object] = {"chips": [world.chip.chip_id.hex()]}
            await world.apply_changed(app={"guest": "g", "chips": "any"}, guest=guest, revoked=revoked)
            answer = await world.ask()
            assert (answer.status, answer.reasons) == ((200, []) if masked else (403, ["chip-revoked"]))

    async def test_a_policy_names_the_scope(self, world: World) -> None:
        await world.apply_changed(app={"keys": ["disk@chip"]})
        (await world.ask()).check_refused(403, "policy-denied", "key-not-allowed")
        assert (await world.ask(keys=[disk("chip")])).status == 200


class TestEpochs:
    async def test_the_newest_unless_another_is_asked_for(
        self, tmp_path: Path, simulated_hierarchies: Hierarchies
    ) -> None:
        async with open_world(
            tmp_path, simulated_hierarchies[Product.MILAN], change_desk=two_epochs
        ) as world:
            newest = await fetch_one(world, disk())
            first, second = await fetch_one(world, disk(epoch=1)), await fetch_one(world, disk(epoch=2))
            assert (newest.epoch, first.epoch, second.epoch) == (2, 1, 2)
            assert newest.value == second.value != first.value
            both = await world.fetch(keys=[disk(epoch=1), disk(epoch=2), disk()])
            assert [key.value for key in both.keys] == [first.value, second.value, second.value]
            entry = (await world.records())[-1].entry
            assert (entry["epochs"], entry["key_epochs"]) == ([1, 2], [1, 2, 2])

    async def test_a_pinned_epoch_is_the_default_of_its_app(
        self, tmp_path: Path, simulated_hierarchies: Hierarchies
    ) -> None:
        async with open_world(
            tmp_path, simulated_hierarchies[Product.MILAN], change_desk=two_epochs
        ) as world:
            await world.apply_changed(app={"epoch": 1})
            assert (await fetch_one(world, disk())).epoch == 1
            await world.apply_changed(app={"epoch": 3})
            (await world.ask()).check_refused(403, "epoch-unavailable", "epoch-unavailable")

    async def test_an_old_epoch_keeps_its_keys_after_a_rotation(
        self, tmp_path: Path, world: World, simulated_hierarchies: Hierarchies
    ) -> None:
        before = await fetch_one(world, disk())
        (tmp_path / "later").mkdir()
        async with open_world(
            tmp_path / "later", simulated_hierarchies[Product.MILAN], change_desk=two_epochs
        ) as later:
            assert (await fetch_one(later, disk(epoch=1))).value == before.value

    @pytest.mark.parametrize("epoch", [2, 3, 2**53 - 1])
    async def test_one_that_does_not_exist(self, world: World, epoch: int) -> None:
        answer = await world.ask(keys=[disk(), disk(epoch=epoch)])
        answer.check_refused(403, "epoch-unavailable", "epoch-unavailable")
        [record] = await world.records()
        assert record.entry["outcome"] == "refused"
        assert await world.spent() == 1

    @pytest.mark.parametrize("chosen", ["asked for", "pinned", "current"])
    async def test_one_that_is_retired_while_its_keys_are_on_their_way_is_not_given(
        self, world: World, monkeypatch: pytest.MonkeyPatch, chosen: str
    ) -> None:
        """The keys are derived and sealed; then their epoch ends, and the release is judged again."""
        if chosen == "pinned":
            await world.apply_changed(app={"epoch": 1})
        sealed, ended = asyncio.Barrier(2), asyncio.Barrier(2)
        record = DecisionStore.record

        async def late(
            store: DecisionStore,
            entry: DecisionEntry,
            expires_at: datetime | None,
            judged_by: EpochTable | None = None,
        ) -> None:
            if entry.epochs == (1,):
                await sealed.wait()
                await ended.wait()
            await record(store, entry, expires_at, judged_by)

        monkeypatch.setattr(DecisionStore, "record", late)
        asking = asyncio.create_task(world.ask(keys=[disk(epoch=1) if chosen == "asked for" else disk()]))
        await sealed.wait()
        await world.office.keys.rotate(ADMIN, at=None)
        await world.office.keys.retire(ADMIN, 1, seen_within=timedelta(days=30), force=True)
        await ended.wait()
        answer = await asking
        [recorded] = await world.records()
        assert await world.spent() == 1
        if chosen == "current":
            assert answer.status == 200
            assert recorded.entry["key_epochs"] == [2]
        else:
            answer.check_refused(403, "epoch-unavailable", "epoch-unavailable")
            assert (recorded.entry["outcome"], recorded.entry["epochs"]) == ("refused", [])

    async def test_one_may_be_asked_for(self, world: World) -> None:
        assert (await fetch_one(world, disk(epoch=1))).value == (await fetch_one(world, disk())).value


class TestForms:
    async def test_keys_come_in_the_order_asked_for(self, world: World) -> None:
        names = ["custom:db/z", "env", "disk", "signing", "custom:db/a"]
        payload = await world.fetch(keys=[{"name": name, "scope": "app"} for name in names])
        assert [str(key.name) for key in payload.keys] == names
        for key in payload.keys:
            assert len(key.secret) == 32
            assert (key.public_key is not None) is (str(key.name) in {"env", "signing"})

    async def test_thirty_two_keys(self, world: World) -> None:
        keys = [{"name": f"custom:db/{number}", "scope": "app"} for number in range(32)]
        assert len({key.value for key in (await world.fetch(keys=keys)).keys}) == 32

    async def test_one_key_that_is_not_allowed_refuses_all(self, world: World) -> None:
        keys = [disk(), {"name": "custom:other", "scope": "app"}]
        (await world.ask(keys=keys)).check_refused(403, "policy-denied", "key-not-allowed")

    async def test_the_same_key_twice(self, world: World) -> None:
        (await world.ask(keys=[disk(), disk()])).check_refused(400, "malformed-request")
        (await world.ask(keys=[disk(epoch=1), disk(epoch=1)])).check_refused(400, "malformed-request")
        assert (await world.ask(keys=[disk(), disk(epoch=1)])).status == 200


@pytest.mark.parametrize("product", list(Product), ids=str)
async def test_keys_do_not_depend_on_the_product(
    tmp_path: Path, simulated_hierarchies: Hierarchies, product: Product, world: World
) -> None:
    """An app that moves to a newer machine keeps its disk; its chip keys stay behind."""
    (tmp_path / "other").mkdir()
    async with open_world(tmp_path / "other", simulated_hierarchies[product]) as other:
        assert (await fetch_one(other, disk())).value == (await fetch_one(world, disk())).value
        chip_keys = [(await fetch_one(each, disk("chip"))).value for each in (other, world)]
        same_chip = other.chip.chip_id == world.chip.chip_id
        assert (chip_keys[0] == chip_keys[1]) is same_chip


async def test_a_revoked_app_gets_nothing(world: World) -> None:
    await world.apply_changed(revoked={"apps": [app_document(world.chip)["id"]]})
    (await world.ask()).check_refused(403, "policy-denied", "app-revoked")


async def test_an_expired_document_denies_whatever_refers_to_it(world: World) -> None:
    yesterday = NOW.replace(day=20).strftime("%Y-%m-%dT%H:%M:%SZ")
    for kind, reason in (("app", "app-expired"), ("image", "image-expired"), ("tcb", "tcb-expired")):
        documents = [
            app_document(world.chip),
            image_document("os-1", world.description),
            tcb_document(world.chip),
        ]
        for each in documents:
            if each["kind"] == kind:
                each["expires_at"] = yesterday
        await world.apply(*documents)
        (await world.ask()).check_refused(403, "policy-denied", reason)
