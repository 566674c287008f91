"""What binds an app to a report: HOST_DATA, dstack's MrConfig, a measured command line; and what does not."""

import json
from typing import Any

import pytest

from kms.encoding import b64url
from kms.measurement.images import Binding
from kms.measurement.launch import os_image_hash
from kms.policy.findings import PolicyInvalid
from kms.request import report_data
from kms.simulator.machine import SimulatedMachine
from tests.world import (
    APP_ID,
    COMPOSE_HASH,
    INSTANCE_ID,
    Answer,
    World,
    app_document,
    describe_image,
    document,
    image_document,
    tcb_document,
)

TEMPLATE = "console=ttyS0 app={app_id} compose={compose_hash} {brace}"
OTHER_APP = "ab" * 20
OTHER_COMPOSE = "cd" * 32


def filled(app_id: str = APP_ID, compose_hash: str = COMPOSE_HASH) -> str:
    return TEMPLATE.replace("{app_id}", app_id).replace("{compose_hash}", compose_hash)


def mr_config(**changes: object) -> bytes:
    """A dstack MrConfigV3 document."""
    members = {
        "app_id": APP_ID,
        "compose_hash": COMPOSE_HASH,
        "gpu_policy_hash": "12" * 32,
        "instance_id": INSTANCE_ID,
        "key_provider": "kms",
        "key_provider_id": "",
        "version": 3,
        **changes,
    }
    return json.dumps({name: value for name, value in members.items() if value is not None}).encode()


async def ask_with(world: World, machine: SimulatedMachine, **evidence: object) -> Answer:
    """Ask with members of the evidence replaced; None leaves one out."""
    request = await world.request()
    members = {**machine.evidence(report_data(request)), **evidence}
    return await world.post(request, {name: value for name, value in members.items() if value is not None})


class TestHostData:
    async def test_it_binds_the_exact_document(self, world: World) -> None:
        answer = await world.ask(world.launch(app_document=document(instance_id=INSTANCE_ID)))
        boot_info = answer.body["boot_info"]
        assert answer.status == 200
        assert boot_info["binding"] == "host-data"
        assert boot_info["app_id"] == APP_ID
        assert boot_info["compose_hash"] == COMPOSE_HASH
        assert boot_info["instance_id"] == INSTANCE_ID

    async def test_a_missing_document(self, world: World) -> None:
        answer = await ask_with(world, world.machine, app_document=None)
        answer.check_refused(403, "evidence-untrusted", "app-document-missing")
        assert await world.spent() == 1

    @pytest.mark.parametrize("other", [document(compose_hash=OTHER_COMPOSE), document() + b" ", b""])
    async def test_a_document_of_another_hash(self, world: World, other: bytes) -> None:
        answer = await ask_with(world, world.machine, app_document=b64url(other))
        answer.check_refused(403, "evidence-untrusted", "host-data-mismatch")

    @pytest.mark.parametrize(
        "broken",
        [
            b"",
            b"not json",
            b"[]",
            b"{}",
            document(version=2),
            document(version=True),
            document(version=None),
            document(extra=1),
            document(app_id=APP_ID.upper()),
            document(app_id="0x" + APP_ID),
            document(compose_hash="ab"),
            document(instance_id="ab" * 15),
            document(instance_id="00" * 20),
            document(kms_identity="AA"),
            document()[:-1] + b', "version": 1}',
            document().replace(b"{", b"\xef\xbb\xbf{", 1),
        ],
    )
    async def test_unparsable_is_malformed_only_where_host_data_commits_to_it(
        self, world: World, broken: bytes
    ) -> None:
        committed = world.launch(app_document=broken)
        answer = await ask_with(world, committed, app_document=b64url(broken))
        answer.check_refused(400, "malformed-evidence", "app-document-unreadable")
        answer = await ask_with(world, world.machine, app_document=b64url(broken))
        answer.check_refused(403, "evidence-untrusted", "host-data-mismatch")

    async def test_an_app_that_is_not_listed(self, world: World) -> None:
        answer = await world.ask(world.launch(app_document=document(app_id=OTHER_APP)))
        answer.check_refused(403, "policy-denied", "app-not-listed")

    async def test_a_compose_hash_that_is_not_listed(self, world: World) -> None:
        answer = await world.ask(world.launch(app_document=document(compose_hash=OTHER_COMPOSE)))
        answer.check_refused(403, "policy-denied", "compose-not-listed")

    async def test_a_document_may_name_this_kms_and_no_other(self, world: World) -> None:
        ours = b64url(world.desk.identity.public_key)
        assert (await world.ask(world.launch(app_document=document(kms_identity=ours)))).status == 200
        other = world.launch(app_document=document(kms_identity=b64url(b"o" * 32)))
        (await world.ask(other)).check_refused(403, "policy-denied", "kms-identity-differs")

    async def test_the_app_must_accept_it(self, world: World) -> None:
        await world.apply_changed(app={"binding": ["dstack-mr-config"]})
        (await world.ask()).check_refused(403, "policy-denied", "binding-not-allowed")

    async def test_the_image_must_enforce_it(self, world: World) -> None:
        """The host chooses HOST_DATA: under an image that never looks at it, it means nothing."""
        for enforces in ([], ["dstack-mr-config"]):
            await world.apply_changed(image={"enforces": enforces})
            (await world.ask()).check_refused(403, "policy-denied", "binding-not-enforced")


class TestDstack:
    async def test_it_binds_a_document_of_dstacks(self, world: World) -> None:
        machine = world.launch(app_document=mr_config(), binding=Binding.DSTACK_MR_CONFIG)
        answer = await world.ask(machine)
        assert answer.status == 200
        assert answer.body["boot_info"]["binding"] == "dstack-mr-config"
        assert answer.body["boot_info"]["instance_id"] == INSTANCE_ID

    async def test_the_prefix_keeps_the_two_kinds_apart(self, world: World) -> None:
        """A document of one kind under the hash of the other is unreadable, never taken for its own."""
        own = world.launch(app_document=document(), binding=Binding.DSTACK_MR_CONFIG)
        dstack = world.launch(app_document=mr_config(), binding=Binding.HOST_DATA)
        (await world.ask(dstack)).check_refused(400, "malformed-evidence", "app-document-unreadable")
        (await world.ask(own)).check_refused(400, "malformed-evidence", "app-document-unreadable")

    @pytest.mark.parametrize(
        "changes", [{"version": 2}, {"app_id": None}, {"key_provider": "else"}, {"unknown": 1}]
    )
    async def test_one_that_is_not_of_its_format(self, world: World, changes: dict[str, object]) -> None:
        machine = world.launch(app_document=mr_config(**changes), binding=Binding.DSTACK_MR_CONFIG)
        (await world.ask(machine)).check_refused(400, "malformed-evidence", "app-document-unreadable")

    @pytest.mark.parametrize(("binding", "enforces"), [(["host-data"], ["dstack-mr-config"])])
    async def test_the_app_must_accept_it(
        self, world: World, binding: list[str], enforces: list[str]
    ) -> None:
        await world.apply_changed(app={"binding": binding}, image={"enforces": enforces})
        machine = world.launch(app_document=mr_config(), binding=Binding.DSTACK_MR_CONFIG)
        (await world.ask(machine)).check_refused(403, "policy-denied", "binding-not-allowed")


class TestCommandLine:
    CLAIM = {"id": APP_ID, "compose_hash": COMPOSE_HASH}  # noqa: RUF012 -- never changed

    async def prepare(self, world: World, **changes: dict[str, object]) -> None:
        """Put a policy in force whose image names its app on the command line."""
        template = describe_image(TEMPLATE)
        image = {"enforces": ["cmdline"], **changes.get("image", {})}
        app = {"binding": ["cmdline"], **changes.get("app", {})}
        await world.apply(
            app_document(world.chip, **app),
            app_document(world.chip, **{**app, "id": OTHER_APP, "name": "other"}),
            image_document("os-1", template, **image),
            tcb_document(world.chip),
        )
        world.description = template

    def launch(self, world: World, cmdline: str, **changes: Any) -> SimulatedMachine:
        return world.launch(cmdline=cmdline, **{"app_document": None, **changes})

    async def test_it_binds_the_app_that_the_request_names(self, world: World) -> None:
        await self.prepare(world)
        answer = await world.ask(self.launch(world, filled()), app=self.CLAIM)
        assert answer.status == 200
        boot_info = answer.body["boot_info"]
        assert (boot_info["binding"], boot_info["app_id"]) == ("cmdline", APP_ID)
        assert boot_info["compose_hash"] == COMPOSE_HASH
        assert boot_info["instance_id"] is None

    @pytest.mark.parametrize("claim", [None, {"id": APP_ID}, {"compose_hash": COMPOSE_HASH}, {}])
    async def test_the_request_must_name_both(self, world: World, claim: dict[str, str] | None) -> None:
        await self.prepare(world)
        named = {} if claim is None else {"app": claim}
        answer = await world.ask(self.launch(world, filled()), **named)
        answer.check_refused(403, "evidence-untrusted", "app-document-missing")

    @pytest.mark.parametrize(
        "claim",
        [
            {"id": OTHER_APP, "compose_hash": COMPOSE_HASH},
            {"id": APP_ID, "compose_hash": OTHER_COMPOSE},
            {"id": COMPOSE_HASH, "compose_hash": COMPOSE_HASH},
        ],
    )
    async def test_another_app_than_the_measured_one(self, world: World, claim: dict[str, str]) -> None:
        await self.prepare(world)
        answer = await world.ask(self.launch(world, filled()), app=claim)
        answer.check_refused(403, "measurement-unknown", "measurement-unknown")

    async def test_a_measured_compose_hash_that_is_not_listed(self, world: World) -> None:
        await self.prepare(world)
        machine = self.launch(world, filled(compose_hash=OTHER_COMPOSE))
        answer = await world.ask(machine, app={"id": APP_ID, "compose_hash": OTHER_COMPOSE})
        answer.check_refused(403, "policy-denied", "compose-not-listed")

    async def test_an_instance_cannot_be_named_by_the_request_alone(self, world: World) -> None:
        await self.prepare(world)
        claim = {**self.CLAIM, "instance_id": INSTANCE_ID}
        answer = await world.ask(self.launch(world, filled()), app=claim)
        answer.check_refused(403, "policy-denied", "app-claim-disagrees")

    async def test_the_template_itself_is_nobodys_launch(self, world: World) -> None:
        await self.prepare(world)
        answer = await world.ask(self.launch(world, TEMPLATE), app=self.CLAIM)
        answer.check_refused(403, "measurement-unknown", "measurement-unknown")

    async def test_other_braces_are_literal(self, world: World) -> None:
        await self.prepare(world)
        answer = await world.ask(self.launch(world, filled().replace("{brace}", "")), app=self.CLAIM)
        answer.check_refused(403, "measurement-unknown", "measurement-unknown")

    @pytest.mark.parametrize("accepts", [["cmdline"], ["cmdline", "host-data"], ["host-data"]])
    async def test_a_document_beside_it_may_agree(self, world: World, accepts: list[str]) -> None:
        await self.prepare(world, app={"binding": accepts}, image={"enforces": ["cmdline", "host-data"]})
        machine = self.launch(world, filled(), app_document=document())
        answer = await world.ask(machine, app=self.CLAIM)
        assert answer.status == 200
        assert answer.body["boot_info"]["binding"] == ("cmdline" if accepts == ["cmdline"] else "host-data")

    @pytest.mark.parametrize("enforces", [["cmdline"], ["cmdline", "host-data"]])
    @pytest.mark.parametrize("accepts", [["cmdline"], ["cmdline", "host-data"]])
    @pytest.mark.parametrize("changes", [{"app_id": OTHER_APP}, {"compose_hash": OTHER_COMPOSE}])
    async def test_a_document_beside_it_must_agree(
        self, world: World, enforces: list[str], accepts: list[str], changes: dict[str, object]
    ) -> None:
        await self.prepare(
            world,
            app={"binding": accepts, "compose": [COMPOSE_HASH, OTHER_COMPOSE]},
            image={"enforces": enforces},
        )
        machine = self.launch(world, filled(), app_document=document(**changes))
        answer = await world.ask(machine, app=self.CLAIM)
        assert answer.status == 403
        assert answer.code in {"policy-denied", "evidence-untrusted"}
        assert await world.spent() == 1

    async def test_a_document_that_host_data_does_not_bind(self, world: World) -> None:
        await self.prepare(world)
        answer = await ask_with(world, self.launch(world, filled()), app_document=b64url(document()))
        answer.check_refused(403, "evidence-untrusted", "host-data-mismatch")

    @pytest.mark.parametrize(
        "cmdline",
        ["quiet", "{app_id}", "{compose_hash}", "{app_id} {app_id} {compose_hash}", TEMPLATE + "{app_id}"],
    )
    async def test_an_image_cannot_enforce_what_it_does_not_carry_once(
        self, world: World, cmdline: str
    ) -> None:
        with pytest.raises(PolicyInvalid):
            await world.apply(
                app_document(world.chip, binding=["cmdline"]),
                image_document("os-1", describe_image(cmdline), enforces=["cmdline"]),
                tcb_document(world.chip),
            )

    async def test_the_app_must_accept_it(self, world: World) -> None:
        await self.prepare(world, app={"binding": ["host-data"]})
        answer = await world.ask(self.launch(world, filled()), app=self.CLAIM)
        answer.check_refused(403, "policy-denied", "binding-not-allowed")

    async def test_the_image_must_enforce_it(self, world: World) -> None:
        await self.prepare(world, image={"enforces": []})
        answer = await world.ask(self.launch(world, filled()), app=self.CLAIM)
        answer.check_refused(403, "policy-denied", "binding-not-enforced")


class TestClaim:
    @pytest.mark.parametrize(
        "claim",
        [{"id": APP_ID}, {"compose_hash": COMPOSE_HASH}, {"id": APP_ID, "compose_hash": COMPOSE_HASH}, {}],
    )
    async def test_one_that_agrees(self, world: World, claim: dict[str, str]) -> None:
        assert (await world.ask(app=claim)).status == 200

    @pytest.mark.parametrize(
        "claim", [{"id": OTHER_APP}, {"compose_hash": OTHER_COMPOSE}, {"instance_id": INSTANCE_ID}]
    )
    async def test_one_that_disagrees(self, world: World, claim: dict[str, str]) -> None:
        (await world.ask(app=claim)).check_refused(403, "policy-denied", "app-claim-disagrees")

    async def test_without_an_image_of_the_claims_app_the_bound_one_still_counts(self, world: World) -> None:
        answer = await world.ask(app={"id": APP_ID[:-2] + "00"})
        answer.check_refused(403, "policy-denied", "app-claim-disagrees")


class TestImages:
    async def test_by_hash_with_a_document(self, world: World) -> None:
        listed = os_image_hash(world.description.to_json()).hex()
        await world.apply_changed(app={"images": [listed]})
        assert (await world.ask()).status == 200

    async def test_by_hash_alone_the_guest_describes_it(self, world: World) -> None:
        launch = world.description.to_json()
        documents = world.default_policy(app={"images": [os_image_hash(launch).hex()]})
        await world.apply(documents[0], documents[2])
        answer = await ask_with(world, world.machine, launch={"description": launch})
        assert answer.status == 200
        assert answer.body["boot_info"]["image"] is None
        assert answer.body["boot_info"]["os_image_hash"] == os_image_hash(launch).hex()
        (await world.ask()).check_refused(403, "measurement-unknown", "measurement-unknown")
        large = world.launch(vcpus=512)
        assert (await ask_with(world, large, launch={"description": launch})).status == 200

    async def test_a_description_of_another_hash_is_ignored(self, world: World) -> None:
        other = describe_image(seed=b"other").to_json()
        assert (await ask_with(world, world.machine, launch={"description": other})).status == 200
        documents = world.default_policy(app={"images": [os_image_hash(other).hex()]})
        await world.apply(documents[0], documents[2])
        answer = await ask_with(world, world.machine, launch={"description": world.description.to_json()})
        answer.check_refused(403, "measurement-unknown", "measurement-unknown")

    async def test_an_image_of_another_app(self, world: World) -> None:
        other = describe_image(seed=b"other")
        await world.apply(
            *world.default_policy(),
            app_document(world.chip, id=OTHER_APP, name="other", images=["os-2"]),
            image_document("os-2", other),
        )
        answer = await world.ask(world.launch(description=other))
        answer.check_refused(403, "policy-denied", "image-not-listed")

    @pytest.mark.parametrize(
        ("one", "two", "status"),
        [
            (["host-data"], ["host-data"], 200),
            (["host-data", "dstack-mr-config"], ["host-data"], 200),
            (["host-data"], [], 403),
            ([], ["host-data"], 403),
            (["host-data"], ["dstack-mr-config"], 403),
        ],
    )
    async def test_two_documents_of_one_launch_enforce_what_both_say(
        self, world: World, one: list[str], two: list[str], status: int
    ) -> None:
        documents = world.default_policy(app={"images": ["os-1", "os-2"]}, image={"enforces": one})
        await world.apply(*documents, image_document("os-2", world.description, enforces=two))
        answer = await world.ask()
        assert answer.status == status
        if status == 403:
            answer.check_refused(403, "policy-denied", "binding-not-enforced")


HINTS: list[dict[str, object]] = [
    {},
    {"image": "os-1"},
    {"image": "nobody"},
    {"image": ""},
    {"image": "ab" * 32},
    {"vcpus": 0},
    {"vcpus": 1},
    {"vcpus": 10**9},
    {"vcpus": 2**53 - 1},
    {"vcpu_type": "EPYC-v4"},
    {"vcpu_type": "EPYC-Turbo"},
    {"vcpu_type": "../../x"},
    {"vcpu_signature": "0x0"},
    {"vcpu_signature": "0xffffffffffffffff"},
    {"guest_features": "0x0"},
    {"guest_features": "0xffffffffffffffff"},
    {"image": "nobody", "vcpus": 10**9, "vcpu_type": "EPYC-Turbo"},
]


@pytest.mark.parametrize("hint", HINTS)
async def test_a_hint_decides_nothing(world: World, hint: dict[str, object]) -> None:
    """Right, wrong or absurd: a genuine launch is found, and another one is not."""
    answer = await ask_with(world, world.machine, launch=hint)
    assert answer.status == 200, answer.body
    assert answer.body["boot_info"]["vcpus"] == 2
    stranger = world.launch(cmdline="other")
    answer = await ask_with(world, stranger, launch=hint)
    answer.check_refused(403, "measurement-unknown", "measurement-unknown")


async def test_no_hint_is_needed(world: World) -> None:
    assert (await ask_with(world, world.machine, launch=None)).status == 200
