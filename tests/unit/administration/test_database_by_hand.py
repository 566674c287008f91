"""Whoever owns the database owns no policy: what is written there by hand is refused, and said.

Each test brings policies into force as operators do, lets a server follow them, and then edits the tables.
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest
from sqlalchemy import Executable, delete, insert, select, text, update
from structlog.testing import capture_logs

from kms.administration.folder import FolderPolicies
from kms.anchor import FileAnchor
from kms.database.engine import writing
from kms.database.migrate import migrate
from kms.database.policy_rows import PolicyRows
from kms.database.schema import (
    active_policy,
    policy_changes,
    policy_proposals,
    policy_revisions,
    policy_signatures,
)
from kms.errors import ConfigurationError, LedgerUnavailable, NotFound, PolicyRefused
from kms.keys.root_messages import FOUNDING_EPOCH, rows_message
from kms.keys.row_seal import RowSeal
from kms.operator_ports import PolicyPast
from kms.packaged import packaged_folder
from kms.policy.documents import RevokedDocument
from kms.policy.history import Head, PolicyChange
from kms.policy.revision import Revision
from kms.policy_authority import PolicyAuthority, PolicyUntrusted
from kms.policy_following import FollowedPolicies
from tests.changer import ROOT, follow, open_changer
from tests.unit.administration.conftest import OPERATOR, TRUST, PolicyRoom, open_room
from tests.unit.administration.test_policies import (
    CHIP,
    OTHER_CHIP,
    apply,
    digest,
    in_force,
    policy,
    sign,
)
from tests.world import NOW

WIDE, NARROW = policy(CHIP, OTHER_CHIP), policy(CHIP)


async def by_hand(room: PolicyRoom, *statements: Executable) -> None:
    async with writing(room.engine) as connection:
        for statement in statements:
            await connection.execute(statement)


def canonical(files: dict[str, bytes]) -> bytes:
    return Revision.from_files(files, development=False).canonical


async def wide_then_narrow(room: PolicyRoom) -> None:
    """Bring the wide policy into force, then the narrow one."""
    if room.changer.authority.trust is None:
        await apply(room, WIDE)
        await apply(room, NARROW)
        return
    await in_force(room, CHIP, OTHER_CHIP)
    waiting = await apply(room, NARROW)
    await sign(room, str(waiting["revision"]), "alice")
    await apply(room, NARROW)


@pytest.fixture(params=[None, TRUST], ids=["without-signatures", "signed-by-a-quorum"])
async def followed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[PolicyRoom, FollowedPolicies]]:
    room = await open_room(tmp_path_factory.mktemp("room"), request.param)
    await wide_then_narrow(room)
    policies = follow(room.changer)
    await policies.refresh()
    yield room, policies
    await room.engine.dispose()


async def refused(policies: FollowedPolicies) -> str:
    """Expect that a server refuses what the database says, uses nothing meanwhile, and says why."""
    with pytest.raises(PolicyUntrusted) as told:
        await policies.refresh()
    assert policies.refused
    with pytest.raises(PolicyUntrusted):
        await policies.active()
    return told.value.detail


async def refused_by_a_fresh_server(room: PolicyRoom, anchor: FileAnchor | None = None) -> str:
    """Expect the same of a server that starts now, with the anchor of the room."""
    changer = await open_changer(room.engine, room.folder, lambda: NOW, room.changer.authority.trust)
    policies = FollowedPolicies(changer.history, changer.authority, anchor or changer.anchor)
    with pytest.raises(PolicyUntrusted):
        await policies.refresh()
    with pytest.raises(PolicyUntrusted) as told:
        await policies.active()
    return told.value.detail


Followed = tuple[PolicyRoom, FollowedPolicies]


async def test_a_policy_body_that_was_edited(followed: Followed) -> None:
    room, policies = followed
    await by_hand(
        room,
        update(policy_revisions)
        .where(policy_revisions.c.revision == digest(NARROW))
        .values(documents=canonical(WIDE)),
    )
    await policies.refresh()  # nothing is read again: what this server has in memory is the true one
    assert "damaged" in await refused_by_a_fresh_server(room)


async def test_the_pointer_set_back_to_the_wider_policy(followed: Followed) -> None:
    room, policies = followed
    await by_hand(room, update(active_policy).values(revision=digest(WIDE), sequence=1))
    assert "change 1" in await refused(policies)
    await refused_by_a_fresh_server(room)
    await refused_by_a_fresh_server(room, FileAnchor(room.folder / "another-server.json"))


@pytest.mark.parametrize("sequence", [1, 2, 3, 2**31])
async def test_the_pointer_moved_to_another_revision(followed: Followed, sequence: int) -> None:
    room, policies = followed
    await by_hand(room, update(active_policy).values(revision=digest(WIDE), sequence=sequence))
    await refused(policies)
    await refused_by_a_fresh_server(room)


async def test_the_pointer_taken_away(followed: Followed) -> None:
    room, policies = followed
    await by_hand(room, delete(active_policy))
    await refused(policies)
    await refused_by_a_fresh_server(room)


async def test_an_older_revision_made_active_with_the_newer_rows_deleted(followed: Followed) -> None:
    room, policies = followed
    await by_hand(
        room,
        delete(policy_changes).where(policy_changes.c.sequence > 1),
        update(active_policy).values(revision=digest(WIDE), sequence=1),
    )
    assert "older database" in await refused(policies)
    assert "older database" in await refused_by_a_fresh_server(room)


@pytest.mark.parametrize(
    "changes",
    [
        {"revision": digest(WIDE)},
        {"previous": None},
        {"intent": "widen"},
        {"author": "somebody else"},
        {"message": "another reason"},
        {"folder": "sha256:" + "0" * 64},
        {"made_at": "2020-01-01T00:00:00.000000Z"},
        {"mac": b"\0" * 32},
        {"intent": "nonsense"},
        {"made_at": "yesterday"},
        {"sequence": 7},
    ],
    ids=str,
)
async def test_a_change_that_was_edited(followed: Followed, changes: dict[str, object]) -> None:
    room, _ = followed
    await by_hand(room, update(policy_changes).where(policy_changes.c.sequence == 2).values(changes))
    if "revision" in changes:
        await by_hand(room, update(active_policy).values(revision=changes["revision"]))
    if "sequence" in changes:
        await by_hand(room, update(active_policy).values(sequence=changes["sequence"]))
    with capture_logs() as logs:
        await refused_by_a_fresh_server(room, FileAnchor(room.folder / "another-server.json"))
    assert [each["event"] for each in logs] == ["policy-row-not-authentic"]
    await refused_by_a_fresh_server(room)


async def test_a_mac_of_another_type(followed: Followed) -> None:
    room, _ = followed
    await by_hand(room, text("UPDATE policy_changes SET mac = 'text' WHERE sequence = 2"))
    await refused_by_a_fresh_server(room)


async def test_a_change_that_was_written_by_hand(followed: Followed) -> None:
    """With the MAC, and where there are signatures those too, of another change."""
    room, policies = followed
    async with writing(room.engine) as connection:
        row = dict(
            (await connection.execute(select(policy_changes).where(policy_changes.c.sequence == 1)))
            .mappings()
            .one()
        )
    await by_hand(
        room,
        insert(policy_changes).values(**row | {"sequence": 3, "previous": digest(NARROW)}),
        update(active_policy).values(revision=digest(WIDE), sequence=3),
    )
    assert "no authentic row" in await refused(policies)
    assert "no authentic row" in await refused_by_a_fresh_server(room)


async def revoked_chips(room: PolicyRoom) -> list[str]:
    revision = (await room.changer.standing()).revision
    assert revision is not None
    documents = [each for each in revision.documents if isinstance(each, RevokedDocument)]
    return sorted(chip.hex() for each in documents for chip in each.chips)


BROKEN = [
    lambda: delete(active_policy),
    lambda: update(active_policy).values(revision=digest(WIDE), sequence=1),
    lambda: text("UPDATE active_policy SET sequence = 'x'"),
    lambda: update(policy_changes).values(author="nobody"),
    lambda: delete(policy_changes),
]
DAMAGE = ["pointer-gone", "pointer-back", "pointer-text", "rows-edited", "rows-gone"]


@pytest.fixture(params=BROKEN, ids=DAMAGE)
async def damaged(request: pytest.FixtureRequest, room: PolicyRoom) -> PolicyRoom:
    """A wide policy, of which a chip was revoked by command and used; then the database was damaged."""
    await apply(room, WIDE)
    await room.work.revoke(OPERATOR, "chip", OTHER_CHIP, reason="stolen")
    await follow(room.changer).refresh()
    await by_hand(room, request.param())
    return room


async def test_a_damaged_database_lifts_no_revocation(damaged: PolicyRoom) -> None:
    standing = await damaged.changer.standing()
    assert standing.untrusted
    status = await damaged.work.status(OPERATOR)
    assert (status["trusted"], status["untrusted"]) == (False, standing.untrusted)
    with pytest.raises(PolicyRefused) as told:
        await apply(damaged, WIDE)
    assert told.value.reason == "revocations-lifted"
    await damaged.work.rollback(OPERATOR, digest(WIDE), message="", expect=None)
    assert await revoked_chips(damaged) == [OTHER_CHIP]


async def test_a_chip_can_be_revoked_while_the_database_is_damaged(damaged: PolicyRoom) -> None:
    outcome = await damaged.work.revoke(OPERATOR, "chip", CHIP, reason="stolen too")
    assert outcome["changed"] is True
    assert await revoked_chips(damaged) == sorted([CHIP, OTHER_CHIP])
    await follow(damaged.changer).refresh()


async def test_a_watched_folder_does_not_mend_a_damaged_database(damaged: PolicyRoom) -> None:
    folder = FolderPolicies(changer=damaged.changer, journal=damaged.work.journal)
    with pytest.raises(PolicyUntrusted):
        await folder.apply(Revision.from_files(WIDE, development=False), WIDE)
    with pytest.raises(PolicyUntrusted):
        await folder.folder_revision()
    with pytest.raises(PolicyUntrusted):
        await follow(damaged.changer).refresh()


async def test_when_nothing_can_be_told_no_revocation_is_lifted_by_accident(room: PolicyRoom) -> None:
    await apply(room, WIDE)
    await room.work.revoke(OPERATOR, "chip", OTHER_CHIP, reason="stolen")
    await by_hand(room, update(policy_revisions).values(documents=b"[]"))
    for attempt in (
        apply(room, NARROW),
        room.work.revoke(OPERATOR, "chip", CHIP, reason=""),
        room.work.propose(OPERATOR, NARROW, message=""),
    ):
        with pytest.raises(PolicyRefused) as told:
            await attempt
        assert told.value.reason == "policy-untrusted"
    with pytest.raises(NotFound):
        await room.work.rollback(OPERATOR, digest(WIDE), message="", expect=None)
    assert (await apply(room, NARROW, lift_revocations=True))["changed"] is True


@pytest.mark.parametrize("sequence", [3, 2**53 - 1, 2**62])
async def test_rows_of_nobody_hide_no_history_and_stop_no_change(room: PolicyRoom, sequence: int) -> None:
    await apply(room, WIDE)
    await apply(room, NARROW)
    async with writing(room.engine) as connection:
        row = dict((await connection.execute(select(policy_changes).limit(1))).mappings().one())
    await by_hand(room, insert(policy_changes).values(**row | {"sequence": sequence, "mac": b"\0" * 32}))
    page = await room.work.history(OPERATOR, before=None, limit=1)
    assert [each["sequence"] for each in page["changes"]] == [2]
    assert (await apply(room, WIDE))["sequence"] == 3
    await follow(room.changer).refresh()


async def test_a_change_between_two_looks_is_no_older_database(
    room: PolicyRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process puts a change in force and uses it, while this one is looking."""
    await apply(room, WIDE)
    policies = follow(room.changer)
    await policies.refresh()
    verify, looked = PolicyAuthority.verify, False

    async def slowly(
        self: PolicyAuthority, head: Head, seen: Head | None, history: PolicyPast
    ) -> PolicyChange:
        nonlocal looked
        if not looked:
            looked = True
            await apply(room, policy(CHIP, "33" * 64))  # and the anchor moves on with it
        return await verify(self, head, seen, history)

    await apply(room, NARROW)
    monkeypatch.setattr(PolicyAuthority, "verify", slowly)
    await policies.refresh()
    active = await policies.active()
    assert active is not None
    assert active.policy.revision == digest(policy(CHIP, "33" * 64))


async def test_a_policy_that_was_refused_is_mended_by_a_new_change(followed: Followed) -> None:
    room, policies = followed
    await by_hand(room, update(active_policy).values(revision=digest(WIDE), sequence=1))
    await refused(policies)
    outcome = await apply(room, NARROW)
    if room.changer.authority.trust is not None:
        assert outcome["applied"] is False, "nothing stands that it could narrow: it takes the whole quorum"
        await sign(room, digest(NARROW), "alice", "bob")
        outcome = await apply(room, NARROW)
    assert outcome["sequence"] == 3
    await policies.refresh()
    assert not policies.refused


@pytest.mark.parametrize(
    "edit",
    [
        lambda: delete(policy_signatures),
        lambda: update(policy_signatures).values(signature=b"\0" * 64),
        lambda: update(policy_signatures).values(signature=b""),
        lambda: update(policy_signatures).values(format="nonsense"),
        lambda: (
            update(policy_signatures)
            .values(public_key="ab" * 32)
            .where(policy_signatures.c.public_key == TRUST.keys["alice"].hex())
        ),
    ],
    ids=["deleted", "zeroed", "emptied", "format", "key"],
)
async def test_signatures_that_were_edited(signed_room: PolicyRoom, edit: Callable[[], Executable]) -> None:
    await in_force(signed_room, CHIP, OTHER_CHIP)
    await by_hand(signed_room, edit())
    assert "needs the signatures of 2" in await refused_by_a_fresh_server(signed_room)


async def test_signatures_of_one_change_copied_to_another(signed_room: PolicyRoom) -> None:
    """Somebody with the root key, but no operator's, writes an authentic change and copies signatures."""
    await wide_then_narrow(signed_room)
    policies = follow(signed_room.changer)
    await policies.refresh()
    history = signed_room.changer.history
    wide, narrow = await history.change(1), await history.change(2)
    assert wide is not None
    assert narrow is not None
    forged = replace(wide, sequence=3, previous=narrow.revision)
    await history.append(forged, expect=narrow.head, action=None)
    async with writing(signed_room.engine) as connection:
        rows = (await connection.execute(select(policy_signatures))).mappings().all()
    from hashlib import sha256

    from kms.policy.statement import Statement

    statement = sha256(Statement.of(forged, signed_room.changer.authority.kms_identity).canonical).hexdigest()
    copies = {row["public_key"]: dict(row) | {"statement": statement} for row in rows}
    await by_hand(signed_room, *(insert(policy_signatures).values(**each) for each in copies.values()))
    stored = await history.change(3)
    assert stored is not None
    assert len(stored.signatures) == len(copies) >= 2
    assert "has those of nobody" in await refused(policies)


async def test_one_signer_cannot_narrow_an_older_wider_policy_into_force(signed_room: PolicyRoom) -> None:
    """The statement says narrow, and is: but of what was in force the day before yesterday."""
    await in_force(signed_room, CHIP, OTHER_CHIP, "33" * 64)
    first = await signed_room.changer.history.head()
    waiting = await apply(signed_room, policy(CHIP))
    await sign(signed_room, str(waiting["revision"]), "alice")
    await apply(signed_room, policy(CHIP))
    policies = follow(signed_room.changer)
    await policies.refresh()
    assert first is not None
    old = await signed_room.changer.history.load(first.revision)
    prepared = await signed_room.changer.prepare(
        replace(
            await signed_room.changer.standing(),
            change=await signed_room.changer.history.change(1),
            revision=old,
        ),
        Revision.from_files(WIDE, development=False),
        files=None,
        kind=(await signed_room.changer.history.change(1)).kind,  # type: ignore[union-attr]
        author="mallory",
        message="",
    )
    assert prepared.change.intent.value == "narrow"
    from kms.policy.trust import sign_statement
    from tests.unit.administration.conftest import KEYS

    await signed_room.changer.history.propose(prepared.change, prepared.statement)
    await signed_room.changer.history.sign(
        prepared.statement, sign_statement(prepared.statement, KEYS["carol"])
    )
    head = await signed_room.changer.history.head()
    change = await signed_room.changer.with_signatures(prepared.change)
    await signed_room.changer.history.append(change, expect=head, action=None)
    assert "came before it" in await refused(policies)


@pytest.mark.parametrize(
    "changes", [{"folder": "sha256:" + "0" * 64}, {"author": "the auditor"}, {"message": "harmless"}], ids=str
)
async def test_a_proposal_that_was_edited_is_no_proposal(
    signed_room: PolicyRoom, changes: dict[str, object]
) -> None:
    """What `apply` puts in force with its signatures must be what somebody proposed."""
    await apply(signed_room, WIDE, "widen")
    await sign(signed_room, digest(WIDE), "alice", "bob")
    await by_hand(signed_room, update(policy_proposals).values(changes))
    assert (await apply(signed_room, WIDE))["applied"] is False
    assert (await signed_room.work.proposals(OPERATOR))["proposals"] == []


async def test_an_unsigned_policy_is_not_used_once_there_is_a_trust_file(room: PolicyRoom) -> None:
    await apply(room, WIDE)
    signed = replace(room.changer.authority, trust=TRUST)
    policies = FollowedPolicies(room.changer.history, signed, room.changer.anchor)
    with pytest.raises(PolicyUntrusted, match="those of nobody"):
        await policies.refresh()


async def test_the_anchor_is_written_before_a_policy_is_used(signed_room: PolicyRoom) -> None:
    await in_force(signed_room, CHIP)
    policies = follow(signed_room.changer)
    await policies.refresh()
    assert await signed_room.changer.anchor.read() == Head(1, digest(policy(CHIP)))


SPOILED = [
    "UPDATE policy_signatures SET signature = 9000000000000000000",
    "UPDATE policy_signatures SET signature = 'text'",
    "UPDATE policy_signatures SET public_key = 'not hex' || public_key",
    "UPDATE policy_signatures SET format = X'00'",
    "UPDATE policy_revisions SET documents = '[]'",
    "UPDATE policy_revisions SET documents = 5",
    "UPDATE policy_changes SET author = 5",
    "UPDATE policy_changes SET made_at = X'FF'",
    "UPDATE active_policy SET revision = X'FF'",
]


@pytest.mark.parametrize("statement", SPOILED)
async def test_values_of_other_types_are_refused_by_name(signed_room: PolicyRoom, statement: str) -> None:
    await in_force(signed_room, CHIP)
    await by_hand(signed_room, text(statement))
    assert await refused_by_a_fresh_server(signed_room)
    changer = await open_changer(signed_room.engine, signed_room.folder, lambda: NOW, TRUST)
    assert (await changer.standing()).untrusted


async def test_files_of_other_types_are_as_if_they_were_not_there(room: PolicyRoom) -> None:
    await apply(room, WIDE)
    for spoiled in ("SET files = 5", "SET files = 'text'", "SET files = X'00'"):
        await by_hand(room, text("UPDATE policy_revisions " + spoiled))
        shown = await room.work.revision(OPERATOR, digest(WIDE))
        assert list(shown["files"]) == ["policy.yaml"]


TRIGGERS = [
    "CREATE TRIGGER t BEFORE INSERT ON policy_changes BEGIN SELECT RAISE(IGNORE); END",
    "CREATE TRIGGER t BEFORE INSERT ON active_policy BEGIN SELECT RAISE(IGNORE); END",
    "CREATE TRIGGER t AFTER INSERT ON active_policy BEGIN UPDATE active_policy SET sequence = 1; END",
    "CREATE TRIGGER t AFTER INSERT ON policy_changes BEGIN UPDATE policy_changes SET author = 'x'; END",
]


@pytest.mark.parametrize("trigger", TRIGGERS)
async def test_a_database_that_undoes_a_revocation_is_noticed(room: PolicyRoom, trigger: str) -> None:
    await apply(room, WIDE)
    await by_hand(room, text(trigger))
    with pytest.raises(LedgerUnavailable, match="keep"):
        await room.work.revoke(OPERATOR, "chip", OTHER_CHIP, reason="stolen")
    with pytest.raises(ConfigurationError, match="trigger t"):
        await migrate(room.engine, packaged_folder("migrations"))


async def test_a_change_that_was_taken_back_is_noticed_while_serving(followed: Followed) -> None:
    """Another server of this machine used change 3; the database then says that it never was."""
    room, policies = followed
    await room.changer.anchor.remember(Head(3, digest(policy(CHIP, "33" * 64))))
    assert "older database" in await refused(policies)


async def test_what_is_taken_back_before_it_was_followed_is_not_used(followed: Followed) -> None:
    """A command narrowed and used it; before this server looks, the database is set back to what it holds."""
    room, policies = followed
    held = (await policies.active()) is not None
    assert held
    await room.changer.anchor.remember(Head(3, digest(policy(CHIP, "33" * 64))))
    await by_hand(room, text("ALTER TABLE active_policy RENAME COLUMN sequence TO number"))
    with pytest.raises(LedgerUnavailable):
        await policies.refresh()
    with pytest.raises(PolicyUntrusted, match="cannot be told"):
        await policies.active()


async def test_numbers_written_as_text_are_nobodys(room: PolicyRoom) -> None:
    await apply(room, WIDE)
    async with writing(room.engine) as connection:
        row = dict((await connection.execute(select(policy_changes))).mappings().one())
    rows = PolicyRows(RowSeal(await ROOT.prf(FOUNDING_EPOCH, rows_message())))
    assert len(rows.authentic(policy_changes, [row])) == 1  # type: ignore[list-item]
    for changes in ({"sequence": "1"}, {"sequence": True}, {"author": 5}):
        assert rows.authentic(policy_changes, [row | changes]) == []  # type: ignore[list-item]


async def test_a_mended_database_does_not_bring_the_unedited_folder_back(room: PolicyRoom) -> None:
    folder = FolderPolicies(changer=room.changer, journal=room.work.journal)
    wide = Revision.from_files(WIDE, development=False)
    await folder.apply(wide, WIDE)
    await apply(room, NARROW)
    await by_hand(room, delete(active_policy))
    await apply(room, NARROW)
    assert await folder.folder_revision() == wide.digest, "an unedited folder is not applied again"
    await by_hand(room, delete(policy_changes), delete(active_policy))
    await apply(room, NARROW)
    with pytest.raises(PolicyUntrusted, match="by command once"):
        await folder.apply(wide, WIDE)
    narrow = Revision.from_files(NARROW, development=False)
    await folder.apply(narrow, NARROW)
    assert await folder.folder_revision() == narrow.digest
