"""What the owner of the database can do, and what servers make of it."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typing_extensions import override

from kms import policy_authority
from kms.errors import LedgerUnavailable
from kms.operator_ports import PolicyHistory
from kms.policy.diff import Difference, differences, intent_of
from kms.policy.findings import PolicyInvalid
from kms.policy.history import ChangeKind, Head, Intent, PolicyChange
from kms.policy.revision import Revision
from kms.policy.statement import Statement
from kms.policy.trust import PolicyTrust, sign_statement
from kms.policy_authority import PolicyAuthority, PolicyUntrusted
from tests.unit.policy.samples import documents

KMS, OTHER_KMS = b"\x01" * 32, b"\x02" * 32
ALICE, BOB, CAROL, STRANGER = (
    Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32) for seed in range(1, 5)
)
KEYS = {
    name: key.public_key().public_bytes_raw()
    for name, key in {"alice": ALICE, "bob": BOB, "carol": CAROL}.items()
}
QUORUM = PolicyAuthority(trust=PolicyTrust(KEYS, widen=2, narrow=1), kms_identity=KMS)
WITHOUT_TRUST = PolicyAuthority(trust=None, kms_identity=KMS)


def policy(*chips: str, revoked: str | None = None) -> Revision:
    """Give a policy with one app that is allowed on these chips."""
    written: dict[str, dict[str, Any]] = documents()
    written["app"]["chips"] = [chip * 64 for chip in chips]
    written["app"].pop("chip_sets", None)
    written["revoked"] = {"kind": "revoked", "name": "gone", "chips": [revoked * 64] if revoked else []}
    text = "\n---\n".join(json.dumps(each) for each in written.values())
    return Revision.from_files({"policy.yaml": text.encode()}, development=False)


WIDE = policy("a1", "b2", "c3")
MIDDLE = policy("a1", "b2")
NARROW = policy("a1")
REVOKING = policy("a1", "b2", revoked="b2")
EMPTY = Revision.from_canonical(b"[]")


class Database:
    """A database and its owner. What `written` holds was written by a server, which has the root key."""

    def __init__(self) -> None:
        self.rows: dict[int, PolicyChange] = {}
        self.written: set[PolicyChange] = set()
        self.bodies: dict[str, Revision] = {}
        self.pointer: Head | None = None

    def put(
        self,
        revision: Revision,
        *signers: Ed25519PrivateKey,
        intent: Intent | None = None,
        begins_anew: bool = False,
        sequence: int | None = None,
        kms_identity: bytes = KMS,
    ) -> PolicyChange:
        """Change the policy as a server does, after what is in force. A false `intent` may be given."""
        before = None if begins_anew or self.pointer is None else self.bodies[self.pointer.revision]
        change = PolicyChange(
            sequence=sequence or max(self.rows, default=0) + 1,
            revision=revision.digest,
            previous=None if before is None else before.digest,
            intent=intent or intent_of(differences(before, revision)),
            kind=ChangeKind.APPLY,
            author="alice",
            message="",
            made_at=datetime(2026, 11, 22, tzinfo=UTC),
        )
        self.bodies[revision.digest] = revision
        self.written.add(change)
        self.pointer = change.head
        statement = Statement.of(change, kms_identity)
        change = replace(change, signatures=tuple(sign_statement(statement, key) for key in signers))
        self.rows[change.sequence] = change
        return change

    def delete(self, *sequences: int) -> None:
        for sequence in sequences:
            del self.rows[sequence]

    def edit(self, sequence: int, **columns: Any) -> None:
        self.rows[sequence] = replace(self.rows[sequence], **columns)

    async def head(self) -> Head | None:
        return self.pointer

    async def change(self, sequence: int) -> PolicyChange | None:
        row = self.rows.get(sequence)
        return row if row is not None and replace(row, signatures=()) in self.written else None

    async def changes(self, *, before: int | None, limit: int) -> tuple[PolicyChange, ...]:
        below = sorted((each for each in self.rows if before is None or each < before), reverse=True)[:limit]
        found = [await self.change(each) for each in below]
        return tuple(each for each in found if each is not None)

    async def load(self, digest: str) -> Revision | None:
        return self.bodies.get(digest)


async def used(
    database: Database, *, seen: Head | None = None, authority: PolicyAuthority = QUORUM
) -> PolicyChange:
    """Let a server look at the database, and give the change that it uses."""
    assert database.pointer is not None
    return await authority.verify(database.pointer, seen, cast("PolicyHistory", database))


async def refused(
    database: Database, why: str, *, seen: Head | None = None, authority: PolicyAuthority = QUORUM
) -> None:
    with pytest.raises(PolicyUntrusted, match=why) as untrusted:
        await used(database, seen=seen, authority=authority)
    assert (untrusted.value.code, untrusted.value.reason) == ("ledger-unavailable", "policy-untrusted")


@pytest.fixture
def database() -> Database:
    """Give a database in which two signed a policy, and then one a narrower one."""
    database = Database()
    database.put(WIDE, ALICE, BOB)
    database.put(MIDDLE, CAROL)
    return database


FIRST, SECOND = Head(1, WIDE.digest), Head(2, MIDDLE.digest)


class TestWhatOperatorsDid:
    @pytest.mark.parametrize("seen", [None, FIRST, SECOND], ids=str)
    async def test_a_narrowing_by_one_after_a_grant_by_two_is_used(
        self, database: Database, seen: Head | None
    ) -> None:
        assert (await used(database, seen=seen)).head == SECOND

    async def test_a_grant_by_one_is_not(self, database: Database) -> None:
        database.put(WIDE, ALICE)
        await refused(
            database, r"change 3 \(widen\) needs the signatures of 2 .* those of alice", seen=SECOND
        )

    async def test_unsigned_changes_are_not_used_where_there_is_a_trust_file(self) -> None:
        database = Database()
        database.put(NARROW)
        await refused(database, "and has those of nobody")
        # Not even where it was used before there was one.
        await refused(database, "and has those of nobody", seen=database.pointer)

    async def test_what_was_unsigned_before_there_was_a_trust_file_can_be_signed_and_narrowed(self) -> None:
        database = Database()
        seen = database.put(WIDE).head
        database.put(NARROW, ALICE)
        assert (await used(database, seen=seen)).revision == NARROW.digest
        await refused(database, "needs the signatures of 2")  # a new server has no such memory

    async def test_the_first_policy_needs_the_quorum_for_grants_even_if_it_grants_nothing(self) -> None:
        database = Database()
        database.put(EMPTY, ALICE, intent=Intent.NARROW)
        await refused(database, "needs the signatures of 2")
        database = Database()
        database.put(EMPTY, ALICE, BOB, intent=Intent.NARROW)
        await used(database)

    async def test_a_first_policy_that_grants_does_not_narrow(self) -> None:
        database = Database()
        database.put(NARROW, ALICE, BOB, intent=Intent.NARROW)
        await refused(database, "says that it narrows, and it widens")

    async def test_many_narrowings_are_followed_back_to_the_grant(self, database: Database) -> None:
        for chips in (["a1"], []):
            database.put(policy(*chips), ALICE)
        assert (await used(database)).sequence == 4

    async def test_a_long_history_is_read_in_pieces(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(policy_authority, "_AT_ONCE", 1)
        database.put(NARROW, ALICE)
        database.put(policy(), ALICE)
        assert (await used(database)).sequence == 4
        assert (await used(database, seen=FIRST)).sequence == 4

    async def test_a_history_without_end_is_not_followed(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(policy_authority, "_MOST_CHANGES", 2)
        database.put(NARROW, ALICE)
        await refused(database, "more than 2 changes")
        await used(database, seen=SECOND)

    async def test_a_new_server_asks_for_nothing_older_than_the_last_grant(self, database: Database) -> None:
        database.put(WIDE, ALICE, BOB)
        database.put(NARROW, CAROL)
        database.delete(1, 2)
        del database.bodies[MIDDLE.digest]
        assert (await used(database)).sequence == 4

    async def test_going_back_is_a_new_grant(self, database: Database) -> None:
        database.put(WIDE, BOB, CAROL)
        assert (await used(database, seen=SECOND)).head == Head(3, WIDE.digest)

    async def test_after_keys_were_replaced_old_changes_need_not_be_signed_by_new_ones(
        self, database: Database
    ) -> None:
        # Below a grant by today's operators; a server that was down all the while comes back.
        database.put(NARROW, CAROL)
        database.put(WIDE, ALICE, BOB)
        without_carol = PolicyTrust({name: KEYS[name] for name in ("alice", "bob")}, widen=2, narrow=1)
        today = replace(QUORUM, trust=without_carol)
        assert (await used(database, seen=FIRST, authority=today)).sequence == 4

    async def test_every_comparison_is_made_where_the_server_wants_it(self, database: Database) -> None:
        compared: list[tuple[str | None, str]] = []

        async def beside(old: Revision | None, new: Revision) -> tuple[Difference, ...]:
            compared.append((None if old is None else old.digest, new.digest))
            return differences(old, new)

        database.put(NARROW, ALICE)
        await used(database, authority=replace(QUORUM, compare=beside))
        assert compared == [(WIDE.digest, MIDDLE.digest), (MIDDLE.digest, NARROW.digest)]

    async def test_an_unavailable_database_is_not_an_untrusted_one(self, database: Database) -> None:
        class Away(Database):
            @override
            async def change(self, sequence: int) -> PolicyChange | None:
                raise LedgerUnavailable("no answer")

        away = Away()
        away.pointer = database.pointer
        with pytest.raises(LedgerUnavailable) as unavailable:
            await used(away)
        assert not isinstance(unavailable.value, PolicyUntrusted)


class TestWithoutATrustFile:
    async def test_an_authentic_row_is_enough(self, database: Database) -> None:
        database.put(WIDE)
        database.delete(1, 2)
        assert (await used(database, seen=FIRST, authority=WITHOUT_TRUST)).sequence == 3

    async def test_a_row_that_was_written_by_hand_is_not(self, database: Database) -> None:
        database.edit(2, revision=WIDE.digest)
        database.pointer = Head(2, WIDE.digest)
        await refused(database, "change 2 has no authentic row", authority=WITHOUT_TRUST)

    async def test_an_older_database_is_refused(self, database: Database) -> None:
        seen = database.pointer
        database.delete(2)
        database.pointer = FIRST
        await refused(database, "names change 1, .* used change 2", seen=seen, authority=WITHOUT_TRUST)

    async def test_a_pointer_that_was_set_back_is_noticed(self, database: Database) -> None:
        database.pointer = FIRST
        await refused(database, "the pointer was set back", authority=WITHOUT_TRUST)


class TestTheOwnerOfTheDatabase:
    async def test_sets_the_pointer_back(self, database: Database) -> None:
        database.pointer = FIRST
        await refused(database, "names change 1, .* used change 2: an older database", seen=SECOND)
        await refused(database, "names change 1 and holds change 2: the pointer was set back")

    async def test_brings_an_older_signed_revision_back_and_deletes_the_newer_rows(
        self, database: Database
    ) -> None:
        database.delete(2)
        database.pointer = FIRST
        await refused(database, "names change 1, .* used change 2: an older database", seen=SECOND)

    async def test_points_at_another_revision(self, database: Database) -> None:
        database.pointer = Head(2, WIDE.digest)
        await refused(database, "which put .* in force")
        await refused(database, "another history", seen=SECOND)

    async def test_points_at_a_change_that_is_not_there(self, database: Database) -> None:
        database.pointer = Head(9, WIDE.digest)
        await refused(database, "change 9 has no authentic row", seen=SECOND)

    async def test_gives_an_old_revision_a_new_number(self, database: Database) -> None:
        database.rows[3] = replace(database.rows[1], sequence=3)
        database.pointer = Head(3, WIDE.digest)
        await refused(database, "change 3 has no authentic row", seen=SECOND)

    @pytest.mark.parametrize(
        "columns",
        [
            {"revision": WIDE.digest},
            {"previous": None},
            {"intent": Intent.WIDEN},
            {"author": "mallory"},
            {"folder": WIDE.digest},
        ],
        ids=lambda columns: next(iter(columns)),
    )
    async def test_edits_a_row(self, database: Database, columns: dict[str, Any]) -> None:
        database.edit(2, **columns)
        database.pointer = database.rows[2].head
        await refused(database, "no authentic row")

    async def test_deletes_signatures(self, database: Database) -> None:
        database.edit(2, signatures=())
        await refused(database, "and has those of nobody")
        database = Database()
        change = database.put(WIDE, ALICE, BOB)
        database.edit(1, signatures=change.signatures[:1])
        await refused(database, "and has those of alice")

    async def test_moves_signatures_from_one_change_to_another(self, database: Database) -> None:
        change = database.put(WIDE, ALICE)
        database.edit(3, signatures=(*change.signatures, *database.rows[1].signatures))
        await refused(database, "and has those of alice$", seen=SECOND)

    async def test_moves_signatures_from_another_kms(self) -> None:
        database = Database()
        database.put(WIDE, ALICE, BOB, kms_identity=OTHER_KMS)
        await refused(database, "and has those of nobody")

    async def test_counts_one_signature_twice(self) -> None:
        database = Database()
        change = database.put(WIDE, ALICE)
        database.edit(1, signatures=change.signatures * 2)
        await refused(database, "and has those of alice$")

    async def test_signs_with_keys_of_his_own(self) -> None:
        database = Database()
        database.put(WIDE, ALICE, STRANGER)
        await refused(database, "and has those of alice$")

    async def test_swaps_the_body_of_a_revision(self, database: Database) -> None:
        # The store refuses bytes that are not what the digest names; here one lets them pass.
        database.put(NARROW, ALICE)
        database.bodies[NARROW.digest] = WIDE
        await refused(database, "than were compared", seen=SECOND)

    async def test_damages_or_deletes_a_body_that_has_to_be_compared(self, database: Database) -> None:
        class Damaged(Database):
            @override
            async def load(self, digest: str) -> Revision | None:
                raise PolicyInvalid(())

        damaged = Damaged()
        damaged.put(WIDE, ALICE, BOB)
        damaged.put(MIDDLE, ALICE)
        await refused(damaged, "is damaged")
        del database.bodies[WIDE.digest]
        await refused(database, "is not in the database")

    async def test_deletes_a_revocation_from_the_middle(self, database: Database) -> None:
        database.put(REVOKING, ALICE)
        database.put(policy("a1", revoked="b2"), ALICE)
        database.delete(3)
        await refused(database, "change 4 follows .* another history")
        await refused(database, "change 4 follows .* another history", seen=SECOND)
        await used(database, seen=database.pointer)  # where it is in use nothing changed

    async def test_deletes_what_narrowings_began_with(self, database: Database) -> None:
        database.delete(1)
        await refused(database, "no authentic change before it")
        await used(database, seen=FIRST)  # who has used it needs no row

    async def test_fills_the_table_with_rows_of_his_own(self, database: Database) -> None:
        database.rows[7] = replace(database.rows[1], sequence=7)
        await used(database, seen=SECOND)
        # They are ignored, by those who narrow and number their change after them too.
        assert database.put(NARROW, ALICE).sequence == 8
        await used(database, seen=SECOND)
        await used(database)

    async def test_shows_a_new_server_an_older_state_and_lets_operators_go_on_from_there(self) -> None:
        database = Database()
        database.put(WIDE, ALICE, BOB)
        used_elsewhere = Head(2, REVOKING.digest)  # he took this change out
        database.put(MIDDLE, ALICE)
        database.put(NARROW, ALICE)
        await used(database)
        await refused(database, "change 3 follows .* another history", seen=used_elsewhere)

    async def test_shows_a_grant_that_was_signed_and_never_applied_after_a_revocation(self) -> None:
        database = Database()
        database.put(MIDDLE, ALICE, BOB)
        # His rows made the number high when two signed it; then other changes came.
        waiting = Database()
        waiting.put(MIDDLE, ALICE, BOB)
        grant = waiting.put(WIDE, ALICE, BOB, sequence=50)
        seen = database.put(REVOKING, CAROL).head
        # A server with an older state wrote it down. It does not follow the revocation.
        database.rows[50], database.pointer = grant, grant.head
        database.written |= waiting.written
        database.bodies |= waiting.bodies
        await refused(database, "change 50 follows .* another history", seen=seen)

    async def test_leaves_no_way_but_to_begin_anew_and_that_takes_the_quorum(
        self, database: Database
    ) -> None:
        database.delete(1, 2)
        database.put(NARROW, ALICE, begins_anew=True, sequence=3)
        await refused(database, "needs the signatures of 2", seen=SECOND)
        database.put(NARROW, ALICE, BOB, begins_anew=True, sequence=4)
        database.delete(3)
        assert (await used(database, seen=SECOND)).sequence == 4

    async def test_hides_a_beginning_that_was_not_signed_below_a_grant(self, database: Database) -> None:
        database.put(NARROW, ALICE, begins_anew=True)
        database.put(WIDE, ALICE, BOB)
        await refused(database, r"change 3 \(widen\) needs the signatures of 2", seen=SECOND)


class TestOneSigner:
    async def test_says_that_a_grant_narrows(self, database: Database) -> None:
        database.put(WIDE, ALICE, intent=Intent.NARROW)
        await refused(database, "change 3 says that it narrows, and it widens app .*c3c3", seen=SECOND)
        await refused(database, "change 3 says that it narrows, and it widens app")

    async def test_hides_a_grant_below_a_real_narrowing(self, database: Database) -> None:
        database.put(WIDE, ALICE, intent=Intent.NARROW)
        database.put(NARROW, ALICE)
        await refused(database, "change 3 says that it narrows, and it widens", seen=SECOND)

    async def test_takes_a_revocation_back_as_no_wider_than_long_ago(self, database: Database) -> None:
        database.put(REVOKING, BOB)
        database.put(MIDDLE, ALICE, intent=Intent.NARROW)
        await refused(database, "change 4 says that it narrows, and it widens revoked")
        await refused(database, "change 4 says that it narrows, and it widens revoked", seen=SECOND)

    async def test_narrows_an_older_and_wider_revision_than_the_one_in_force(self) -> None:
        database = Database()
        database.put(WIDE, ALICE, BOB)
        seen = database.put(NARROW, BOB).head
        # With the owner of the database, and a server that was shown the first change only.
        database.delete(2)
        database.pointer = FIRST
        database.put(MIDDLE, ALICE, sequence=3)
        await refused(database, "change 3 follows .* another history", seen=seen)

    async def test_gets_honest_signatures_for_such_a_narrowing(self) -> None:
        # A quorum that says "narrow" has granted nothing: it was shown a predecessor that was not in force.
        database = Database()
        database.put(WIDE, ALICE, BOB)
        seen = database.put(NARROW, BOB).head
        database.delete(2)
        database.pointer = FIRST
        database.put(MIDDLE, ALICE, BOB, CAROL, sequence=3)
        await refused(database, "change 3 follows .* another history", seen=seen)


@pytest.mark.parametrize(
    ("signers", "begins_anew", "intent", "needed", "enough"),
    [
        ((ALICE,), False, Intent.NARROW, 1, True),
        ((), False, Intent.NARROW, 1, False),
        ((ALICE,), False, Intent.WIDEN, 2, False),
        ((ALICE, CAROL), False, Intent.WIDEN, 2, True),
        ((ALICE,), True, Intent.NARROW, 2, False),
    ],
)
def test_how_many_must_sign_what_a_change_says(
    database: Database,
    *,
    signers: tuple[Ed25519PrivateKey, ...],
    begins_anew: bool,
    intent: Intent,
    needed: int,
    enough: bool,
) -> None:
    change = database.put(NARROW, *signers, intent=intent, begins_anew=begins_anew)
    assert (QUORUM.needed(change), QUORUM.has_quorum(change)) == (needed, enough)
    assert (WITHOUT_TRUST.needed(change), WITHOUT_TRUST.has_quorum(change)) == (None, True)


async def test_a_change_that_comes_into_force_meanwhile_is_no_pointer_that_was_set_back(
    database: Database,
) -> None:
    before = database.pointer
    assert before is not None
    database.put(NARROW, ALICE)
    assert (await QUORUM.verify(before, None, cast("PolicyHistory", database))).head == before
