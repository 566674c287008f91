"""What operators are told of releases and refusals that a server really made, and of evidence."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
import yaml
from sqlalchemy import text

from kms.administration.records import RecordAdministration
from kms.database.engine import writing
from kms.database.records import DecisionRecords
from kms.errors import Forbidden, MalformedEvidence, MalformedRequest, NotFound
from kms.http.record_schemas import SummaryBody
from kms.ledger.recorded import RecordDamaged
from kms.measurement.launch import LaunchDescription
from kms.operator_ports import RecordFilter
from kms.operators import Actor, Proof, Role
from kms.policy.history import ChangeKind
from kms.policy.revision import Revision
from kms.request import report_data
from kms.simulator.chip import SimulatedChip, simulated_chip_id
from kms.simulator.machine import SimulatedMachine
from tests.recording import recorder
from tests.unit.operator_samples import MemoryActions, journal
from tests.world import (
    APP_ID,
    CMDLINE,
    COMPOSE_HASH,
    NOW,
    Answer,
    World,
    describe_image,
    document,
    image_document,
    tampered,
)

OPERATOR = Actor(name="olga", role=Role.OPERATOR, proof=Proof.TOKEN, client="192.0.2.7")
VIEWER = Actor(name="victor", role=Role.VIEWER, proof=Proof.TOKEN)
TEMPLATE = "console=ttyS0 app={app_id} compose={compose_hash}"


async def put(world: World, *documents: dict[str, Any]) -> dict[str, bytes]:
    """Put documents in force, one file for each kind in block style, and give the files."""
    files: dict[str, bytes] = {}
    for each in documents:
        name = f"{each['kind']}.yaml"
        text = yaml.safe_dump(each, sort_keys=False, default_flow_style=False).encode()
        files[name] = files.get(name, b"# by hand\n") + b"---\n" + text
    revision = Revision.from_files(files, development=True)
    changer = world.changer
    prepared = await changer.prepare(
        await changer.standing(), revision, files=files, kind=ChangeKind.APPLY, author="t", message=""
    )
    await changer.put(prepared, None)
    await world.followed.refresh()
    return files


def work(world: World, actions: MemoryActions | None = None) -> RecordAdministration:
    desk = world.desk
    return RecordAdministration(
        records=DecisionRecords(world.engine, recorder()),
        history=world.changer.history,
        policies=world.followed,
        authenticator=desk.authenticator,
        advisories=desk.advisories,
        journal=journal(actions or MemoryActions()),
        clock=desk.clock,
        beside=asyncio.to_thread,
        epochs=desk.epochs,
        identities=desk.identities,
        development=desk.development,
    )


async def explain(world: World, answer: Answer) -> dict[str, Any]:
    return await work(world).explain(OPERATOR, answer.body.get("release_id") or answer.body["request_id"])


def check(explained: dict[str, Any], name: str) -> dict[str, Any]:
    [found] = [each for each in explained["checks"] if each["name"] == name]
    return dict(found)


def line(files: dict[str, bytes], says: dict[str, Any]) -> str:
    return str(files[says["file"]].decode().splitlines()[says["line"] - 1])


def without(members: dict[str, Any], *left_out: str) -> dict[str, Any]:
    return {name: value for name, value in members.items() if name not in left_out}


async def verify(
    world: World, evidence: Any, request: bytes | None = None, at: datetime | None = None
) -> dict[str, Any]:
    return await work(world).verify(OPERATOR, evidence, request=request, at=at)


async def test_a_chip_that_is_not_listed(world: World) -> None:
    files = await put(world, *world.default_policy(app={"chips": ["05" * 64, "06" * 64]}))
    answer = await world.ask()
    answer.check_refused(403, "policy-denied", "chip-not-listed")
    explained = await explain(world, answer)
    found = check(explained, "chip-listed")
    assert (found["passed"], found["reason"]) == (False, "chip-not-listed")
    assert found["wanted"] == f"[{'05' * 8}…, {'06' * 8}…]"
    says = found["says"]
    assert (says["document"], says["member"], says["file"]) == ("app payments", "chips", "app.yaml")
    assert line(files, says) == "chips:"
    assert (explained["decision"], explained["code"], explained["nearest"]) == ("deny", "policy-denied", None)
    [record] = await world.records()
    assert explained["policy_revision"] == record.entry["policy_revision"] == await world.in_force()
    assert explained["boot_info"] == record.entry["boot_info"]
    assert [
        {name: each[name] for name in ("name", "passed", "detail", "reason")} for each in explained["checks"]
    ] == (record.entry["checks"])


async def test_a_tcb_that_is_too_low(world: World) -> None:
    levels = dict(world.chip.reported_tcb.components())
    levels["microcode"] += 1
    files = await put(world, *world.default_policy(tcb={"products": {"milan": levels}}))
    answer = await world.ask()
    answer.check_refused(403, "policy-denied", "tcb-reported-too-low", "tcb-committed-too-low")
    found = check(await explain(world, answer), "tcb-reported")
    assert found["wanted"] == f"microcode at least {levels['microcode']}"
    assert (found["says"]["document"], found["says"]["member"]) == ("tcb fleet", "products.milan.microcode")
    assert line(files, found["says"]) == f"    microcode: {levels['microcode']}"


async def test_a_release_says_what_every_policy_check_went_by(world: World) -> None:
    files = await put(world, *world.default_policy())
    answer = await world.ask()
    assert answer.status == 200
    explained = await explain(world, answer)
    assert (explained["decision"], explained["code"]) == ("allow", None)
    told = {each["name"]: each for each in explained["checks"] if each["wanted"] is not None}
    [record] = await world.records()
    names = [each["name"] for each in record.entry["checks"]]
    # From here on a policy is asked; what came before is the report's own format and signatures.
    assert set(names[names.index("measurement-known") :]) | {"app-document"} == set(told)
    for each in told.values():
        if each["says"] is not None and each["says"]["file"] is not None:
            assert line(files, each["says"])
    assert told["epoch"]["wanted"] == "left out: default the newest"
    assert told["compose-listed"]["wanted"] == f"[{COMPOSE_HASH}]"


async def test_the_policy_that_judged_is_told_and_not_the_one_in_force_now(world: World) -> None:
    await put(world, *world.default_policy(app={"chips": ["05" * 64]}))
    answer = await world.ask()
    judged = await world.in_force()
    await put(world, *world.default_policy(app={"chips": "any"}))
    explained = await explain(world, answer)
    assert explained["policy_revision"] == judged
    assert check(explained, "chip-listed")["wanted"] == f"[{'05' * 8}…]"


async def test_a_policy_without_files_is_told_without_lines(world: World) -> None:
    await world.apply_changed(app={"chips": ["05" * 64]})
    says = check(await explain(world, await world.ask()), "chip-listed")["says"]
    assert says == {
        "document": "app payments",
        "member": "chips",
        "file": None,
        "line": None,
        "column": None,
    }


async def test_an_app_that_is_not_listed(world: World) -> None:
    other = "cd" * 20
    answer = await world.ask(world.launch(app_document=document(app_id=other)))
    found = check(await explain(world, answer), "app-listed")
    assert (found["wanted"], found["says"]) == (f"an app document with the id {other}", None)


NEAREST = "the nearest known image is os-1; "
INCONCLUSIVE = "so look at firmware, kernel, initrd or command line (a digest does not tell them apart)"
UNKNOWN: dict[str, tuple[LaunchDescription, str]] = {
    "a word less": (
        describe_image(CMDLINE.replace(" ro", "")),
        f"{NEAREST}no other vCPU count, vCPU type or guest features explains it, {INCONCLUSIVE}",
    ),
    "a newline more": (
        describe_image(CMDLINE + "\n"),
        NEAREST + r"command line: …'=/dev/vda ro\n' was launched, not …'=/dev/vda ro'",
    ),
}


@pytest.mark.parametrize(("description", "words"), UNKNOWN.values(), ids=UNKNOWN.keys())
async def test_an_unknown_measurement(world: World, description: LaunchDescription, words: str) -> None:
    answer = await world.ask(world.launch(description=description))
    answer.check_refused(403, "measurement-unknown", "measurement-unknown")
    explained = await explain(world, answer)
    assert explained["nearest"] == words
    assert (
        check(explained, "measurement-known")["wanted"] == "the measurement of one of 1 documented image(s)"
    )


async def test_a_word_less_in_the_command_line_that_the_guest_describes(world: World) -> None:
    """A description that shows the measurement is more than a hint: then the word itself is told."""
    description = describe_image(CMDLINE.replace(" ro", ""))
    machine = world.launch(description=description)
    evidence = {**machine.evidence(bytes(64)), "launch": {"description": description.to_json()}}
    explained = await verify(world, evidence)
    assert explained["code"] == "measurement-unknown"
    assert explained["nearest"].startswith(f"{NEAREST}command line: ")
    assert "was launched, not" in explained["nearest"]
    # One that does not show it is the guest's word, and counts for nothing.
    lie = {**evidence, "launch": {"description": describe_image(seed=b"lie").to_json()}}
    explained = await verify(world, lie)
    assert "a digest does not tell them apart" in explained["nearest"]


async def test_the_nearest_image_is_the_app_s_own(world: World) -> None:
    """Of many images the app's are looked at first."""
    others = [image_document(f"a-{n}", describe_image(seed=b"%d" % n)) for n in range(6)]
    await put(world, *world.default_policy(), *others)
    answer = await world.ask(world.launch(description=describe_image(CMDLINE.replace(" ro", ""))))
    assert (await explain(world, answer))["nearest"].startswith(f"{NEAREST}no other")
    answer = await world.ask(world.launch(description=describe_image(CMDLINE + " ", seed=b"3")))
    assert (await explain(world, answer))["nearest"].startswith(
        "the nearest known image is a-3; command line"
    )


async def test_what_was_only_claimed_is_explained_too(world: World) -> None:
    """Without certificates a report whose claims are refused is refused unproven; many hosts send none."""
    files = await put(world, *world.default_policy())
    stranger = SimulatedChip.typical(
        world.chip.hierarchy,
        chip_id=simulated_chip_id(world.chip.hierarchy.product, b"chip 9"),
        now=NOW - timedelta(days=1),
    )
    request = await world.request()
    evidence = without(world.launch(chip=stranger).evidence(report_data(request)), "certificate_table")
    answer = await world.post(request, evidence)
    answer.check_refused(403, "policy-denied", "chip-not-listed")
    explained = await explain(world, answer)
    assert explained["boot_info"] is None
    found = check(explained, "chip-listed")
    assert (found["says"]["document"], line(files, found["says"])) == ("app payments", "chips:")
    assert explained["policy_revision"] == await world.in_force()

    request = await world.request()
    other = world.launch(chip=stranger, description=describe_image(CMDLINE + "\n"))
    answer = await world.post(request, without(other.evidence(report_data(request)), "certificate_table"))
    answer.check_refused(403, "measurement-unknown", "measurement-unknown")
    assert "command line: " in (await explain(world, answer))["nearest"]


async def test_a_forged_report_has_no_policy_to_point_at(world: World) -> None:
    request = await world.request()
    evidence = tampered(world.machine, report_data(request), {0x010: b"\x01"})
    answer = await world.post(request, evidence)
    assert answer.code == "evidence-untrusted"
    explained = await explain(world, answer)
    assert (explained["decision"], explained["policy_revision"], explained["boot_info"]) == (
        "deny",
        None,
        None,
    )
    assert {each["wanted"] for each in explained["checks"] if each["name"] != "app-document"} == {None}
    verified = await verify(world, evidence, request)
    assert (verified["decision"], verified["code"]) == ("deny", "evidence-untrusted")


CASES: dict[str, Callable[[World], tuple[SimulatedMachine, dict[str, Any]]]] = {
    "honest": lambda world: (world.machine, {}),
    "no document": lambda world: (world.launch(app_document=None), {}),
    "another compose": lambda world: (world.launch(app_document=document(compose_hash="ab" * 32)), {}),
    "a key that is not allowed": lambda world: (
        world.machine,
        {"keys": [{"name": "custom:other", "scope": "app"}]},
    ),
    "an epoch that does not exist": lambda world: (
        world.machine,
        {"keys": [{"name": "disk", "scope": "app", "epoch": 9}]},
    ),
    "an unknown launch": lambda world: (world.launch(description=describe_image(seed=b"other")), {}),
    "an unknown launch without document": lambda world: (
        world.launch(app_document=None, description=describe_image(seed=b"other")),
        {},
    ),
    "a claim that disagrees": lambda world: (world.machine, {"app": {"id": "cd" * 20}}),
}


@pytest.mark.parametrize("make", CASES.values(), ids=CASES.keys())
async def test_evidence_is_judged_as_the_release_is(
    world: World, make: Callable[[World], tuple[SimulatedMachine, dict[str, Any]]]
) -> None:
    machine, members = make(world)
    request = await world.request(**members)
    evidence = machine.evidence(report_data(request))
    explained = await verify(world, evidence, request)
    assert await world.spent() == 0
    assert await world.records() == []
    answer = await world.post(request, evidence)
    assert explained["decision"] == ("allow" if answer.status == 200 else "deny")
    assert explained["code"] == answer.code
    if answer.status != 200:
        assert set(answer.reasons) <= {each["reason"] for each in explained["checks"] if not each["passed"]}
    recorded = await explain(world, answer)
    told = ["decision", "code"]
    if recorded["boot_info"] is not None:  # else the release stopped earlier, and less was looked at
        told += ["policy_revision", "nearest", "boot_info"]
    assert {name: explained[name] for name in told} == {name: recorded[name] for name in told}


async def test_an_image_by_hash_alone_is_found_by_the_guest_s_description(world: World) -> None:
    description = describe_image(seed=b"alone")
    hashed = image_document("x", description)["os_image_hash"]
    documents = [each for each in world.default_policy(app={"images": [hashed]}) if each["kind"] != "image"]
    await put(world, *documents)
    request = await world.request()
    evidence = world.launch(description=description).evidence(report_data(request))
    explained = await verify(world, evidence, request)
    assert explained["code"] == "measurement-unknown"
    evidence["launch"] = {"description": description.to_json()}
    explained = await verify(world, evidence, request)
    assert explained["decision"] == "allow"
    assert check(explained, "binding-enforced")["says"]["document"] == "image by hash alone (built in)"


async def test_without_a_request_neither_keys_nor_binding_to_one_are_judged(world: World) -> None:
    explained = await verify(world, world.machine.evidence(bytes(64)))
    assert (explained["decision"], explained["release_id"]) == ("allow", None)
    names = {each["name"] for each in explained["checks"]}
    assert not names & {"report-data", "keys-asked", "key-allowed", "epoch"}


async def test_evidence_for_another_request_is_denied(world: World) -> None:
    request = await world.request()
    explained = await work(world).verify(
        OPERATOR, world.machine.evidence(bytes(64)), request=request, at=None
    )
    assert (explained["decision"], explained["code"]) == ("deny", "evidence-untrusted")
    assert not check(explained, "report-data")["passed"]


async def test_at_another_time(world: World) -> None:
    expires = NOW + timedelta(days=1)
    await put(world, *world.default_policy(app={"expires_at": expires.strftime("%Y-%m-%dT%H:%M:%SZ")}))
    evidence = world.machine.evidence(bytes(64))
    for at, decision in ((None, "allow"), (expires - timedelta(seconds=1), "allow"), (expires, "deny")):
        explained = await verify(world, evidence, at=at)
        assert explained["decision"] == decision
        assert check(explained, "app-current")["wanted"] == "2026-11-22T12:00:00Z"


async def test_a_certificate_that_cannot_be_had_is_said(world: World) -> None:
    """Whatever the report claims it is sought, so that the operator learns why guests are told to wait."""
    evidence = without(
        world.launch(description=describe_image(seed=b"unknown")).evidence(bytes(64)),
        "certificate_table",
    )
    explained = await verify(world, evidence)
    assert (explained["decision"], explained["code"]) == ("deny", "collateral-unavailable")
    assert "no service is configured" in check(explained, "collateral")["detail"]
    assert not check(explained, "endorsement-certificate")["passed"]


async def test_verifying_stores_nothing(world: World) -> None:
    evidence = world.machine.evidence(bytes(64))
    bare = without(evidence, "certificate_table")
    assert (await verify(world, evidence))["decision"] == "allow"
    assert (await verify(world, bare))["decision"] == "deny"
    # A guest's release does store them, and then they serve operators too.
    assert (await world.ask()).status == 200
    assert (await verify(world, bare))["decision"] == "allow"


@pytest.mark.parametrize(
    ("evidence", "request_bytes", "error"),
    [
        ({}, None, MalformedEvidence),
        ([], None, MalformedEvidence),
        ({"tee": "sev-snp", "report": "AAAA"}, None, MalformedEvidence),
        (None, b"{}", MalformedRequest),
        (None, b"\xff", MalformedRequest),
    ],
)
async def test_malformed_evidence(
    world: World, evidence: Any, request_bytes: bytes | None, error: type[Exception]
) -> None:
    evidence = world.machine.evidence(bytes(64)) if evidence is None else evidence
    with pytest.raises(error):
        await verify(world, evidence, request_bytes)


async def test_releases_are_listed_page_by_page(world: World) -> None:
    for _ in range(3):
        assert (await world.ask()).status == 200
    await world.ask(world.launch(app_document=document(app_id="cd" * 20)))
    request = await world.request()
    await world.post(request, tampered(world.machine, report_data(request), {0x010: b"\x01"}))
    expected = [json.loads(record.raw) for record in await world.records()]
    expected.sort(key=lambda entry: (entry["decided_at"], entry["release_id"]), reverse=True)
    seen: list[dict[str, Any]] = []
    wanted = RecordFilter()
    while True:
        page: dict[str, Any] = await work(world).releases(OPERATOR, wanted, limit=2)
        seen += page["releases"]
        if page["next"] is None:
            break
        assert len(page["releases"]) == 2
        assert page["next"] == seen[-1]["release_id"]
        wanted = RecordFilter(before=page["next"])
    assert [each["release_id"] for each in seen] == [entry["release_id"] for entry in expected]
    for each, entry in zip(seen, expected, strict=True):
        proven = entry["boot_info"] or {}
        assert each == {
            **{
                name: entry[name]
                for name in (
                    "release_id",
                    "decided_at",
                    "outcome",
                    "code",
                    "reasons",
                    "policy_revision",
                    "client",
                )
            },
            "app_id": proven.get("app_id"),
            "image": proven.get("image"),
            "chip_id": proven.get("chip_id"),
        }
    of_app: dict[str, Any] = await work(world).releases(OPERATOR, RecordFilter(app=APP_ID), limit=50)
    assert (len(of_app["releases"]), of_app["next"]) == (3, None)


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: "{",
        lambda _: "[]",
        lambda _: 7,
        lambda entry: json.dumps(without(entry, "client")),
        lambda entry: json.dumps(without(entry, "release_id")),
        lambda entry: json.dumps({**entry, "outcome": ["released"]}),
        lambda entry: json.dumps({**entry, "boot_info": without(entry["boot_info"], "chip_id")}),
        lambda entry: json.dumps({**entry, "decided_at": "2020-01-01T00:00:00.000000Z"}),
    ],
)
async def test_a_damaged_record_is_listed_as_that_and_hides_no_other(
    world: World, damage: Callable[[dict[str, Any]], object]
) -> None:
    for _ in range(3):
        assert (await world.ask()).status == 200
    office = work(world)
    whole: list[Any] = (await office.releases(OPERATOR, RecordFilter(), limit=3))["releases"]  # type: ignore[assignment]
    newest, hurt, oldest = whole
    entry = await office.release(OPERATOR, hurt["release_id"])
    async with writing(world.engine) as connection:
        # By hand: SQLite keeps values of any type.
        change = text("UPDATE entries SET entry = :entry WHERE id = :id")
        await connection.execute(change, {"entry": damage(entry), "id": hurt["release_id"]})
    pages, before = [], None
    for _ in range(3):
        page: dict[str, Any] = await office.releases(OPERATOR, RecordFilter(before=before), limit=1)
        pages += page["releases"]
        before = page["next"]
    unreadable = {
        **dict.fromkeys(hurt),
        "release_id": hurt["release_id"],
        "decided_at": hurt["decided_at"],
        "outcome": "unreadable",
        "reasons": [],
    }
    assert (pages, before) == ([newest, unreadable, oldest], None)
    SummaryBody.model_validate(unreadable)
    for call in (office.release, office.explain):
        with pytest.raises(RecordDamaged, match=hurt["release_id"]):
            await call(OPERATOR, hurt["release_id"])


async def test_a_record_is_given_whole_and_what_was_read_is_recorded(world: World) -> None:
    answer = await world.ask()
    actions = MemoryActions()
    office, release_id = work(world, actions), answer.body["release_id"]
    [record] = await world.records()
    assert await office.release(OPERATOR, release_id) == record.entry
    await office.explain(OPERATOR, release_id)
    await office.verify(OPERATOR, world.machine.evidence(bytes(64)), request=None, at=None)
    await office.releases(OPERATOR, RecordFilter(), limit=1)
    assert [(each.action, each.target, each.outcome) for each in actions.recorded] == [
        ("release-read", release_id, "done"),
        ("release-explain", release_id, "done"),
        ("evidence-verify", None, "done"),
    ]
    assert actions.recorded[-1].details == {"decision": "allow", "code": None}


async def test_a_viewer_reads_no_records_and_the_attempt_is_recorded(world: World) -> None:
    actions = MemoryActions()
    office = work(world, actions)
    attempts: tuple[Callable[[], Awaitable[Any]], ...] = (
        lambda: office.releases(VIEWER, RecordFilter(), limit=1),
        lambda: office.release(VIEWER, "00" * 16),
        lambda: office.explain(VIEWER, "00" * 16),
        lambda: office.verify(VIEWER, {}, request=None, at=None),
    )
    for attempt in attempts:
        with pytest.raises(Forbidden):
            await attempt()
    assert [(each.action, each.outcome) for each in actions.recorded] == [
        ("release-read", "forbidden"),
        ("release-read", "forbidden"),
        ("release-explain", "forbidden"),
        ("evidence-verify", "forbidden"),
    ]


async def test_an_id_that_nobody_was_given(world: World) -> None:
    for call in (work(world).release, work(world).explain):
        with pytest.raises(NotFound):
            await call(OPERATOR, "00" * 16)
