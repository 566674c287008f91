"""An app that moved here from a dstack KMS: it gets the keys that its data is under, and its own beside."""

import json
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import text

from kms.database.foreign_roots import ForeignRootStore
from kms.keys.dstack import DstackRoots
from kms.keys.released import ReleasedKey
from kms.ledger.actions import OperatorAction
from kms.measurement.images import Binding
from kms.operators import Actor, Proof, Role
from kms.simulator.machine import SimulatedMachine
from tests.world import APP_ID, COMPOSE_HASH, World

VECTORS = json.loads((Path(__file__).parents[1] / "golden" / "keys" / "dstack.json").read_text())
ROOTS = DstackRoots(ca=bytes.fromhex(VECTORS["roots"]["ca"]), k256=bytes.fromhex(VECTORS["roots"]["k256"]))
[CASE] = [each for each in VECTORS["cases"] if each["app_id"] == APP_ID]
INSTANCE_ID: str = CASE["instance_id"]
SCOPES = {"dstack:disk": "instance", "dstack:env": "app", "dstack:k256": "app"}
ASKED = [{"name": name, "scope": scope} for name, scope in SCOPES.items()]
DISK = ASKED[0]
OWN = {"name": "disk", "scope": "app"}
ROOT = Actor(name="root", role=Role.ADMIN, proof=Proof.COMMAND_LINE)
MOVED: dict[str, Any] = {"keys": ["disk", *SCOPES], "compat": "dstack"}


def guest(world: World, **changes: object) -> SimulatedMachine:
    """Launch a guest as dstack does it: with a MrConfigV3 document."""
    members = {"app_id": APP_ID, "compose_hash": COMPOSE_HASH, "instance_id": INSTANCE_ID, "version": 3}
    members |= {"key_provider": "kms", **changes}
    config = json.dumps({name: value for name, value in members.items() if value is not None})
    return world.launch(app_document=config.encode(), binding=Binding.DSTACK_MR_CONFIG)


async def bring(world: World) -> None:
    store = world.desk.foreign
    assert isinstance(store, ForeignRootStore)
    action = OperatorAction(
        action_id="1" * 32,
        at=world.now[0],
        actor=ROOT,
        action="keys-import-dstack",
        target="dstack",
        outcome="done",
        details={},
    )
    assert await store.import_dstack(ROOTS, action=action, replace=False)


@pytest.fixture
async def moved(world: World) -> World:
    """A world in which the app has moved, and a guest of its asks."""
    await world.apply_changed(app=MOVED)
    await bring(world)
    world.machine = guest(world)
    return world


def by_name(keys: tuple[ReleasedKey, ...]) -> Mapping[str, ReleasedKey]:
    return {str(key.name): key for key in keys}


async def test_it_gets_what_dstack_gave_it(moved: World) -> None:
    keys = by_name((await moved.fetch(keys=ASKED)).keys)
    for name, expected in CASE["keys"].items():
        key = keys[name]
        assert key.value == bytes.fromhex(expected["value"])
        assert (key.public_key or b"").hex() == expected.get("public_key", "")
        assert (key.epoch, key.scope.value) == (None, SCOPES[name])


async def test_its_own_keys_are_none_of_dstacks(world: World) -> None:
    """The same before the roots came and after, with epochs; and in one answer with the others."""
    await world.apply_changed(app=MOVED)
    world.machine = guest(world)
    [before] = (await world.fetch(keys=[OWN])).keys
    await bring(world)
    keys = by_name((await world.fetch(keys=[OWN, *ASKED])).keys)
    assert keys["disk"] == before
    assert before.epoch == 1
    assert len({key.value for key in keys.values()}) == 4


async def test_the_record_names_them_without_an_epoch(moved: World) -> None:
    assert (await moved.ask(keys=[*ASKED, OWN])).status == 200
    assert (await moved.ask(keys=ASKED)).status == 200
    both, alone = (record.entry for record in (await moved.records())[-2:])
    assert alone["keys"] == [{**each, "epoch": None} for each in ASKED]
    assert (both["epochs"], alone["epochs"]) == ([1], [])
    for record in await moved.records():
        for expected in CASE["keys"].values():
            assert expected["value"].encode() not in record.raw


async def test_they_have_no_epochs_to_ask_for(moved: World) -> None:
    (await moved.ask(keys=[{**DISK, "epoch": 1}])).check_refused(400, "malformed-request")


async def test_without_imported_roots_it_may_come_again(world: World) -> None:
    await world.apply_changed(app=MOVED)
    answer = await world.ask(guest(world), keys=[DISK])
    answer.check_refused(503, "root-key-unavailable", "dstack-roots-missing")
    assert answer.response.headers["retry-after"]
    assert await world.spent() == 0


async def test_roots_that_somebody_else_wrote_are_not_used(moved: World) -> None:
    async with moved.engine.begin() as connection:
        await connection.execute(text("update foreign_roots set sealed = zeroblob(92)"))
    answer = await moved.ask(keys=[DISK])
    answer.check_refused(503, "ledger-unavailable", "foreign-roots-untrusted")
    assert (await moved.ask(keys=[OWN])).status == 200


async def test_an_app_without_compatibility_gets_none(moved: World) -> None:
    await moved.apply_changed()
    answer = await moved.ask(keys=[DISK])
    answer.check_refused(403, "policy-denied", "key-not-allowed", "dstack-not-enabled")


@pytest.mark.parametrize(
    ("instance_id", "reason"),
    [(None, "instance-unbound"), ("ab" * 16, "dstack-id-length"), ("ab" * 32, "dstack-id-length")],
)
async def test_the_disk_is_for_an_instance_as_dstack_names_them(
    moved: World, instance_id: str | None, reason: str
) -> None:
    machine = guest(moved, instance_id=instance_id)
    (await moved.ask(machine, keys=[DISK])).check_refused(403, "policy-denied", reason)
    assert (await moved.ask(machine, keys=ASKED[1:])).status == 200


async def test_a_recorded_release_is_explained_and_judged_again(moved: World) -> None:
    answer = await moved.ask(keys=ASKED)
    assert (await moved.office.records.explain(ROOT, answer.body["release_id"]))["decision"] == "allow"

    async def newly_refused(**app: object) -> Any:
        documents = moved.default_policy(app=app)
        files = {f"{n}.yaml": yaml.safe_dump(each).encode() for n, each in enumerate(documents)}
        return (await moved.office.policies.what_if(ROOT, files, since=timedelta(days=1)))["newly_refused"]

    assert await newly_refused(**MOVED) == []
    [group] = await newly_refused()
    assert group["reasons"] == ["key-not-allowed", "dstack-not-enabled"]
