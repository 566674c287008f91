"""Policy work: one way to change what is in force, with history, and nothing lost on the way."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kms.errors import Forbidden, NotFound, OperatorRefusal, PolicyConflict, PolicyGated, PolicyRefused
from kms.policy.history import PolicySignature
from kms.policy.revision import Revision, written
from kms.policy.statement import Statement
from kms.policy.trust import PolicyTrust, sign_statement
from tests.changer import follow, open_changer
from tests.unit.administration.conftest import KEYS, OPERATOR, TRUST, VIEWER, PolicyRoom
from tests.world import COMPOSE_HASH, NOW, describe_image, image_document

CHIP, OTHER_CHIP = "11" * 64, "22" * 64
TCB = """---
kind: tcb
name: fleet
products: {milan: {bootloader: 4, tee: 0, snp: 24, microcode: 219}}
check: [reported]
provisional_firmware: forbid
"""


def policy(*chips: str, more: str = "") -> dict[str, bytes]:
    """Give a small policy as an operator writes it, with a comment."""
    listed = ", ".join(f'"{chip}"' for chip in chips)
    app = f"""# the payments team
kind: app
id: "{"86" * 20}"
name: payments
compose: ["{COMPOSE_HASH}"]
images: [os-1]
chips: [{listed}]
tcb: fleet
binding: [host-data]
keys: [disk]
"""
    image = written([image_document("os-1", describe_image())])
    return {"app.yaml": app.encode(), "image.yaml": image, "tcb.yaml": (TCB + more).encode()}


def digest(files: dict[str, bytes]) -> str:
    return Revision.from_files(files, development=False).digest


async def apply(room: PolicyRoom, files: dict[str, bytes], message: str = "", **options: Any) -> Any:
    return await room.work.apply(OPERATOR, files, message=message, expect=None, **options)


def details(refusal: OperatorRefusal) -> Any:
    return refusal.details


async def test_a_policy_comes_into_force_with_its_author_and_is_kept_as_it_was_written(
    room: PolicyRoom,
) -> None:
    outcome = await apply(room, policy(CHIP), "first")
    assert (outcome["applied"], outcome["changed"], outcome["sequence"]) == (True, True, 1)
    status = await room.work.status(VIEWER)
    assert status["active"] == {
        "sequence": 1,
        "revision": digest(policy(CHIP)),
        "previous": None,
        "intent": "widen",
        "kind": "apply",
        "author": "olga (token)",
        "message": "first",
        "made_at": "2026-11-21T12:00:00.000000Z",
        "signatures": [],
    }
    shown = await room.work.revision(VIEWER, digest(policy(CHIP)))
    assert shown["files"] == {name: content.decode() for name, content in policy(CHIP).items()}
    assert await room.recorded() == [("olga", "policy-apply", "done")]


async def test_applying_what_is_in_force_changes_nothing(room: PolicyRoom) -> None:
    await apply(room, policy(CHIP))
    again = await apply(room, policy(CHIP))
    assert (again["applied"], again["changed"], again["sequence"]) == (True, False, 1)
    assert len((await room.work.history(VIEWER, before=None, limit=9))["changes"]) == 1


async def test_history_is_paged_newest_first(room: PolicyRoom) -> None:
    for chips in ((CHIP,), (CHIP, OTHER_CHIP), (OTHER_CHIP,)):
        await apply(room, policy(*chips))
    first = await room.work.history(VIEWER, before=None, limit=2)
    assert [(each["sequence"], each["intent"]) for each in first["changes"]] == [(3, "narrow"), (2, "widen")]
    rest = await room.work.history(VIEWER, before=2, limit=2)
    assert [each["sequence"] for each in rest["changes"]] == [1]
    assert rest["next"] is None


async def test_a_policy_with_errors_is_refused_with_the_findings(room: PolicyRoom) -> None:
    broken = policy(CHIP) | {"tcb.yaml": b"kind: tcb\nname: fleet\nproduct: {}\n"}
    with pytest.raises(PolicyRefused) as told:
        await apply(room, broken)
    assert {each["file"] for each in details(told.value)["findings"]} == {"tcb.yaml"}
    assert (await room.work.status(VIEWER))["active"] is None


async def test_of_two_operators_at_once_one_wins_and_the_other_is_told_what_changed(room: PolicyRoom) -> None:
    await apply(room, policy(CHIP))
    expected = digest(policy(CHIP))
    both = [policy(CHIP, OTHER_CHIP), policy(OTHER_CHIP)]
    results = await asyncio.gather(
        *(room.work.apply(OPERATOR, files, message="", expect=expected) for files in both),
        return_exceptions=True,
    )
    lost = [each for each in results if isinstance(each, PolicyConflict)]
    won = [each for each in results if isinstance(each, dict)]
    assert (len(won), len(lost)) == (1, 1)
    assert details(lost[0])["active"]["revision"] == won[0]["revision"]
    assert details(lost[0])["diff"]["changes"] == won[0]["diff"]["changes"]
    assert [each[2] for each in await room.recorded()] == ["done", "done", "policy-conflict"]
    # The same a moment later, when nothing races any more.
    with pytest.raises(PolicyConflict):
        await room.work.apply(OPERATOR, policy(CHIP), message="", expect=expected)
    with pytest.raises(PolicyConflict):
        await room.work.apply(OPERATOR, policy(CHIP), message="", expect="none")


async def test_a_rollback_is_a_new_change_and_drops_no_revocation(room: PolicyRoom) -> None:
    await apply(room, policy(CHIP))
    await room.work.revoke(OPERATOR, "chip", OTHER_CHIP, reason="lost")
    await apply(room, policy(CHIP, OTHER_CHIP, more=REVOKED_IN_FOLDER))
    outcome = await room.work.rollback(OPERATOR, digest(policy(CHIP)), message="back", expect=None)
    assert outcome["sequence"] == 4
    shown = await room.work.revision(VIEWER, str(outcome["revision"]))
    revoked = [each for each in shown["documents"] if each["kind"] == "revoked"]
    assert [each["chips"] for each in revoked] == [[OTHER_CHIP]]
    # Its files are its own: written down again they give the same revision.
    assert digest({name: text.encode() for name, text in shown["files"].items()}) == outcome["revision"]


REVOKED_IN_FOLDER = f'---\nkind: revoked\nname: emergency\nchips: ["{OTHER_CHIP}"]\n'


async def test_a_folder_that_forgot_a_revocation_is_refused_unless_that_is_meant(room: PolicyRoom) -> None:
    await apply(room, policy(CHIP, OTHER_CHIP))
    await room.work.revoke(OPERATOR, "chip", OTHER_CHIP, reason="lost")
    with pytest.raises(PolicyRefused) as told:
        await apply(room, policy(CHIP, OTHER_CHIP))
    assert told.value.reason == "revocations-lifted"
    assert told.value.details == {"lifted": [f"chip {OTHER_CHIP}"]}
    lifted = await apply(room, policy(CHIP, OTHER_CHIP), lift_revocations=True)
    assert lifted["intent"] == "widen"


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("chip", OTHER_CHIP),
        ("measurement", "ab" * 48),
        ("app", "86" * 20),
        ("compose", COMPOSE_HASH),
        ("product", "genoa"),
        ("image", "os-1"),
        ("image", "cd" * 32),
    ],
)
async def test_everything_can_be_revoked_at_once(room: PolicyRoom, kind: str, value: str) -> None:
    await apply(room, policy(CHIP))
    outcome = await room.work.revoke(OPERATOR, kind, value, reason="a reason")
    assert (outcome["changed"], outcome["intent"]) == (True, "narrow")
    again = await room.work.revoke(OPERATOR, kind, value, reason="another reason")
    assert (again["changed"], again["sequence"]) == (False, 2)
    shown = await room.work.revision(VIEWER, str(outcome["revision"]))
    assert digest({name: text.encode() for name, text in shown["files"].items()}) == outcome["revision"]


@pytest.mark.parametrize(
    ("kind", "value"), [("chip", "11"), ("image", "nobody knows it"), ("product", "rome")]
)
async def test_what_is_none_of_its_kind_cannot_be_revoked(room: PolicyRoom, kind: str, value: str) -> None:
    await apply(room, policy(CHIP))
    with pytest.raises(PolicyRefused) as told:
        await room.work.revoke(OPERATOR, kind, value, reason="")
    assert details(told.value)["findings"]
    with pytest.raises(PolicyRefused):
        await room.work.revoke(OPERATOR, "everything", value, reason="")


async def test_a_gate_refuses_what_would_refuse_guests(room: PolicyRoom) -> None:
    await apply(room, policy(CHIP))
    room.rehearsed.newly_refused = ["payments"]
    with pytest.raises(PolicyGated) as told:
        await apply(room, policy(OTHER_CHIP), gate=timedelta(days=30))
    assert details(told.value)["what_if"]["newly_refused"] == ["payments"]
    assert room.rehearsed.asked == [digest(policy(OTHER_CHIP))]
    assert (await apply(room, policy(OTHER_CHIP)))["changed"] is True


async def test_a_role_that_may_not_is_refused_and_recorded(room: PolicyRoom) -> None:
    with pytest.raises(Forbidden):
        await room.work.apply(VIEWER, policy(CHIP), message="", expect=None)
    assert (await room.work.status(VIEWER))["active"] is None
    assert await room.recorded() == [("vera", "policy-apply", "forbidden")]


def signature(key: str, proposal: Mapping[str, Any]) -> PolicySignature:
    """Sign what a proposal says."""
    from kms.encoding import from_base64
    from kms.policy.history import Intent

    said = proposal["statement"]
    assert isinstance(said, dict)
    statement = Statement(
        revision=said["revision"],
        sequence=said["sequence"],
        previous=said["previous"],
        kms_identity=from_base64(said["kms_identity"]),
        intent=Intent(said["intent"]),
    )
    return sign_statement(statement, KEYS[key])


async def sign(room: PolicyRoom, revision: str, *names: str) -> dict[str, Any]:
    proposal: dict[str, Any] = await room.work.proposal(VIEWER, revision)
    for name in names:
        proposal = await room.work.sign(OPERATOR, revision, signature(name, proposal))
    return proposal


async def in_force(room: PolicyRoom, *chips: str) -> str:
    """Bring a policy into force with two signatures."""
    outcome = await apply(room, policy(*chips))
    assert outcome["applied"] is False
    await sign(room, digest(policy(*chips)), "alice", "bob")
    assert (await apply(room, policy(*chips)))["changed"] is True
    return digest(policy(*chips))


async def test_widening_waits_for_two_of_three(signed_room: PolicyRoom) -> None:
    outcome = await apply(signed_room, policy(CHIP))
    proposal = outcome["proposal"]
    assert isinstance(proposal, dict)
    assert (outcome["applied"], proposal["needed"], proposal["ready"]) == (False, 2, False)
    revision = digest(policy(CHIP))
    assert (await sign(signed_room, revision, "alice"))["ready"] is False
    assert (await apply(signed_room, policy(CHIP)))["applied"] is False
    assert (await sign(signed_room, revision, "alice"))["ready"] is False, "one key counts once"
    assert (await sign(signed_room, revision, "carol"))["ready"] is True
    outcome = await signed_room.work.apply(OPERATOR, revision, message="", expect="none")
    assert (outcome["applied"], outcome["sequence"]) == (True, 1)
    status = await signed_room.work.status(VIEWER)
    assert [each["key"] for each in status["active"]["signatures"]] == ["alice", "carol"]


async def test_narrowing_needs_one(signed_room: PolicyRoom) -> None:
    await in_force(signed_room, CHIP, OTHER_CHIP)
    waiting = await signed_room.work.revoke(OPERATOR, "chip", OTHER_CHIP, reason="lost")
    assert (waiting["applied"], waiting["proposal"]["needed"]) == (False, 1)
    await sign(signed_room, str(waiting["revision"]), "bob")
    done = await signed_room.work.revoke(OPERATOR, "chip", OTHER_CHIP, reason="lost")
    assert (done["applied"], done["sequence"], done["intent"]) == (True, 2, "narrow")


async def test_signatures_of_a_policy_that_was_overtaken_are_worth_nothing(signed_room: PolicyRoom) -> None:
    await in_force(signed_room, CHIP)
    wider = policy(CHIP, OTHER_CHIP)
    await apply(signed_room, wider)
    await sign(signed_room, digest(wider), "alice", "bob")
    revoked = await signed_room.work.revoke(OPERATOR, "chip", OTHER_CHIP, reason="lost")
    await sign(signed_room, str(revoked["revision"]), "carol")
    await signed_room.work.revoke(OPERATOR, "chip", OTHER_CHIP, reason="lost")
    with pytest.raises(NotFound):
        await signed_room.work.proposal(VIEWER, digest(wider))
    outcome = await apply(signed_room, wider, lift_revocations=True)
    assert (outcome["applied"], outcome["proposal"]["signatures"]) == (False, [])


async def test_a_signature_counts_only_by_a_trusted_key_over_this_statement(signed_room: PolicyRoom) -> None:
    await apply(signed_room, policy(CHIP))
    await apply(signed_room, policy(OTHER_CHIP))
    ours = await signed_room.work.proposal(VIEWER, digest(policy(CHIP)))
    theirs = await signed_room.work.proposal(VIEWER, digest(policy(OTHER_CHIP)))
    with pytest.raises(PolicyRefused) as told:
        await signed_room.work.sign(OPERATOR, digest(policy(CHIP)), signature("alice", theirs))
    assert told.value.reason == "signature-invalid"
    KEYS["mallory"] = Ed25519PrivateKey.generate()
    try:
        with pytest.raises(PolicyRefused) as told:
            await signed_room.work.sign(OPERATOR, digest(policy(CHIP)), signature("mallory", ours))
    finally:
        del KEYS["mallory"]
    assert told.value.reason == "key-not-trusted"
    assert [each[2] for each in await signed_room.recorded()][-2:] == ["signature-invalid", "key-not-trusted"]


async def test_keys_can_leave_the_trust_file_once_the_others_have_signed(signed_room: PolicyRoom) -> None:
    """What is in force comes into force anew: nothing changes but who stands for it."""
    await in_force(signed_room, CHIP)
    again = await apply(signed_room, policy(CHIP))
    assert (again["changed"], again["sequence"]) == (False, 1)
    await signed_room.work.propose(OPERATOR, policy(CHIP), message="alice leaves")
    await sign(signed_room, digest(policy(CHIP)), "bob")
    assert (await apply(signed_room, policy(CHIP)))["changed"] is False, "it takes the whole quorum"
    await sign(signed_room, digest(policy(CHIP)), "carol")
    renewed = await apply(signed_room, policy(CHIP))
    assert (renewed["changed"], renewed["sequence"]) == (True, 2)
    without_alice = PolicyTrust(keys={name: TRUST.keys[name] for name in ("bob", "carol")}, widen=2, narrow=1)
    changer = await open_changer(signed_room.engine, signed_room.folder / "new", lambda: NOW, without_alice)
    (signed_room.folder / "new").mkdir()
    await follow(changer).refresh()  # a new server, without an anchor


async def test_any_number_of_things_that_begin_alike_can_be_revoked(room: PolicyRoom) -> None:
    await apply(room, policy(CHIP))
    for number in range(15):
        await room.work.revoke(OPERATOR, "chip", "ab" * 60 + f"{number:08x}", reason="")
    assert (await room.work.status(VIEWER))["documents"]["revoked"] == 15


async def test_applying_what_is_in_force_changes_not_how_it_was_written_and_is_recorded(
    room: PolicyRoom,
) -> None:
    await apply(room, policy(CHIP))
    commented = {**policy(CHIP), "app.yaml": b"# approved by nobody\n" + policy(CHIP)["app.yaml"]}
    assert digest(commented) == digest(policy(CHIP))
    await apply(room, commented)
    shown = await room.work.revision(VIEWER, digest(policy(CHIP)))
    assert shown["files"]["app.yaml"].encode() == policy(CHIP)["app.yaml"]
    assert [each[2] for each in await room.recorded()] == ["done", "unchanged"]


async def test_a_gate_that_cannot_judge_everything_says_so(room: PolicyRoom) -> None:
    await apply(room, policy(CHIP))
    room.rehearsed.complete = False
    with pytest.raises(PolicyGated) as told:
        await apply(room, policy(OTHER_CHIP), gate=timedelta(days=30))
    assert told.value.reason == "too-many-records"


async def test_who_expects_what_never_was_is_told_what_is(room: PolicyRoom) -> None:
    await apply(room, policy(CHIP))
    with pytest.raises(PolicyConflict) as told:
        await room.work.apply(OPERATOR, policy(OTHER_CHIP), message="", expect="sha256:" + "0" * 64)
    assert details(told.value)["active"]["revision"] == digest(policy(CHIP))


async def test_only_so_many_proposals_wait_and_overtaken_ones_are_forgotten(signed_room: PolicyRoom) -> None:
    await in_force(signed_room, CHIP)
    for number in range(50):
        await signed_room.work.propose(OPERATOR, policy(CHIP, f"{number + 100:0128x}"), message="")
    with pytest.raises(PolicyRefused) as told:
        await signed_room.work.propose(OPERATOR, policy(CHIP, OTHER_CHIP), message="")
    assert told.value.reason == "too-many-proposals"
    one = policy(CHIP, f"{100:0128x}")
    await sign(signed_room, digest(one), "alice", "bob")
    assert (await apply(signed_room, one))["changed"] is True
    assert (await signed_room.work.proposals(VIEWER))["proposals"] == []
    status = await signed_room.work.status(VIEWER)
    assert [each["key"] for each in status["active"]["signatures"]] == ["alice", "bob"]


async def test_where_there_is_no_trust_file_no_signature_is_taken(room: PolicyRoom) -> None:
    proposal = await room.work.propose(OPERATOR, policy(CHIP), message="")
    with pytest.raises(PolicyRefused) as told:
        await room.work.sign(OPERATOR, digest(policy(CHIP)), signature("alice", proposal))
    assert told.value.reason == "no-trust-file"


async def test_who_reads_keeps_nobody_from_revoking(room: PolicyRoom) -> None:
    await apply(room, policy(CHIP))
    hold = asyncio.Event()

    async def held(_: object) -> object:
        await hold.wait()
        raise AssertionError

    reading = replace(room.work, beside=held)
    lint = asyncio.create_task(reading.lint(VIEWER, policy(CHIP)))
    await asyncio.sleep(0)
    assert (await reading.revoke(OPERATOR, "chip", CHIP, reason="stolen"))["changed"] is True
    lint.cancel()


async def test_a_policy_of_mistakes_is_not_read_to_its_end(room: PolicyRoom) -> None:
    wrong = b"".join(b"---\nkind: chips\nname: a%d\nchips: []\nzz: 1\n" % number for number in range(3000))
    found = await room.work.lint(VIEWER, {"a.yaml": wrong})
    assert found["valid"] is False
    assert 1000 < len(found["findings"]) < 1010
    assert any("the rest is not read" in each["message"] for each in found["findings"])
