"""The register of operators and the record of what they did, on a real SQLite file."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from kms.administration.register import LastAdmin, NotAuthentic, Operator, Standing
from kms.database.actions import ActionStore
from kms.database.engine import reading
from kms.database.operators import OperatorStore
from kms.database.recording import Recorder
from kms.database.schema import operator_actions, operators
from kms.errors import LedgerUnavailable, OperatorExists
from kms.keys.row_seal import RowSeal
from kms.ledger.actions import OperatorAction
from kms.operators import Actor, Proof, Role
from tests.recording import SERVER, entry_seal, recorder
from tests.unit.database.dialects import values
from tests.world import NOW

SEAL = RowSeal(bytes(range(64)))
ROOT = Actor(name="root", role=Role.ADMIN, proof=Proof.COMMAND_LINE)
HASH = "ab" * 32
SUBJECT = "CN=bob,O=Example"


@pytest.fixture
def store(engine: AsyncEngine) -> OperatorStore:
    return OperatorStore(engine, lambda: NOW, SEAL, recorder=recorder())


def operator(name: str = "alice", **changes: Any) -> Operator:
    made = Operator(
        name=name,
        role=Role.ADMIN,
        token_id=name.encode().hex().ljust(16, "0")[:16],
        token_hash=HASH,
        created_at=NOW,
        created_by="root",
        expires_at=NOW + timedelta(days=90),
    )
    return replace(made, **changes)


def with_certificate(name: str = "bob", subject: str = SUBJECT) -> Operator:
    return operator(name, token_id=None, token_hash=None, subject=subject, expires_at=None)


def action(number: int, word: str = "operator-add") -> OperatorAction:
    return OperatorAction(
        action_id=f"{number:032x}", at=NOW, actor=ROOT, action=word, target=None, outcome="done", details={}
    )


async def recorded(engine: AsyncEngine) -> list[str]:
    async with reading(engine) as connection:
        rows = (await connection.execute(select(operator_actions).order_by(operator_actions.c.id))).all()
    return [row.action for row in rows]


async def by_hand(engine: AsyncEngine, statement: str, **values: object) -> None:
    async with engine.begin() as connection:
        await connection.execute(text(statement), values)


async def revoke(store: OperatorStore, name: str, *, number: int = 99, **options: Any) -> Operator | None:
    made = action(number, "operator-revoke")
    return await store.revoke(name, NOW, made, **{"keep_an_admin": False, **options})


async def test_what_was_added_is_found_by_token_id_and_by_subject(
    engine: AsyncEngine, store: OperatorStore
) -> None:
    alice, bob = operator(), with_certificate()
    await store.add(alice, action(1))
    await store.add(bob, action(2))
    assert await store.by_token_id(str(alice.token_id)) == alice
    assert await store.by_subject(SUBJECT) == bob
    assert await store.by_token_id("0" * 16) is None
    assert await store.by_subject("CN=bob") is None
    assert await store.entries(after=None, limit=10) == (alice, bob)
    assert await recorded(engine) == ["operator-add"] * 2


async def test_operators_come_in_pages(store: OperatorStore) -> None:
    for number, name in enumerate(("carol", "alice", "bob")):
        await store.add(operator(name), action(number))
    assert [each.name for each in await store.entries(after=None, limit=2)] == ["alice", "bob"]
    assert [each.name for each in await store.entries(after="bob", limit=2)] == ["carol"]


async def test_a_revoked_operator_stays_revoked(engine: AsyncEngine, store: OperatorStore) -> None:
    await store.add(operator(), action(1))
    revoked = await revoke(store, "alice")
    assert revoked is not None
    assert revoked.standing(NOW) is Standing.REVOKED
    assert await store.by_token_id(str(revoked.token_id)) == revoked
    assert await store.revoke("alice", NOW + timedelta(days=1), action(3), keep_an_admin=False) == revoked
    assert await recorded(engine) == ["operator-add", "operator-revoke"]
    assert await revoke(store, "nobody") is None


async def test_a_name_can_be_given_again_once_it_gives_access_no_more(store: OperatorStore) -> None:
    await store.add(operator(), action(1))
    with pytest.raises(OperatorExists, match="active operator alice"):
        await store.add(operator(), action(2))
    await revoke(store, "alice")
    again = operator(token_id="1" * 16)
    await store.add(again, action(3))
    assert await store.by_token_id(str(operator().token_id)) is None
    assert await store.by_token_id("1" * 16) == again
    later = replace(operator(token_id="2" * 16), created_at=NOW + timedelta(days=91))
    await store.add(later, action(4))
    assert await store.entries(after=None, limit=10) == (later,)


async def test_a_certificate_is_that_of_one_operator(engine: AsyncEngine, store: OperatorStore) -> None:
    await store.add(with_certificate(), action(1))
    await revoke(store, "bob")
    with pytest.raises(OperatorExists, match="that of the operator bob"):
        await store.add(with_certificate("robert"), action(2))
    await store.add(with_certificate(), action(3))
    assert await recorded(engine) == ["operator-add", "operator-add", "operator-revoke"]


async def test_tokens_without_a_subject_do_not_stand_in_each_others_way(store: OperatorStore) -> None:
    await store.add(operator("alice"), action(1))
    await store.add(operator("carol"), action(2))
    assert len(await store.entries(after=None, limit=10)) == 2


async def test_the_last_active_admin_stays(engine: AsyncEngine, store: OperatorStore) -> None:
    await store.add(operator("alice"), action(1))
    await store.add(operator("carol"), action(2))
    await store.add(operator("old", expires_at=NOW), action(3))
    await store.add(operator("dave", role=Role.OPERATOR), action(4))
    assert await revoke(store, "carol", number=5, keep_an_admin=True) is not None
    with pytest.raises(LastAdmin):
        await revoke(store, "alice", number=6, keep_an_admin=True)
    assert await revoke(store, "dave", number=7, keep_an_admin=True) is not None
    assert await revoke(store, "old", number=8, keep_an_admin=True) is not None
    assert await revoke(store, "alice", number=9) is not None


async def test_an_admin_written_by_hand_counts_for_nothing(engine: AsyncEngine, store: OperatorStore) -> None:
    await store.add(operator(), action(1))
    await by_hand(
        engine,
        "INSERT INTO operators (name, role, token_id, token_hash, created_at, created_by, mac)"
        " VALUES ('mallory', 'admin', :id, :hash, '2026-11-21T12:00:00.000000Z', 'root', :mac)",
        id="f" * 16,
        hash=HASH,
        mac=bytes(32),
    )
    with capture_logs() as logs:
        assert await store.by_token_id("f" * 16) is None
        assert (await store.entries(after="alice", limit=10)) == (NotAuthentic("mallory"),)
        with pytest.raises(LastAdmin):
            await revoke(store, "alice", keep_an_admin=True)
        assert await revoke(store, "mallory") is None
    assert [(each["event"], each["log_level"], each["name"]) for each in logs] == [
        ("operator-row-not-authentic", "error", "mallory")
    ]
    await store.add(operator("mallory", token_id="2" * 16), action(3))
    assert await store.by_token_id("2" * 16) is not None


ALTERED = {
    "name": "mallory",
    "role": "viewer",
    "token_id": "e" * 16,
    "token_hash": "cd" * 32,
    "subject": "",
    "created_at": "2026-11-21T12:00:00.000001Z",
    "created_by": "",
    "expires_at": None,
    "revoked_at": "",
    "mac": b"short",
}


def test_every_column_is_sealed_but_the_last_use() -> None:
    assert set(ALTERED) == {column.name for column in operators.c} - {"last_used_at"}


@pytest.mark.parametrize("column", ALTERED)
async def test_a_row_altered_by_hand_is_ignored(
    engine: AsyncEngine, store: OperatorStore, column: str
) -> None:
    await store.add(operator(), action(1))
    await by_hand(engine, f"UPDATE operators SET {column} = :value", value=ALTERED[column])  # noqa: S608
    [entry] = await store.entries(after=None, limit=10)
    assert isinstance(entry, NotAuthentic)
    shown = entry.to_json(NOW)
    assert shown["standing"] == "not-authentic"
    assert shown["role"] is None
    assert set(shown) == set(operator().to_json(NOW))


async def test_a_revocation_cannot_be_taken_out_of_the_row(engine: AsyncEngine, store: OperatorStore) -> None:
    await store.add(operator(), action(1))
    await revoke(store, "alice")
    await by_hand(engine, "UPDATE operators SET revoked_at = NULL")
    assert await store.by_token_id(str(operator().token_id)) is None


@values("value", [], on_sqlite=[b"bytes", 5, 1.5])
async def test_other_kinds_of_values_are_not_authentic_either(
    engine: AsyncEngine, store: OperatorStore, value: object
) -> None:
    await store.add(operator(), action(1))
    await by_hand(engine, "UPDATE operators SET mac = CAST(:value AS TEXT), created_by = :value", value=value)
    assert await store.by_token_id(str(operator().token_id)) is None


async def test_a_row_of_another_root_is_not_authentic(engine: AsyncEngine, store: OperatorStore) -> None:
    await store.add(operator(), action(1))
    other = OperatorStore(engine, lambda: NOW, RowSeal(bytes(64)), recorder=recorder())
    assert await other.by_token_id(str(operator().token_id)) is None


async def test_an_altered_row_is_reported_again_after_some_minutes(engine: AsyncEngine) -> None:
    elapsed = [0.0]
    store = OperatorStore(engine, lambda: NOW, SEAL, recorder=recorder(), monotonic=lambda: elapsed[0])
    await store.add(operator(), action(1))
    await by_hand(engine, "UPDATE operators SET role = 'viewer'")
    with capture_logs() as logs:
        for elapsed[0] in (0, 1, 599, 600, 601):
            await store.entries(after=None, limit=10)
    assert len(logs) == 2


async def test_the_last_use_is_noted_once_a_minute(engine: AsyncEngine) -> None:
    now = [NOW]
    store = OperatorStore(engine, lambda: now[0], SEAL, recorder=recorder())
    await store.add(operator(), action(1))

    async def use() -> datetime | None:
        found = await store.by_token_id(str(operator().token_id))
        assert found is not None
        await store.touch(found)
        found = await store.by_token_id(str(operator().token_id))
        assert found is not None
        return found.last_used_at

    assert await use() == NOW
    now[0] += timedelta(seconds=59)
    assert await use() == NOW
    now[0] += timedelta(seconds=1)
    assert await use() == NOW + timedelta(minutes=1)
    await by_hand(engine, "UPDATE operators SET last_used_at = 'yesterday'")
    now[0] += timedelta(minutes=1)
    assert await use() == NOW + timedelta(minutes=2)


async def test_a_last_use_that_cannot_be_written_fails_nobody(
    engine: AsyncEngine, store: OperatorStore
) -> None:
    await store.add(operator(), action(1))
    await by_hand(engine, "ALTER TABLE operators RENAME TO elsewhere")
    with capture_logs() as logs:
        await store.touch(operator())
        await store.touch(operator())
    assert [each["event"] for each in logs] == ["operator-use-not-noted"]


async def test_an_operator_is_added_with_its_record_or_not_at_all(
    engine: AsyncEngine, store: OperatorStore
) -> None:
    await store.add(operator(), action(1))
    with pytest.raises(LedgerUnavailable):
        await store.add(operator("carol"), action(1))
    with pytest.raises(LedgerUnavailable):
        await revoke(store, "alice", number=1)
    assert await store.entries(after=None, limit=10) == (operator(),)


async def test_actions_come_newest_first_in_pages(engine: AsyncEngine) -> None:
    store = ActionStore(engine, recorder())
    for number in range(5):
        await store.record(action(number))
    page = await store.actions(before=None, limit=2)
    assert [each["action_id"] for each in page] == [f"{number:032x}" for number in (4, 3)]
    assert page[0] == action(4).to_json()
    rest = await store.actions(before=str(page[-1]["action_id"]), limit=10)
    assert [each["action_id"] for each in rest] == [f"{number:032x}" for number in (2, 1, 0)]


async def test_a_salt_has_its_length(engine: AsyncEngine) -> None:
    short = Recorder(entry_seal(), SERVER, randomness=lambda length: bytes(length - 1))
    with pytest.raises(ValueError, match="16 bytes"):
        await ActionStore(engine, short).record(action(1))


async def test_an_old_copy_of_a_row_is_what_a_mac_cannot_notice(
    engine: AsyncEngine, store: OperatorStore
) -> None:
    """Not wanted, and said in the module: only the expiry ends what somebody puts back."""
    await store.add(operator(), action(1))
    async with reading(engine) as connection:
        [old] = (await connection.execute(select(operators))).mappings().all()
    await revoke(store, "alice")
    await by_hand(engine, "UPDATE operators SET revoked_at = NULL, mac = :mac", mac=old["mac"])
    found = await store.by_token_id(str(operator().token_id))
    assert found is not None
    assert found.standing(NOW) is Standing.ACTIVE
    assert found.standing(NOW + timedelta(days=90)) is Standing.EXPIRED


@values("entry", [b"", b"{}", b"[]", b"\xff"], on_sqlite=["text", 5])
async def test_an_action_that_was_damaged_is_said_to_be(engine: AsyncEngine, entry: object) -> None:
    store = ActionStore(engine, recorder())
    await store.record(action(1))
    await by_hand(engine, "UPDATE entries SET entry = :entry", entry=entry)
    assert await store.actions(before=None, limit=10) == ({"kind": "unreadable", "action_id": f"{1:032x}"},)
