"""What-if: real releases and refusals, judged again by other policies."""

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import update

from kms.administration import what_if as what_if_module
from kms.administration.office import Json
from kms.administration.what_if import judge_again, what_if
from kms.database.engine import writing
from kms.database.records import DecisionRecords
from kms.database.schema import entries
from kms.evidence.launch import LaunchFinder
from kms.judgement import Circumstances
from kms.ledger.recorded import RecordedDecision
from kms.measurement.images import Binding
from kms.measurement.launch import os_image_hash
from kms.policy.compiled import Policy
from kms.policy.revision import Revision
from kms.request import report_data
from kms.simulator.chip import SimulatedChip, simulated_chip_id
from kms.simulator.hierarchy import AmdHierarchy
from kms.simulator.machine import SimulatedMachine
from kms.snp.advisory_file import parse_advisories
from kms.snp.product import Product
from kms.strict_json import JsonValue
from tests.recording import recorder
from tests.world import (
    APP_ID,
    COMPOSE_HASH,
    INSTANCE_ID,
    NOW,
    Answer,
    World,
    app_document,
    describe_image,
    document,
    image_document,
    open_world,
    tampered,
    tcb_document,
)

OTHER_APP, OTHER_COMPOSE, OTHER_INSTANCE = "ab" * 20, "cd" * 32, "ef" * 20
TEMPLATE = "console=ttyS0 app={app_id} compose={compose_hash}"
FILLED = TEMPLATE.format(app_id=APP_ID, compose_hash=COMPOSE_HASH)
CLAIM = {"id": APP_ID, "compose_hash": COMPOSE_HASH}
Documents = list[dict[str, Any]]


@pytest.fixture
async def world(
    tmp_path: Path, simulated_hierarchies: Mapping[Product, AmdHierarchy]
) -> AsyncIterator[World]:
    async with open_world(tmp_path, simulated_hierarchies[Product.MILAN]) as world:
        yield world


def policy_of(documents: Documents) -> Policy:
    text = "---\n".join(yaml.safe_dump(document, sort_keys=False) for document in documents)
    return Policy(Revision.from_files({"policy.yaml": text.encode()}, development=True))


def circumstances(world: World, **changes: Any) -> Circumstances:
    now = Circumstances(
        now=world.now[0],
        development=world.desk.development,
        kms_identities=frozenset({world.desk.identity.public_key}),
        advisories=world.desk.advisories,
    )
    return replace(now, **changes)


async def rehearse(world: World, documents: Documents, **changes: Any) -> Json:
    """Judge all that this world recorded by a candidate of these documents."""
    candidate = policy_of(documents)

    async def pause() -> None:
        pass

    answer = await what_if(
        candidate,
        LaunchFinder(candidate),
        DecisionRecords(world.engine, recorder()),
        since=NOW - timedelta(days=1),
        circumstances=circumstances(world, **changes),
        in_force=policy_of(world.documents),
        pause=pause,
    )
    assert (answer["revision"], answer["since"]) == (candidate.revision, "2026-11-20T12:00:00.000000Z")
    told = [each["records"] for what in ("refused", "allowed") for each in newly(answer, what)]
    counted = sum([*told, answer["still_refused"], answer["still_allowed"]])
    assert answer["judged"] == counted or not answer["complete"]
    return answer


def newly(answer: Json, what: str) -> list[dict[str, Any]]:
    groups: Any = answer[f"newly_{what}"]
    return list(groups)


def numbers(answer: Json) -> dict[str, JsonValue]:
    names = ("judged", "unjudged", "still_refused", "still_allowed", "complete")
    return {name: answer[name] for name in names}


async def ask(world: World, machine: SimulatedMachine | None = None, **changes: Any) -> Answer:
    """Let a machine ask, a minute after whoever asked before."""
    world.now[0] += timedelta(minutes=1)
    return await world.ask(machine, **changes)


async def ask_described(world: World, machine: SimulatedMachine) -> Answer:
    """Let a machine ask that describes its own launch."""
    world.now[0] += timedelta(minutes=1)
    request = await world.request()
    launch = {"description": machine.description.to_json()}
    return await world.post(request, {**machine.evidence(report_data(request)), "launch": launch})


def another_chip(world: World) -> SimulatedChip:
    hierarchy = world.chip.hierarchy
    chip_id = simulated_chip_id(hierarchy.product, b"chip 2")
    return SimulatedChip.typical(hierarchy, chip_id=chip_id, now=NOW - timedelta(days=1))


def group(answer: Answer, chip: SimulatedChip, *reasons: str, **changes: Any) -> dict[str, Any]:
    """Give the group of one guest of the default policy that was seen once, and answered so."""
    body = answer.body
    return {
        "app_id": APP_ID,
        "app": "payments",
        "image": "os-1",
        "chip_id": chip.chip_id.hex(),
        "reasons": list(reasons),
        "guests": 1,
        "records": 1,
        "last_seen": "2026-11-21T12:01:00.000000Z",
        "example": body["release_id"] if answer.status == 200 else body["request_id"],
        **changes,
    }


ALL_STILL_ALLOWED = {"judged": 1, "unjudged": 0, "still_refused": 0, "still_allowed": 1, "complete": True}


class TestNewlyRefused:
    async def test_a_chip_that_is_removed(self, world: World) -> None:
        chips = [world.chip.chip_id.hex(), another_chip(world).chip_id.hex()]
        await world.apply_changed(app={"chips": chips})
        released = await ask(world)
        assert (await ask(world, world.launch(chip=another_chip(world)))).status == 200
        answer = await rehearse(world, world.default_policy(app={"chips": chips[1:]}))
        assert answer["newly_refused"] == [group(released, world.chip, "chip-not-listed")]
        assert answer["newly_allowed"] == []
        assert numbers(answer) == {**ALL_STILL_ALLOWED, "judged": 2}

    async def test_a_minimum_that_is_raised(self, world: World) -> None:
        released = await ask(world)
        levels = world.chip.reported_tcb.components()
        raised = {world.chip.hierarchy.product.value: {**levels, "microcode": levels["microcode"] + 1}}
        answer = await rehearse(world, world.default_policy(tcb={"products": raised}))
        reasons = ("tcb-reported-too-low", "tcb-committed-too-low")
        assert answer["newly_refused"] == [group(released, world.chip, *reasons)]

    async def test_a_compose_that_is_replaced(self, world: World) -> None:
        released = await ask(world)
        answer = await rehearse(world, world.default_policy(app={"compose": [OTHER_COMPOSE]}))
        assert answer["newly_refused"] == [group(released, world.chip, "compose-not-listed")]

    async def test_an_image_that_is_removed(self, world: World) -> None:
        released = await ask(world)
        app, _, tcb = world.default_policy()
        answer = await rehearse(world, [app, image_document("os-1", describe_image(seed=b"next")), tcb])
        assert answer["newly_refused"] == [group(released, world.chip, "measurement-unknown")]

    async def test_an_image_that_the_app_no_longer_lists(self, world: World) -> None:
        released = await ask(world)
        other = image_document("os-2", describe_image(seed=b"next"))
        answer = await rehearse(world, [*world.default_policy(app={"images": ["os-2"]}), other])
        assert answer["newly_refused"] == [group(released, world.chip, "image-not-listed")]

    async def test_an_app_that_is_removed_is_named_as_it_is_in_force(self, world: World) -> None:
        released = await ask(world)
        documents = world.default_policy(app={"id": OTHER_APP, "name": "other"})
        answer = await rehearse(world, documents)
        assert answer["newly_refused"] == [group(released, world.chip, "app-not-listed")]

    async def test_a_key_that_is_no_longer_allowed(self, world: World) -> None:
        """Of one guest what it asks for is judged by itself."""
        assert (await ask(world)).status == 200
        released = await ask(world, keys=[{"name": "env", "scope": "app"}])
        answer = await rehearse(world, world.default_policy(app={"keys": ["disk"]}))
        seen = {"last_seen": "2026-11-21T12:02:00.000000Z"}
        assert answer["newly_refused"] == [group(released, world.chip, "key-not-allowed", **seen)]
        assert numbers(answer) == {**ALL_STILL_ALLOWED, "judged": 2}

    @pytest.mark.parametrize(
        ("what", "reasons"),
        [
            ("chips", ["chip-revoked"]),
            ("compose", ["compose-revoked"]),
            ("apps", ["app-revoked"]),
            ("measurements", ["measurement-revoked"]),
            ("products", ["product-revoked"]),
            ("images", ["image-revoked"]),
        ],
    )
    async def test_what_is_revoked(self, world: World, what: str, reasons: list[str]) -> None:
        released = await ask(world)
        values = {
            "chips": world.chip.chip_id.hex(),
            "compose": COMPOSE_HASH,
            "apps": APP_ID,
            "measurements": released.body["boot_info"]["measurement"],
            "products": "milan",
            "images": "os-1",
        }
        answer = await rehearse(world, world.default_policy(revoked={what: [values[what]]}))
        assert answer["newly_refused"] == [group(released, world.chip, *reasons)]
        assert numbers(answer) == {**ALL_STILL_ALLOWED, "still_allowed": 0}

    async def test_what_is_known_of_bulletins_now_counts(self, world: World) -> None:
        """The record says that none is open: newer data says otherwise, and the app forbids that one."""
        released = await ask(world)
        newer = parse_advisories(
            """
            [[advisory]]
            id = "AMD-SB-9999"
            title = "found since"
            url = "https://example.com/9999"
            milan = {figure = [{firmware = "255.0.0", source = "this test"}]}
            """
        )
        forbidding = world.default_policy(app={"forbid_advisories": ["AMD-SB-9999"]})
        answer = await rehearse(world, forbidding, advisories=newer)
        assert answer["newly_refused"] == [group(released, world.chip, "advisory-forbidden")]

    async def test_what_has_expired_meanwhile(self, world: World) -> None:
        released = await ask(world)
        documents = world.default_policy(app={"expires_at": "2026-12-01T00:00:00Z"})
        assert numbers(await rehearse(world, documents)) == ALL_STILL_ALLOWED
        world.now[0] += timedelta(days=11)
        answer = await rehearse(world, documents)
        assert answer["newly_refused"] == [group(released, world.chip, "app-expired")]


class TestNewlyAllowed:
    async def test_an_app_that_is_added(self, world: World) -> None:
        refused = await ask(world, world.launch(app_document=document(app_id=OTHER_APP)))
        refused.check_refused(403, "policy-denied", "app-not-listed")
        added = app_document(world.chip, id=OTHER_APP, name="other")
        answer = await rehearse(world, [*world.default_policy(), added])
        named = {"app_id": OTHER_APP, "app": "other"}
        assert answer["newly_allowed"] == [group(refused, world.chip, "app-not-listed", **named)]
        assert answer["newly_refused"] == []

    async def test_an_image_that_is_added_is_found_by_its_measurement(self, world: World) -> None:
        """The record knows of no image; the candidate does."""
        unknown = describe_image(seed=b"next")
        refused = await ask(world, world.launch(description=unknown))
        refused.check_refused(403, "measurement-unknown", "measurement-unknown")
        documents = world.default_policy(app={"images": ["os-1", "os-2"]})
        answer = await rehearse(world, [*documents, image_document("os-2", unknown)])
        assert answer["newly_allowed"] == [group(refused, world.chip, "measurement-unknown", image="os-2")]

    async def test_all_that_was_wrong_must_be_right(self, world: World) -> None:
        chip = another_chip(world)
        machine = world.launch(chip=chip, app_document=document(compose_hash=OTHER_COMPOSE))
        refused = await ask(world, machine)
        reasons = ("compose-not-listed", "chip-not-listed")
        refused.check_refused(403, "policy-denied", *reasons)
        chips = [chip.chip_id.hex()]
        half = await rehearse(world, world.default_policy(app={"chips": chips}))
        assert numbers(half) == {**ALL_STILL_ALLOWED, "still_refused": 1, "still_allowed": 0}
        both = world.default_policy(app={"chips": chips, "compose": [OTHER_COMPOSE]})
        answer = await rehearse(world, both)
        assert answer["newly_allowed"] == [group(refused, chip, *reasons)]

    async def test_a_document_for_another_kms_stays_refused(self, world: World) -> None:
        elsewhere = document(kms_identity="AQ" * 21 + "E")
        (await ask(world, world.launch(app_document=elsewhere))).check_refused(
            403, "policy-denied", "kms-identity-differs"
        )
        answer = await rehearse(world, world.default_policy(app={"chips": "any"}))
        assert numbers(answer) == {**ALL_STILL_ALLOWED, "still_refused": 1, "still_allowed": 0}


class TestCommandLines:
    """Apps that a measured command line names: found again by what the request claimed."""

    def policy(self, world: World, **app: object) -> Documents:
        return [
            app_document(world.chip, **{"binding": ["cmdline"], **app}),
            image_document("os-1", describe_image(TEMPLATE), enforces=["cmdline"]),
            tcb_document(world.chip),
        ]

    async def ask(self, world: World) -> Answer:
        machine = world.launch(description=describe_image(TEMPLATE), cmdline=FILLED, app_document=None)
        return await ask(world, machine, app=CLAIM)

    async def test_they_are_judged_as_they_were(self, world: World) -> None:
        await world.apply(*self.policy(world))
        released = await self.ask(world)
        assert numbers(await rehearse(world, self.policy(world))) == ALL_STILL_ALLOWED
        answer = await rehearse(world, self.policy(world, compose=[OTHER_COMPOSE]))
        assert answer["newly_refused"] == [group(released, world.chip, "compose-not-listed")]
        answer = await rehearse(world, self.policy(world, binding=["host-data"]))
        assert answer["newly_refused"] == [group(released, world.chip, "binding-not-allowed")]

    async def test_one_that_nobody_knew_is_found(self, world: World) -> None:
        refused = await self.ask(world)
        refused.check_refused(403, "measurement-unknown", "measurement-unknown")
        answer = await rehearse(world, self.policy(world))
        assert answer["newly_allowed"] == [group(refused, world.chip, "measurement-unknown")]

    async def test_a_document_beside_it_is_judged_too(self, world: World) -> None:
        """The record holds it whole: the candidate may choose the other binding, or find that they differ."""
        enforced = ["cmdline", "host-data"]
        image = image_document("os-1", describe_image(TEMPLATE), enforces=enforced)
        await world.apply(self.policy(world)[0], image, tcb_document(world.chip))
        machine = world.launch(
            description=describe_image(TEMPLATE),
            cmdline=FILLED,
            app_document=document(instance_id=INSTANCE_ID),
        )
        released = await ask(world, machine, app=CLAIM, keys=[{"name": "disk", "scope": "app"}])
        assert released.body["boot_info"]["binding"] == "cmdline"
        by_document = self.policy(world, binding=["host-data"])[0]
        assert numbers(await rehearse(world, [by_document, image, tcb_document(world.chip)])) == (
            ALL_STILL_ALLOWED
        )
        [recorded] = [RecordedDecision.from_json(each.entry) for each in await world.records()]
        candidate = policy_of([by_document, image, tcb_document(world.chip)])
        verdict = judge_again(candidate, LaunchFinder(candidate), recorded, circumstances(world))
        assert verdict is not None
        assert verdict.boot_info.binding is Binding.HOST_DATA
        assert verdict.boot_info.instance_id == bytes.fromhex(INSTANCE_ID)


class TestImagesThatGuestsDescribe:
    """Nobody keeps a guest's description: its hash stands for it as long as the candidate allows the hash."""

    def policy(self, world: World, **app: object) -> Documents:
        listed = os_image_hash(world.description.to_json()).hex()
        return [app_document(world.chip, **{"images": [listed], **app}), tcb_document(world.chip)]

    async def test_it_is_judged_by_its_hash(self, world: World) -> None:
        await world.apply(*self.policy(world))
        released = await ask_described(world, world.machine)
        assert numbers(await rehearse(world, self.policy(world))) == ALL_STILL_ALLOWED
        answer = await rehearse(world, self.policy(world, images=["00" * 31 + "01"]))
        assert answer["newly_refused"] == [group(released, world.chip, "measurement-unknown", image=None)]
        answer = await rehearse(world, self.policy(world, compose=[OTHER_COMPOSE]))
        assert answer["newly_refused"] == [group(released, world.chip, "compose-not-listed", image=None)]
        assert numbers(await rehearse(world, world.default_policy())) == ALL_STILL_ALLOWED

    async def test_it_enforces_no_command_line(self, world: World) -> None:
        await world.apply(*self.policy(world))
        released = await ask_described(world, world.machine)
        answer = await rehearse(world, self.policy(world, binding=["cmdline"]))
        assert answer["newly_refused"] == [group(released, world.chip, "binding-not-allowed", image=None)]

    async def test_an_image_that_was_documented_is_no_such_image(self, world: World) -> None:
        """Nothing says that these guests would describe it."""
        released = await ask(world)
        answer = await rehearse(world, self.policy(world))
        assert answer["newly_refused"] == [group(released, world.chip, "measurement-unknown")]


class TestTheLastWord:
    """What counts is the last that was recorded of a guest."""

    async def test_many_records_of_one_guest_are_one_guest(self, world: World) -> None:
        [*_, released] = [await ask(world) for _ in range(4)]
        answer = await rehearse(world, world.default_policy(app={"chips": []}))
        seen = {"records": 4, "last_seen": "2026-11-21T12:04:00.000000Z"}
        assert answer["newly_refused"] == [group(released, world.chip, "chip-not-listed", **seen)]

    async def test_a_guest_that_was_refused_since_is_not_newly_refused(self, world: World) -> None:
        assert (await ask(world)).status == 200
        await world.apply_changed(app={"chips": []})
        assert (await ask(world)).status == 403
        answer = await rehearse(world, world.default_policy(app={"chips": []}))
        assert numbers(answer) == {**ALL_STILL_ALLOWED, "judged": 2, "still_refused": 2, "still_allowed": 0}
        [allowed] = newly(await rehearse(world, world.default_policy()), "allowed")
        assert (allowed["guests"], allowed["records"]) == (1, 2)

    async def test_an_instance_that_moved_or_was_upgraded_counts_where_it_is(self, world: World) -> None:
        chip = another_chip(world)
        chips = [world.chip.chip_id.hex(), chip.chip_id.hex()]
        await world.apply_changed(app={"chips": chips, "compose": [COMPOSE_HASH, OTHER_COMPOSE]})
        before = document(instance_id=INSTANCE_ID)
        after = document(instance_id=INSTANCE_ID, compose_hash=OTHER_COMPOSE)
        assert (await ask(world, world.launch(app_document=before))).status == 200
        moved = await ask(world, world.launch(chip=chip, app_document=after))
        assert moved.status == 200
        app = {"chips": chips[1:], "compose": [OTHER_COMPOSE]}
        answer = await rehearse(world, world.default_policy(app=app))
        assert numbers(answer) == {**ALL_STILL_ALLOWED, "judged": 2, "still_allowed": 2}
        answer = await rehearse(world, world.default_policy(app={"chips": chips[:1], "compose": "any"}))
        seen = {"records": 2, "last_seen": "2026-11-21T12:02:00.000000Z"}
        assert answer["newly_refused"] == [group(moved, chip, "chip-not-listed", **seen)]

    async def test_without_instances_one_guest_does_not_hide_another_on_its_chip(self, world: World) -> None:
        await world.apply_changed(app={"compose": [COMPOSE_HASH, OTHER_COMPOSE]})
        released = await ask(world)
        assert (
            await ask(world, world.launch(app_document=document(compose_hash=OTHER_COMPOSE)))
        ).status == 200
        answer = await rehearse(world, world.default_policy(app={"compose": [OTHER_COMPOSE]}))
        assert answer["newly_refused"] == [group(released, world.chip, "compose-not-listed")]

    @pytest.mark.parametrize("image", [b"world", b"his own"])
    async def test_whoever_is_refused_in_anothers_name_does_not_hide_it(
        self, world: World, image: bytes
    ) -> None:
        """The host chooses HOST_DATA: on a chip of his own it names any app and any instance."""
        mine = document(instance_id=INSTANCE_ID)
        released = await ask(world, world.launch(app_document=mine))
        assert released.status == 200
        chip, description = another_chip(world), describe_image(seed=image)
        machine = world.launch(chip=chip, description=description, app_document=mine)
        assert (await ask(world, machine)).status == 403
        answer = await rehearse(world, world.default_policy(app={"compose": [OTHER_COMPOSE]}))
        assert answer["newly_refused"] == [group(released, world.chip, "compose-not-listed")]

    async def test_guests_that_are_alike_are_one_group(self, world: World) -> None:
        assert (await ask(world, world.launch(app_document=document(instance_id=INSTANCE_ID)))).status == 200
        released = await ask(world, world.launch(app_document=document(instance_id=OTHER_INSTANCE)))
        answer = await rehearse(world, world.default_policy(app={"chips": []}))
        seen = {"guests": 2, "records": 2, "last_seen": "2026-11-21T12:02:00.000000Z"}
        assert answer["newly_refused"] == [group(released, world.chip, "chip-not-listed", **seen)]


class TestWhatCannotBeJudged:
    async def test_nothing_was_proven(self, world: World) -> None:
        request = await world.request()
        forged = tampered(world.machine, report_data(request), {0x90: b"\xff"})
        assert (await world.post(request, forged)).code == "evidence-untrusted"
        (await ask(world, world.launch(app_document=None))).check_refused(
            403, "evidence-untrusted", "app-document-missing"
        )
        answer = await rehearse(world, world.default_policy(app={"chips": "any"}))
        assert numbers(answer) == {
            "judged": 0, "unjudged": 2, "still_refused": 0, "still_allowed": 0, "complete": True,
        }  # fmt: skip

    async def test_an_epoch_that_does_not_exist(self, world: World) -> None:
        """The policy allowed it then: no policy decides which epochs there are."""
        asked = [{"name": "disk", "scope": "app", "epoch": 7}]
        (await ask(world, keys=asked)).check_refused(403, "epoch-unavailable", "epoch-unavailable")
        answer = await rehearse(world, world.default_policy())
        assert (answer["judged"], answer["unjudged"]) == (0, 1)

    async def test_one_damaged_record_does_not_hide_those_like_it(self, world: World) -> None:
        await ask(world)
        released = await ask(world)
        [first, last] = await world.records()
        damaged = json.dumps({**last.entry, "decided_at": "yesterday"}).encode()
        async with writing(world.engine) as connection:
            newest = entries.c.id == released.body["release_id"]
            await connection.execute(update(entries).where(newest).values(entry=damaged))
        answer = await rehearse(world, world.default_policy(app={"chips": []}))
        assert (answer["judged"], answer["unjudged"]) == (1, 1)
        [refused] = newly(answer, "refused")
        assert refused["example"] == first.entry["release_id"]

    @pytest.mark.parametrize("damage", ["not json", "[]", "{}", "without measurement"])
    async def test_a_record_that_was_overwritten(self, world: World, damage: str) -> None:
        await ask(world)
        if damage == "without measurement":
            [record] = await world.records()
            del record.entry["boot_info"]["measurement"]
            damage = json.dumps(record.entry)
        async with writing(world.engine) as connection:
            await connection.execute(update(entries).values(entry=damage.encode()))
        answer = await rehearse(world, world.default_policy(app={"chips": []}))
        assert (answer["judged"], answer["unjudged"], answer["newly_refused"]) == (0, 1, [])


class TestBounds:
    async def test_of_more_records_the_latest_are_judged(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for _ in range(3):
            await ask(world)
        monkeypatch.setattr(what_if_module, "MOST_RECORDS", 3)
        assert numbers(await rehearse(world, world.default_policy())) == {
            **ALL_STILL_ALLOWED, "judged": 3, "still_allowed": 3,
        }  # fmt: skip
        monkeypatch.setattr(what_if_module, "MOST_RECORDS", 2)
        answer = await rehearse(world, world.default_policy(app={"chips": []}))
        assert (answer["judged"], answer["complete"]) == (2, False)
        assert newly(answer, "refused")[0]["last_seen"] == "2026-11-21T12:03:00.000000Z"

    async def test_of_more_groups_those_of_most_guests_are_told(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        chip = another_chip(world)
        await world.apply_changed(app={"chips": "any"})
        for instance in (INSTANCE_ID, OTHER_INSTANCE):
            await ask(world, world.launch(app_document=document(instance_id=instance)))
        await ask(world, world.launch(chip=chip))
        monkeypatch.setattr(what_if_module, "MOST_GROUPS", 1)
        answer = await rehearse(world, world.default_policy(app={"chips": []}))
        [told] = newly(answer, "refused")
        assert (told["chip_id"], told["guests"]) == (world.chip.chip_id.hex(), 2)
        assert answer["complete"] is False

    async def test_others_get_their_turn(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(what_if_module, "_PAUSE_AFTER", 2)
        for _ in range(5):
            await ask(world)
        candidate = policy_of(world.default_policy())
        pauses: list[None] = []

        async def pause() -> None:
            pauses.append(None)

        await what_if(
            candidate,
            LaunchFinder(candidate),
            DecisionRecords(world.engine, recorder()),
            since=NOW,
            circumstances=circumstances(world),
            in_force=None,
            pause=pause,
        )
        assert len(pauses) == 2


class TestTheSamePolicy:
    """Judged again by the policy that judged, every guest gets the same answer, for the same reasons."""

    def policies(self, world: World) -> list[Documents]:
        default = world.default_policy
        template = image_document("os-t", describe_image(TEMPLATE), enforces=["cmdline", "host-data"])
        two = image_document("os-2", world.description, enforces=["dstack-mr-config"])
        listed = os_image_hash(world.description.to_json()).hex()
        return [
            default(),
            default(app={"chips": "any", "compose": "any", "keys": ["disk"]}),
            default(app={"images": [listed]}),
            [*default(app={"images": ["os-1", "os-2"]}), two],
            [*default(), two],
            [*default(app={"images": ["os-1", "os-t"], "binding": ["cmdline", "host-data"]}), template],
            [default(app={"images": [listed], "chips": "any"})[0], tcb_document(world.chip)],
            default(revoked={"chips": [another_chip(world).chip_id.hex()]}),
            default(revoked={"images": ["os-1"]}),
            [*default(), app_document(world.chip, id=OTHER_APP, name="other", chips="any")],
        ]

    def guests(self, world: World) -> list[SimulatedMachine]:
        other = another_chip(world)
        template = describe_image(TEMPLATE)
        mr_config = {"app_id": APP_ID, "compose_hash": COMPOSE_HASH, "instance_id": INSTANCE_ID}
        return [
            world.machine,
            world.launch(chip=other, app_document=document(instance_id=INSTANCE_ID)),
            world.launch(app_document=document(compose_hash=OTHER_COMPOSE)),
            world.launch(app_document=document(app_id=OTHER_APP), vcpus=7),
            world.launch(app_document=document(kms_identity="AQ" * 21 + "E")),
            world.launch(app_document=json.dumps(mr_config).encode(), binding=Binding.DSTACK_MR_CONFIG),
            world.launch(description=template, cmdline=FILLED, app_document=None),
            world.launch(description=template, cmdline=FILLED),
            world.launch(description=describe_image(seed=b"unknown")),
            world.launch(policy=0x30000 | 1 << 19),
            world.launch(vcpus=9),
        ]

    async def test_nothing_is_new(self, world: World) -> None:
        machines, since = self.guests(world), 0
        outcomes: set[tuple[str, str | None]] = set()
        for documents in self.policies(world):
            await world.apply(*documents)
            for machine in machines:
                await ask(world, machine)
                await ask(world, machine, app=CLAIM, keys=[{"name": "env", "scope": "app"}])
                await ask_described(world, machine)
            policy = policy_of(documents)
            launches = LaunchFinder(policy)
            records = await world.records()
            for record in records[since:]:
                recorded = RecordedDecision.from_json(record.entry)
                verdict = judge_again(policy, launches, recorded, circumstances(world))
                if verdict is None:
                    assert recorded.code == "evidence-untrusted"
                    continue
                outcomes.add((recorded.outcome, recorded.code))
                assert verdict.allowed == (recorded.outcome == "released")
                assert verdict.reasons == recorded.reasons
                assert verdict.boot_info == recorded.boot_info
            since = len(records)
        assert outcomes == {
            ("released", None), ("refused", "policy-denied"), ("refused", "measurement-unknown"),
        }  # fmt: skip

    async def test_what_if_says_so(self, world: World) -> None:
        for machine in self.guests(world):
            await ask(world, machine)
        answer = await rehearse(world, world.default_policy())
        assert (answer["newly_refused"], answer["newly_allowed"]) == ([], [])
        assert answer["still_allowed"] == 2
