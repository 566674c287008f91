"""Operators' work on epochs and the identity, on a real database with a real record and anchor."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from kms.administration import rotation as rotation_module
from kms.administration.keys import FURTHEST_AHEAD, KeyAdministration
from kms.administration.permission import Journal
from kms.anchor import FileAnchor
from kms.database.actions import ActionStore
from kms.database.decisions import DecisionStore
from kms.database.engine import open_engine, sqlite_url
from kms.database.installation import Installation
from kms.database.keys import KeyStore
from kms.database.migrate import migrate
from kms.database.records import DecisionRecords
from kms.encoding import b64url
from kms.errors import (
    ConfigurationError,
    EpochInUse,
    Forbidden,
    KeysConflict,
    LedgerUnavailable,
    MalformedRequest,
    RootKeyUnavailable,
)
from kms.identifiers import AppId, ChipId, InstanceId
from kms.keys.hand_over import MAX_HAND_OVERS
from kms.keys.names import KeyRequest
from kms.keys.row_seal import RowSeal
from kms.ledger.entries import REFUSED, RELEASED, DecisionEntry, timestamp
from kms.operators import Actor, Proof, Role
from kms.packaged import packaged_folder
from kms.policy.compiled import Policy
from kms.policy.decision import Ask
from kms.policy_authority import PolicyUntrusted
from kms.ports import EpochsMoved
from tests.recording import recorder
from tests.unit.operator_samples import actor
from tests.unit.policy.samples import APP_ID, BOOT_INFO, CHIP, documents, key, policy_of
from tests.world import NOW

ADMIN = Actor(name="anna", role=Role.ADMIN, proof=Proof.TOKEN, proof_id="07", client="192.0.2.7")
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
MONTH = timedelta(days=30)
INSTANCES = [InstanceId(bytes([number]) * 20) for number in range(1, 9)]
OTHER_APP = AppId(b"\xa2" * 20)


@dataclass
class Versions:
    """Implements `RootVersions`, like a root key file; `broken` is raised by it.

    With a `barrier`, whoever asks for a version waits there for the others.
    """

    existing: list[int] = field(default_factory=lambda: [1])
    made: list[int] = field(default_factory=list)
    broken: Exception | None = None
    barrier: asyncio.Barrier | None = None

    async def versions(self) -> tuple[int, ...]:
        if self.broken is not None:
            raise self.broken
        return tuple(self.existing)

    async def ensure(self, epoch: int) -> bytes:
        if self.broken is not None:
            raise self.broken
        if epoch not in self.existing:
            if epoch != len(self.existing) + 1:
                raise ConfigurationError(f"{epoch} is not the next version", remedy="restore the others")
            self.existing.append(epoch)
            self.made.append(epoch)
        if self.barrier is not None:
            await self.barrier.wait()
        return sha256(str(epoch).encode()).digest()


@dataclass
class InForce:
    """Implements `kms.ports.Policies` and `ActivePolicy`, as far as it is asked."""

    policy: Policy | None = None
    broken: LedgerUnavailable | None = None
    barrier: asyncio.Barrier | None = None

    async def active(self) -> Any:
        return None if self.policy is None else self

    async def refresh(self) -> None:
        if self.broken is not None:
            raise self.broken
        if self.barrier is not None:
            await self.barrier.wait()


async def identity(generation: int) -> bytes:
    return sha256(f"identity {generation}".encode()).digest()


@dataclass
class KeyRoom:
    """Key work, and what is behind it."""

    engine: AsyncEngine
    folder: Path
    now: datetime = NOW
    pauses: int = 0

    def __post_init__(self) -> None:
        self.versions, self.policies = Versions(), InForce()
        self.actions, ids = ActionStore(self.engine, recorder()), count(1)
        self.journal = Journal(
            actions=self.actions, clock=lambda: self.now, new_id=lambda: f"{next(ids):032x}"
        )
        self.register = self.store("anchor.json")
        self.work = self.work_on(self.register)

    def store(self, anchor: str) -> KeyStore:
        return KeyStore(
            self.engine,
            lambda: self.now,
            RowSeal(bytes(range(64))),
            anchor=FileAnchor(self.folder / anchor),
            recorder=recorder(),
        )

    def work_on(self, register: KeyStore) -> Any:
        """Give a `KeyAdministration`; its answers are JSON."""
        return KeyAdministration(
            register=register,
            versions=self.versions,
            records=DecisionRecords(self.engine, recorder()),
            policies=self.policies,
            journal=self.journal,
            clock=lambda: self.now,
            identities=identity,
            pause=self.pause,
        )

    async def pause(self) -> None:
        self.pauses += 1

    async def recorded(self) -> list[tuple[object, ...]]:
        """Give what was done to what with which outcome, oldest first."""
        found = await self.actions.actions(before=None, limit=500)
        return [(each["action"], each["target"], each["outcome"]) for each in reversed(found)]

    async def last_details(self) -> Any:
        [found] = await self.actions.actions(before=None, limit=1)
        return found["details"]

    async def rotate(self, at: datetime | None = None) -> Any:
        return (await self.work.rotate(ADMIN, at=at))["epoch"]

    async def retire(self, epoch: int, *, within: timedelta = MONTH, force: bool = False) -> Any:
        return await self.work.retire(ADMIN, epoch, seen_within=within, force=force)

    async def states(self) -> list[object]:
        return [each["state"] for each in (await self.work.keys(ADMIN))["epochs"]]

    async def release(
        self,
        *epochs: int,
        at: datetime | None = None,
        keys: tuple[str, ...] = ("disk@app",),
        **changes: Any,
    ) -> None:
        """Record a release of these keys, each of these epochs, of which BootInfo shows `changes`."""
        parts = [each.split("@") for each in keys]
        asked = tuple(KeyRequest.parse(name, scope, epoch) for name, scope in parts for epoch in epochs)
        await self.record(
            at=at,
            ask=Ask(asked),
            epochs=tuple(sorted(set(epochs))),
            key_epochs=tuple(each.epoch for each in asked),
            boot_info=replace(BOOT_INFO, **{"instance_id": INSTANCES[0], **changes}),
        )

    async def record(self, *, at: datetime | None = None, **changes: Any) -> None:
        """Record a release of the app's disk key, as versions did that knew one epoch."""
        entry = DecisionEntry(
            **{
                "release_id": self.journal.new_id(),
                "decided_at": at or self.now,
                "outcome": RELEASED,
                "code": None,
                "reasons": (),
                "checks": (),
                "boot_info": BOOT_INFO,
                "document": None,
                "ask": Ask((key("disk"),)),
                "epochs": (1,),
                "policy_revision": None,
                "challenge": None,
                "client": "192.0.2.1",
                "development": False,
                "salt": bytes(16),
                **changes,
            }
        )
        store = DecisionStore(self.engine, lambda: self.now, recorder())
        store.start()
        try:
            await store.record(entry, None)
        finally:
            await store.stop()


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[KeyRoom]:
    engine = open_engine(sqlite_url(tmp_path))
    await migrate(engine, packaged_folder("migrations"))
    room = KeyRoom(engine, tmp_path)
    await Installation(engine, lambda: NOW).remember_check_values({1: bytes(32)})
    await room.register.found("founding")
    yield room
    await engine.dispose()


@pytest.fixture
async def rotated(room: KeyRoom) -> KeyRoom:
    """A KMS whose second epoch is ten days old."""
    room.now -= 10 * DAY
    await room.rotate()
    room.now = NOW
    return room


async def refused(attempt: Any, kind: type[KeysConflict | EpochInUse] = KeysConflict) -> Any:
    with pytest.raises(kind) as found:
        await attempt
    return found.value


# --- reading


async def test_a_new_kms_has_one_epoch_and_one_identity(room: KeyRoom) -> None:
    assert await room.work.keys(ADMIN) == {
        "epochs": [
            {
                "epoch": 1,
                "state": "current",
                "made_at": timestamp(NOW),
                "made_by": "founding",
                "active_from": "1970-01-01T00:00:00.000000Z",
                "retired_at": None,
                "retired_by": None,
            }
        ],
        "current": 1,
        "root": None,
        "not_adopted": [],
        "identity": {
            "generation": 1,
            "generations": [
                {"generation": 1, "identity": b64url(await identity(1)), "made_at": None, "made_by": None}
            ],
        },
    }


@pytest.mark.parametrize(
    ("role", "keys", "rotation", "change"),
    [
        (Role.VIEWER, False, False, False),
        (Role.OPERATOR, True, True, False),
        (Role.AUDITOR, True, True, False),
        (Role.ADMIN, True, True, True),
    ],
)
async def test_who_may_do_what(
    rotated: KeyRoom, role: Role, keys: bool, rotation: bool, change: bool
) -> None:
    work, who = rotated.work, actor(role)
    attempts: list[tuple[bool, str, Callable[[], Any]]] = [
        (keys, "keys-list", lambda: work.keys(who)),
        (rotation, "keys-rotation", lambda: work.rotation(who, app=None, since=DAY)),
        (change, "keys-retire", lambda: work.retire(who, 1, seen_within=DAY, force=False)),
        (change, "keys-rotate", lambda: work.rotate(who, at=None)),
        (change, "keys-schedule", lambda: work.rotate(who, at=NOW + DAY)),
        (change, "keys-rotate-identity", lambda: work.rotate_identity(who)),
    ]
    for allowed, word, attempt in attempts:
        if allowed:
            await attempt()
            continue
        before = len(await rotated.recorded())
        with pytest.raises(Forbidden):
            await attempt()
        [last] = (await rotated.recorded())[before:]
        assert (last[0], last[2]) == (word, "forbidden")


# --- rotating


async def test_a_rotation_makes_the_next_epoch_current(room: KeyRoom) -> None:
    made = await room.rotate()
    assert (made["epoch"], made["state"], made["made_by"]) == (2, "current", "anna")
    assert made["active_from"] == made["made_at"] == timestamp(NOW)
    shown = await room.work.keys(ADMIN)
    assert shown["epochs"][1] == made
    assert shown["current"] == 2
    assert await room.states() == ["available", "current"]
    values = await Installation(room.engine, lambda: NOW).check_values()
    assert values[2] == sha256(b"2").digest()
    assert await room.recorded() == [("keys-rotate", "2", "done")]
    assert await room.last_details() == {"active_from": timestamp(NOW)}


async def test_a_scheduled_epoch_waits_and_can_be_moved(room: KeyRoom) -> None:
    assert (await room.rotate(NOW + DAY))["state"] == "scheduled"
    moved = await room.rotate(NOW + 2 * DAY)
    assert (moved["epoch"], moved["active_from"]) == (2, timestamp(NOW + 2 * DAY))
    assert (await room.work.keys(ADMIN))["current"] == 1
    assert room.versions.made == [2]
    room.now += 2 * DAY
    assert await room.states() == ["available", "current"]
    assert await room.recorded() == [("keys-schedule", "2", "done")] * 2


async def test_to_rotate_makes_the_waiting_epoch_current_now(room: KeyRoom) -> None:
    await room.rotate(NOW + DAY)
    made = await room.rotate()
    assert (made["epoch"], made["state"], made["active_from"]) == (2, "current", timestamp(NOW))
    assert room.versions.made == [2]
    assert (await room.rotate())["epoch"] == 3


@pytest.mark.parametrize(
    "at", [NOW, NOW - timedelta(microseconds=1), NOW + FURTHEST_AHEAD + timedelta(microseconds=1)], ids=str
)
async def test_a_time_that_is_past_or_too_far_ahead_is_refused(room: KeyRoom, at: datetime) -> None:
    assert (await refused(room.rotate(at))).reason == "keys-time-invalid"
    assert room.versions.made == []
    await room.rotate(NOW + FURTHEST_AHEAD)
    assert (await refused(room.rotate(at))).reason == "keys-time-invalid"
    assert (await room.recorded())[-1] == ("keys-schedule", "2", "keys-conflict")
    assert await room.last_details() == {"reason": "keys-time-invalid"}


async def test_a_version_that_a_crash_left_is_adopted_by_the_next_rotation(
    room: KeyRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def crash(*_: object) -> None:
        raise LedgerUnavailable("killed")

    with monkeypatch.context() as crashing:
        crashing.setattr(KeyStore, "add_epoch", crash)
        with pytest.raises(LedgerUnavailable):
            await room.rotate()
    shown = await room.work.keys(ADMIN)
    assert (shown["current"], shown["not_adopted"]) == (1, [2])
    assert (await room.rotate())["epoch"] == 2
    assert room.versions.made == [2], "it was not made again"
    assert (await room.work.keys(ADMIN))["not_adopted"] == []


async def test_of_two_that_rotate_at_once_one_wins_and_the_other_learns_who(room: KeyRoom) -> None:
    room.versions.barrier = asyncio.Barrier(2)
    other = room.work_on(room.store("other-anchor.json"))
    bob = replace(ADMIN, name="bob")
    outcomes = await asyncio.gather(
        room.work.rotate(ADMIN, at=None), other.rotate(bob, at=None), return_exceptions=True
    )
    [lost] = [each for each in outcomes if isinstance(each, KeysConflict)]
    [won] = [each for each in outcomes if isinstance(each, dict)]
    assert lost.details["made_by"] == won["epoch"]["made_by"]
    assert str(lost.details["made_by"]) in lost.detail
    assert sorted(await room.recorded()) == [
        ("keys-rotate", "2", "done"),
        ("keys-rotate", "2", "keys-conflict"),
    ]
    assert await room.states() == ["available", "current"]


async def test_a_provider_that_is_away_changes_nothing(room: KeyRoom) -> None:
    room.versions.broken = RootKeyUnavailable("sealed", reason="vault-sealed")
    with pytest.raises(RootKeyUnavailable):
        await room.rotate()
    room.versions.broken = None
    assert await room.states() == ["current"]


@pytest.mark.parametrize("part", ["versions", "identities"])
async def test_what_does_not_need_the_root_is_shown_without_it(room: KeyRoom, part: str) -> None:
    """Operators look when Vault is away."""
    await room.rotate()
    await room.work.rotate_identity(ADMIN)
    before = await room.work.keys(ADMIN)

    async def away(_: int) -> bytes:
        raise RootKeyUnavailable("sealed", reason="root-key-sealed")

    work = room.work
    if part == "versions":
        room.versions.broken = RootKeyUnavailable("sealed", reason="root-key-sealed")
    else:
        work = replace(work, identities=away)
    shown = await work.keys(ADMIN)
    assert (shown["root"], before["root"]) == ("root-key-sealed", None)
    assert (shown["epochs"], shown["current"]) == (before["epochs"], 2)
    assert shown["not_adopted"] == (None if part == "versions" else [])
    generations = before["identity"]["generations"]
    assert shown["identity"] == {
        "generation": 2,
        "generations": [{**each, "identity": None} for each in generations],
    }


async def test_a_provider_that_makes_no_version_says_why(room: KeyRoom) -> None:
    room.versions.existing = []
    error = await refused(room.rotate())
    assert error.reason == "root-version-refused"
    assert "restore the others" in error.detail
    assert await room.recorded() == [("keys-rotate", "2", "keys-conflict")]


# --- retiring


async def test_an_epoch_that_nobody_needs_is_retired_for_ever(rotated: KeyRoom) -> None:
    await rotated.release(1, at=NOW - 9 * DAY)
    await rotated.release(2, at=NOW - HOUR)
    outcome = await rotated.retire(1)
    assert outcome["guests"] == []
    assert outcome["epoch"] == (await rotated.work.keys(ADMIN))["epochs"][0]
    assert (outcome["epoch"]["state"], outcome["epoch"]["retired_by"]) == ("retired", "anna")
    assert (await rotated.recorded())[-1] == ("keys-retire", "1", "done")
    assert (await refused(rotated.retire(1, force=True))).reason == "epoch-retired"


@pytest.mark.parametrize(
    ("epoch", "reason"),
    [(2, "epoch-current"), (3, "epoch-scheduled"), (4, "epoch-unknown"), (0, "epoch-unknown")],
)
async def test_only_an_older_epoch_that_is_available_is_retired(
    rotated: KeyRoom, epoch: int, reason: str
) -> None:
    await rotated.rotate(NOW + DAY)
    for force in (False, True):
        assert (await refused(rotated.retire(epoch, force=force))).reason == reason
    assert (await rotated.recorded())[-1] == ("keys-retire", str(epoch), "keys-conflict")
    assert await rotated.states() == ["available", "current", "scheduled"]


async def test_the_only_epoch_is_never_retired(room: KeyRoom) -> None:
    assert (await refused(room.retire(1, force=True))).reason == "epoch-current"


async def test_a_guest_that_only_took_the_old_epoch_keeps_it(rotated: KeyRoom) -> None:
    await rotated.release(1, at=NOW - 2 * DAY, instance_id=INSTANCES[1])
    await rotated.release(1, at=NOW - 3 * DAY, instance_id=INSTANCES[1])
    await rotated.release(2, at=NOW - HOUR)
    error = await refused(rotated.retire(1), EpochInUse)
    left = {
        "app_id": APP_ID.hex(),
        "instance_id": INSTANCES[1].hex(),
        "chip_id": CHIP.hex(),
        "last_seen": timestamp(NOW - 2 * DAY),
        "epochs": [1],
        "keys": [{"name": "disk", "scope": "app"}],
    }
    assert error.details == {"guests": [left], "count": 1, "pinned": [], "damaged": 0, "complete": True}
    assert await rotated.states() == ["available", "current"]
    assert (await rotated.recorded())[-1] == ("keys-retire", "1", "epoch-in-use")

    outcome = await rotated.retire(1, force=True)
    assert (outcome["guests"], outcome["count"]) == ([left], 1)
    assert await rotated.states() == ["retired", "current"]
    details = await rotated.last_details()
    assert (details["force"], details["count"], details["seen_within_seconds"]) == (True, 1, 30 * 86400)


async def test_whoever_was_not_seen_for_long_enough_does_not_count(rotated: KeyRoom) -> None:
    await rotated.release(1, at=NOW - 5 * DAY)
    await refused(rotated.retire(1, within=5 * DAY), EpochInUse)
    await rotated.retire(1, within=5 * DAY - timedelta(microseconds=1))


@pytest.mark.parametrize("within", [timedelta(0), -DAY], ids=str)
async def test_within_no_time_nobody_is_seen_so_that_is_refused(rotated: KeyRoom, within: timedelta) -> None:
    assert (await refused(rotated.retire(1, within=within))).reason == "keys-time-invalid"


@pytest.mark.parametrize("within", [DAY, MONTH], ids=["of which the newer is older", "of both"])
async def test_whoever_took_a_newer_one_once_and_the_old_one_since_keeps_it(
    rotated: KeyRoom, within: timedelta
) -> None:
    """It was started without naming an epoch, could not open its disk, and names epoch 1 every day since."""
    await rotated.release(2, at=NOW - 9 * DAY)
    for days in range(3):
        await rotated.release(1, at=NOW - days * DAY)
    error = await refused(rotated.retire(1, within=within), EpochInUse)
    assert [each["instance_id"] for each in error.details["guests"]] == [INSTANCES[0].hex()]
    shown = await rotated.work.rotation(ADMIN, app=None, since=MONTH)
    assert (shown["by_epoch"], shown["guests"][0]["epoch"]) == ({"1": 1}, 1)
    await rotated.release(1, 2)
    await rotated.retire(1, within=within)


async def test_whoever_took_the_old_one_and_then_a_newer_has_moved(rotated: KeyRoom) -> None:
    await rotated.release(1, at=NOW - 2 * HOUR)
    await rotated.release(2, at=NOW - HOUR)
    await rotated.retire(1)


@pytest.mark.parametrize("epochs", [(1, 2), (2, 1)])
async def test_whoever_takes_both_in_one_request_has_moved(rotated: KeyRoom, epochs: tuple[int, ...]) -> None:
    await rotated.release(1, at=NOW - 2 * HOUR)
    await rotated.release(*epochs, at=NOW - HOUR)
    assert (await rotated.work.rotation(ADMIN, app=None, since=MONTH))["by_epoch"] == {"2": 1}
    await rotated.retire(1)


async def test_whoever_went_back_to_an_epoch_that_stays_has_moved_from_older_ones(rotated: KeyRoom) -> None:
    await rotated.rotate()
    for days, epoch in enumerate((2, 3, 1)):
        await rotated.release(epoch, at=NOW - days * DAY)
    await refused(rotated.retire(2), EpochInUse)
    await rotated.retire(1)


async def test_a_guest_has_moved_only_what_it_took_of_a_newer_epoch(rotated: KeyRoom) -> None:
    """Its environment was sealed again, its disk is still under the key of epoch 1."""
    await rotated.release(1, at=NOW - 2 * DAY, keys=("disk@app", "env@app", "custom:db@chip"))
    await rotated.release(2, at=NOW - DAY, keys=("env@app", "disk@chip"))
    error = await refused(rotated.retire(1), EpochInUse)
    [left] = error.details["guests"]
    assert left["keys"] == [{"name": "custom:db", "scope": "chip"}, {"name": "disk", "scope": "app"}]
    assert (left["epochs"], left["last_seen"]) == ([1], timestamp(NOW - 2 * DAY))
    shown = await rotated.work.rotation(ADMIN, app=None, since=MONTH)
    assert shown["by_epoch"] == {"1": 1}
    assert shown["guests"][0]["epochs"] == {"1": timestamp(NOW - 2 * DAY), "2": timestamp(NOW - DAY)}

    await rotated.release(2, keys=("disk@app",))
    error = await refused(rotated.retire(1), EpochInUse)
    assert error.details["guests"][0]["keys"] == [{"name": "custom:db", "scope": "chip"}]
    await rotated.release(2, keys=("custom:db@chip",))
    await rotated.retire(1)
    assert (await rotated.work.rotation(ADMIN, app=None, since=MONTH))["by_epoch"] == {"2": 1}


async def test_a_key_that_a_guest_took_long_ago_does_not_count_though_it_was_seen_with_others(
    rotated: KeyRoom,
) -> None:
    await rotated.release(1, at=NOW - 5 * DAY)
    await rotated.release(2, at=NOW - HOUR, keys=("env@app",))
    await refused(rotated.retire(1, within=5 * DAY), EpochInUse)
    await rotated.retire(1, within=4 * DAY)


async def test_what_was_recorded_before_keys_had_epochs_of_their_own_counts_for_each(
    rotated: KeyRoom,
) -> None:
    shown = replace(BOOT_INFO, instance_id=INSTANCES[0])
    await rotated.record(boot_info=shown, at=NOW - DAY, ask=Ask((key("disk"), key("env"))))
    await rotated.release(2, keys=("env@app",))
    error = await refused(rotated.retire(1), EpochInUse)
    assert error.details["guests"][0]["keys"] == [{"name": "disk", "scope": "app"}]
    # Of several epochs the oldest: nothing says that it was the disk's key that was of the newer one.
    await rotated.record(boot_info=shown, epochs=(1, 2))
    await refused(rotated.retire(1), EpochInUse)
    await rotated.release(2)
    await rotated.retire(1)


async def test_very_many_keys_of_one_guest_are_named_in_part(rotated: KeyRoom) -> None:
    for number in range(3):
        await rotated.release(1, keys=tuple(f"custom:{number}/{each:02}@app" for each in range(16)))
    error = await refused(rotated.retire(1), EpochInUse)
    assert len(error.details["guests"][0]["keys"]) == 32


async def test_more_keys_than_are_kept_are_said_and_refused(
    rotated: KeyRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest may ask for ever new names."""
    for number in range(4):
        await rotated.release(2, at=NOW - number * HOUR, keys=(f"custom:{number}@app",))
    monkeypatch.setattr(rotation_module, "MOST_KEYS", 3)
    error = await refused(rotated.retire(1), EpochInUse)
    assert error.reason == "too-many-records"


async def test_keys_of_another_kms_have_no_epoch_and_do_not_count(rotated: KeyRoom) -> None:
    asked = Ask((KeyRequest.parse("dstack:disk", "instance"),))
    await rotated.record(at=NOW - HOUR, ask=asked, epochs=(), key_epochs=(None,))
    assert (await rotated.work.rotation(ADMIN, app=None, since=MONTH))["guests"] == []
    await rotated.retire(1)


async def test_a_refusal_is_no_release(rotated: KeyRoom) -> None:
    shown = replace(BOOT_INFO, instance_id=INSTANCES[1])
    await rotated.record(outcome=REFUSED, code="policy-denied", boot_info=shown, epochs=())
    await rotated.record(outcome=REFUSED, code="evidence-untrusted", boot_info=None, epochs=())
    assert (await rotated.work.rotation(ADMIN, app=None, since=MONTH))["records"] == 2
    await rotated.retire(1)


async def test_an_app_instance_or_chip_of_its_own_is_a_guest_of_its_own(rotated: KeyRoom) -> None:
    await rotated.release(2)
    for changes in (
        {"app_id": OTHER_APP},
        {"instance_id": None},
        {"chip_id": ChipId(b"\xc9" * 64)},
        {"chip_id": None},
    ):
        await rotated.release(1, **changes)
    error = await refused(rotated.retire(1), EpochInUse)
    assert error.details["count"] == 4
    shown = [(each["instance_id"], each["chip_id"]) for each in error.details["guests"]]
    assert (None, CHIP.hex()) in shown
    assert (INSTANCES[0].hex(), None) in shown


async def test_of_very_many_guests_the_last_fifty_are_named(rotated: KeyRoom) -> None:
    for number in range(52):
        await rotated.release(1, at=NOW - number * HOUR, instance_id=InstanceId(bytes([1, number]) * 10))
    error = await refused(rotated.retire(1), EpochInUse)
    assert error.details["count"] == 52
    assert [each["last_seen"] for each in error.details["guests"]] == [
        timestamp(NOW - number * HOUR) for number in range(50)
    ]


async def test_an_older_epoch_goes_first(rotated: KeyRoom) -> None:
    """Whoever is still of epoch 1 did not move on from epoch 2 either."""
    await rotated.rotate()
    await rotated.release(1)
    error = await refused(rotated.retire(2), EpochInUse)
    assert error.details["guests"][0]["epochs"] == [1]


DAMAGES = [
    "entry = X'FF'",
    "entry = 5",
    "entry = '[]'",
    "entry = '{}'",
    'entry = replace(entry, \'"epochs":[1]\', \'"epochs":["1"]\')',
    "entry = replace(entry, '\"epochs\":[1]', '\"epochs\":[true]')",
    "entry = replace(entry, '\"epochs\":[1]', '\"epochs\":[0]')",
    "entry = replace(entry, '\"epochs\":[1]', '\"epochs\":1')",
    "entry = replace(entry, '\"released\"', '\"granted\"')",
    'entry = replace(entry, \'"app_id":"86\', \'"app_id":"zz\')',
    "entry = replace(entry, '.000000Z', '')",
    "entry = replace(entry, '2026-', 'soon-')",
    'entry = replace(entry, \'"boot_info":{\', \'"boot_info":null,"x":{\')',
]


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_record_that_cannot_be_read_may_be_anybodys(rotated: KeyRoom, damage: str) -> None:
    await rotated.release(1)
    async with rotated.engine.begin() as connection:
        await connection.exec_driver_sql("UPDATE entries SET entry = CAST(entry AS TEXT)")
        await connection.exec_driver_sql(f"UPDATE entries SET {damage}")  # noqa: S608
    await rotated.release(2, instance_id=INSTANCES[1])
    error = await refused(rotated.retire(1), EpochInUse)
    assert (error.reason, error.details["damaged"], error.details["guests"]) == ("records-damaged", 1, [])
    shown = await rotated.work.rotation(ADMIN, app=None, since=MONTH)
    assert (shown["records"], shown["damaged"], shown["count"]) == (2, 1, 1)
    assert (await rotated.retire(1, force=True))["damaged"] == 1


async def test_more_records_than_are_read_are_said_and_refused(
    rotated: KeyRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        await rotated.release(2, at=NOW - number * HOUR)
    monkeypatch.setattr(rotation_module, "MOST_RECORDS", 4)
    assert (await rotated.work.rotation(ADMIN, app=None, since=MONTH))["complete"] is True
    monkeypatch.setattr(rotation_module, "MOST_RECORDS", 3)
    shown = await rotated.work.rotation(ADMIN, app=None, since=MONTH)
    assert (shown["records"], shown["complete"]) == (3, False)
    error = await refused(rotated.retire(1), EpochInUse)
    assert (error.reason, error.details["complete"]) == ("too-many-records", False)
    assert (await rotated.retire(1, force=True))["complete"] is False


async def test_others_have_their_turn_while_the_record_is_read(rotated: KeyRoom) -> None:
    for number in range(25):
        await rotated.release(2, at=NOW - number * HOUR)
    await rotated.retire(1)
    assert rotated.pauses == 2


async def test_an_app_that_the_policy_pins_keeps_its_epoch(rotated: KeyRoom) -> None:
    of_kinds = documents()
    of_kinds["app"]["epoch"] = 1
    rotated.policies.policy = policy_of(of_kinds)
    error = await refused(rotated.retire(1), EpochInUse)
    assert (error.reason, error.details["pinned"]) == ("epoch-pinned", [APP_ID.hex()])
    of_kinds["app"]["epoch"] = 2
    rotated.policies.policy = policy_of(of_kinds)
    await rotated.retire(1)


async def test_a_policy_that_cannot_be_told_may_pin_anything(rotated: KeyRoom) -> None:
    rotated.policies.broken = PolicyUntrusted("an older database")
    error = await refused(rotated.retire(1), EpochInUse)
    assert (error.reason, error.details["pinned"]) == ("epoch-pins-unknown", None)
    assert (await rotated.retire(1, force=True))["pinned"] is None


@pytest.mark.parametrize("asked_at", [NOW, NOW - 9 * DAY], ids=["just now", "long before"])
async def test_whoever_takes_the_epoch_while_the_record_is_read_is_not_missed(
    rotated: KeyRoom, asked_at: datetime
) -> None:
    """Also one that asked before all that was read by then, and was recorded only now."""
    for number in range(10):
        await rotated.release(2, at=NOW - number * HOUR)
    scanning, recorded = asyncio.Barrier(2), asyncio.Barrier(2)

    async def held() -> None:
        await scanning.wait()
        await recorded.wait()

    work = replace(rotated.work, pause=held)
    ending = asyncio.create_task(work.retire(ADMIN, 1, seen_within=MONTH, force=False))
    await scanning.wait()
    await rotated.release(1, at=asked_at, instance_id=INSTANCES[1])
    await recorded.wait()
    error = await refused(ending, EpochInUse)
    assert [each["instance_id"] for each in error.details["guests"]] == [INSTANCES[1].hex()]
    assert await rotated.states() == ["available", "current"]


@pytest.mark.parametrize("force", [False, True])
async def test_whoever_takes_the_epoch_after_the_record_was_read_is_not_missed(
    rotated: KeyRoom, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    read, recorded = asyncio.Barrier(2), asyncio.Barrier(2)

    async def held() -> None:
        await read.wait()
        await recorded.wait()

    monkeypatch.setattr(rotated.policies, "refresh", held)
    ending = asyncio.create_task(rotated.retire(1, force=force))
    await read.wait()
    await rotated.release(1, instance_id=INSTANCES[1])
    await recorded.wait()
    outcome = await ending if force else (await refused(ending, EpochInUse)).details
    assert [each["instance_id"] for each in outcome["guests"]] == [INSTANCES[1].hex()]
    assert outcome["count"] == 1
    assert (await rotated.states())[0] == ("retired" if force else "available")
    assert (await rotated.recorded())[-1] == ("keys-retire", "1", "done" if force else "epoch-in-use")


async def test_whoever_moves_while_the_record_is_read_is_not_left_behind(
    rotated: KeyRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rotated.release(1, at=NOW - HOUR)

    async def moves() -> None:
        await rotated.release(2)

    monkeypatch.setattr(rotated.policies, "refresh", moves)
    assert (await rotated.retire(1))["count"] == 0


async def test_many_that_take_the_epoch_while_it_ends_are_seen_or_get_nothing(rotated: KeyRoom) -> None:
    """Whatever the order: no key of epoch 1 is recorded after its end, and none before it is overlooked."""
    guests = [InstanceId(bytes([2, number]) * 10) for number in range(20)]

    async def take(guest: InstanceId) -> bool:
        for _ in range(guests.index(guest)):
            await asyncio.sleep(0.002)
        try:
            await rotated.release(1, instance_id=guest)
        except EpochsMoved:
            return False
        return True

    outcome, *got = await asyncio.gather(rotated.retire(1, force=True), *map(take, guests))
    left = {each["instance_id"] for each in outcome["guests"]}
    assert left == {guest.hex() for guest, keys in zip(guests, got, strict=True) if keys}
    with pytest.raises(EpochsMoved):
        await rotated.release(1)


async def test_of_two_that_retire_at_once_one_wins(rotated: KeyRoom) -> None:
    rotated.policies.barrier = asyncio.Barrier(2)
    other = rotated.work_on(rotated.store("other-anchor.json"))
    outcomes = await asyncio.gather(
        rotated.retire(1),
        other.retire(replace(ADMIN, name="bob"), 1, seen_within=DAY, force=False),
        return_exceptions=True,
    )
    [lost] = [each for each in outcomes if isinstance(each, KeysConflict)]
    [won] = [each for each in outcomes if isinstance(each, dict)]
    assert f"{won['epoch']['retired_by']} retired epoch 1" in lost.detail
    assert await rotated.states() == ["retired", "current"]


# --- rotation


async def test_rotation_says_who_took_which_epoch_when(rotated: KeyRoom) -> None:
    await rotated.release(1, at=NOW - 5 * DAY)
    await rotated.release(1, at=NOW - 4 * DAY)
    await rotated.release(1, 2, at=NOW - 3 * DAY)
    await rotated.release(1, at=NOW - 2 * DAY, instance_id=INSTANCES[1])
    await rotated.release(2, at=NOW - DAY, app_id=OTHER_APP, chip_id=None)
    await rotated.release(1, at=NOW - 31 * DAY, instance_id=INSTANCES[2])
    shown = await rotated.work.rotation(ADMIN, app=None, since=MONTH)
    first, second, third = shown.pop("guests")
    assert first == {
        "app_id": APP_ID.hex(),
        "instance_id": INSTANCES[1].hex(),
        "chip_id": CHIP.hex(),
        "epochs": {"1": timestamp(NOW - 2 * DAY)},
        "epoch": 1,
        "last_seen": timestamp(NOW - 2 * DAY),
    }
    assert (second["app_id"], second["chip_id"], second["epoch"]) == (OTHER_APP.hex(), None, 2)
    assert third["epochs"] == {"1": timestamp(NOW - 3 * DAY), "2": timestamp(NOW - 3 * DAY)}
    assert shown == {
        "since": timestamp(NOW - MONTH),
        "count": 3,
        "by_epoch": {"1": 1, "2": 2},
        "records": 5,
        "damaged": 0,
        "complete": True,
    }
    of_app = await rotated.work.rotation(ADMIN, app=OTHER_APP.hex(), since=MONTH)
    assert [each["app_id"] for each in of_app["guests"]] == [OTHER_APP.hex()]
    assert (of_app["count"], of_app["by_epoch"]) == (1, {"2": 1})


@pytest.mark.parametrize("app", ["", "86", "zz" * 20, "86" * 19, "00" * 20])
async def test_an_app_that_is_none_is_refused(room: KeyRoom, app: str) -> None:
    with pytest.raises(MalformedRequest):
        await room.work.rotation(ADMIN, app=app, since=DAY)


async def test_all_time_there_is_can_be_asked_for(rotated: KeyRoom) -> None:
    await rotated.release(2)
    assert (await rotated.work.rotation(ADMIN, app=None, since=timedelta.max))["count"] == 1
    await rotated.retire(1, within=timedelta.max)


async def test_of_very_many_guests_those_furthest_behind_are_listed(
    rotated: KeyRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation_module, "MOST_LISTED", 2)
    for number, epoch in enumerate((2, 1, 2, 1)):
        await rotated.release(epoch, at=NOW - number * HOUR, instance_id=INSTANCES[number])
    shown = await rotated.work.rotation(ADMIN, app=None, since=MONTH)
    assert [each["instance_id"] for each in shown["guests"]] == [INSTANCES[1].hex(), INSTANCES[3].hex()]
    assert (shown["count"], shown["by_epoch"]) == (4, {"1": 2, "2": 2})


# --- the identity


async def test_an_identity_follows_another(room: KeyRoom) -> None:
    second = await room.work.rotate_identity(ADMIN)
    assert second == {"generation": 2, "identity": b64url(await identity(2))}
    assert (await room.work.rotate_identity(ADMIN))["generation"] == 3
    shown = (await room.work.keys(ADMIN))["identity"]
    assert shown["generation"] == 3
    assert shown["generations"][1] == {**second, "made_at": timestamp(NOW), "made_by": "anna"}
    assert (await room.work.keys(ADMIN))["current"] == 1, "epochs do not follow"
    assert await room.recorded() == [
        ("keys-rotate-identity", "2", "done"),
        ("keys-rotate-identity", "3", "done"),
    ]


async def test_no_more_identities_follow_than_guests_do(room: KeyRoom) -> None:
    for _ in range(MAX_HAND_OVERS):
        await room.work.rotate_identity(ADMIN)
    error = await refused(room.work.rotate_identity(ADMIN))
    assert error.reason == "too-many-generations"
    last = str(MAX_HAND_OVERS + 2)
    assert (await room.recorded())[-1] == ("keys-rotate-identity", last, "keys-conflict")
    assert len(await room.register.generations()) == MAX_HAND_OVERS


async def test_of_two_new_identities_at_once_one_stays(room: KeyRoom) -> None:
    barrier = asyncio.Barrier(2)

    async def together(generation: int) -> bytes:
        await barrier.wait()
        return await identity(generation)

    works = [
        replace(room.work_on(room.store(anchor)), identities=together)
        for anchor in ("anchor.json", "other-anchor.json")
    ]
    outcomes = await asyncio.gather(*(each.rotate_identity(ADMIN) for each in works), return_exceptions=True)
    [lost] = [each for each in outcomes if isinstance(each, KeysConflict)]
    assert "made generation 2" in lost.detail
    assert (await room.work.keys(ADMIN))["identity"]["generation"] == 2


async def test_after_a_rotation_by_a_clock_that_ran_ahead_the_way_out_is_to_rotate(room: KeyRoom) -> None:
    """The epoch was in use at once, and waits again."""
    room.now = NOW + 400 * DAY
    await room.rotate()
    room.now = NOW
    for attempt in (room.work.keys(ADMIN), room.rotate(NOW + DAY)):
        with pytest.raises(LedgerUnavailable, match="kms keys rotate") as found:
            await attempt
        assert found.value.reason == "epochs-untrusted"
    assert (await room.rotate())["epoch"] == 2
    assert await room.states() == ["available", "current"]
    assert room.versions.made == [2]


async def test_epochs_that_must_not_be_used_are_not_worked_on(rotated: KeyRoom) -> None:
    async with rotated.engine.begin() as connection:
        await connection.execute(text("UPDATE key_epochs SET made_by = 'mallory'"))
    for attempt in (rotated.work.keys(ADMIN), rotated.rotate(), rotated.retire(1, force=True)):
        with pytest.raises(LedgerUnavailable) as found:
            await attempt
        assert found.value.reason == "epochs-untrusted"
    assert rotated.versions.made == [2]
