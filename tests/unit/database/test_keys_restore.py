"""Epochs and generations of a backup, written into a database that lost them: all of them, or nothing."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Table, func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from kms.anchor import FileAnchor
from kms.database.engine import reading
from kms.database.installation import Installation
from kms.database.keys import KeyStore
from kms.database.schema import entries, key_epochs, key_identities, operator_actions, root_checks
from kms.errors import ConfigurationError, KeysConflict, LedgerUnavailable
from kms.keys.epochs import Epoch, EpochTable, KeyProgress
from kms.keys.row_seal import RowSeal
from kms.ledger.actions import OperatorAction
from kms.operator_ports import Generation
from kms.operators import Actor, Proof, Role
from tests.recording import recorder
from tests.unit.database.dialects import make_trigger
from tests.world import NOW

ADMIN = Actor(name="root", role=Role.ADMIN, proof=Proof.COMMAND_LINE)
BEFORE = NOW - timedelta(days=9)
FIRST = Epoch(
    number=1, made_at=BEFORE, made_by="restored", active_from=BEFORE, retired_at=NOW, retired_by="restored"
)
SECOND = Epoch(number=2, made_at=BEFORE, made_by="restored", active_from=NOW)
TABLE = EpochTable((FIRST, SECOND))
VALUES = {1: b"\x01" * 32, 2: b"\x02" * 32}
GENERATIONS = (
    Generation(number=2, made_at=BEFORE, made_by="restored"),
    Generation(number=3, made_at=NOW, made_by="restored"),
)
TABLES = (key_epochs, key_identities, root_checks, operator_actions)


@pytest.fixture
def anchor(tmp_path: Path) -> FileAnchor:
    return FileAnchor(tmp_path / "anchor.json")


def store(engine: AsyncEngine, anchor: FileAnchor, now: datetime = NOW) -> KeyStore:
    return KeyStore(engine, lambda: now, RowSeal(bytes(range(64))), anchor=anchor, recorder=recorder())


def action(name: str = "restored") -> OperatorAction:
    return OperatorAction(
        action_id=name, at=NOW, actor=ADMIN, action="keys-restore", target=None, outcome="done", details={}
    )


async def restore(store: KeyStore, generations: Sequence[Generation] = GENERATIONS) -> bool:
    return await store.restore(TABLE, VALUES, generations, action())


async def rows(engine: AsyncEngine) -> dict[str, int]:
    async def count(table: Table) -> int:
        async with reading(engine) as connection:
            return int((await connection.execute(select(func.count()).select_from(table))).scalar_one())

    return {table.name: await count(table) for table in TABLES}


async def test_everything_comes_back_and_is_believed(engine: AsyncEngine, anchor: FileAnchor) -> None:
    assert await restore(store(engine, anchor)) is True
    other = store(engine, anchor)
    await other.found("founding")
    assert await other.epochs() == TABLE
    assert TABLE.available(NOW) == (2,)
    assert await other.generations() == GENERATIONS
    assert await Installation(engine, lambda: NOW).check_values() == VALUES
    assert (await rows(engine))["operator_actions"] == 1


async def test_the_anchor_knows_of_it_before_anybody_uses_it(engine: AsyncEngine, anchor: FileAnchor) -> None:
    await restore(store(engine, anchor))
    seen = await anchor.read_keys()
    assert (seen.epochs, seen.retired, seen.generations) == (2, frozenset({1}), 3)


async def test_a_database_that_has_epochs_keeps_its_own(engine: AsyncEngine, anchor: FileAnchor) -> None:
    await Installation(engine, lambda: NOW).remember_check_values({1: VALUES[1]})
    founded = store(engine, anchor)
    await founded.found("founding")
    before = await rows(engine)
    assert await restore(founded) is False
    assert await rows(engine) == before
    assert [each.retired_at for each in (await founded.epochs()).epochs] == [None]


async def test_generations_that_were_not_lost_stay(engine: AsyncEngine, anchor: FileAnchor) -> None:
    await restore(store(engine, anchor), [replace(GENERATIONS[0], made_by="ada")])
    async with engine.begin() as connection:
        await connection.execute(key_epochs.delete())
        await connection.execute(operator_actions.delete())
        await connection.execute(entries.delete())
    assert await restore(store(engine, anchor)) is True
    made_by = [each.made_by for each in await store(engine, anchor).generations()]
    assert made_by == ["ada", "restored"]


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (KeyProgress(epochs=3), "know epoch 3;"),
        (KeyProgress(epochs=2, retired=frozenset({1, 2})), "know the retirement of epoch 2;"),
        (KeyProgress(generations=4), "know generation 4 of the identity;"),
    ],
    ids=["an epoch", "a retirement", "a generation"],
)
async def test_what_this_server_has_seen_is_not_undone(
    engine: AsyncEngine, anchor: FileAnchor, seen: KeyProgress, said: str
) -> None:
    await anchor.remember_keys(seen)
    before = await rows(engine)
    with pytest.raises(KeysConflict, match=said):
        await restore(store(engine, anchor))
    assert await rows(engine) == before
    assert await anchor.read_keys() == seen


async def test_an_epoch_that_only_the_check_values_know_is_not_forgotten(
    engine: AsyncEngine, anchor: FileAnchor
) -> None:
    await Installation(engine, lambda: NOW).remember_check_values({**VALUES, 3: bytes(32)})
    with pytest.raises(KeysConflict, match="epoch 3"):
        await restore(store(engine, anchor))


async def test_an_anchor_that_agrees_stands_in_no_ones_way(engine: AsyncEngine, anchor: FileAnchor) -> None:
    await anchor.remember_keys(KeyProgress(epochs=2, in_use=2, retired=frozenset({1}), generations=3))
    assert await restore(store(engine, anchor)) is True
    assert await store(engine, anchor).epochs() == TABLE


async def test_an_anchor_that_cannot_be_read_is_not_one_that_agrees(
    engine: AsyncEngine, anchor: FileAnchor
) -> None:
    anchor.path.write_bytes(b"{}")
    with pytest.raises(LedgerUnavailable) as refused:
        await restore(store(engine, anchor))
    assert refused.value.reason == "anchor-unusable"
    assert (await rows(engine))["key_epochs"] == 0


async def test_another_roots_check_values_write_nothing(engine: AsyncEngine, anchor: FileAnchor) -> None:
    await Installation(engine, lambda: NOW).remember_check_values({2: bytes(32)})
    before = await rows(engine)
    with pytest.raises(ConfigurationError, match="another root key"):
        await restore(store(engine, anchor))
    assert await rows(engine) == before


async def test_a_database_that_keeps_something_else_is_found_out(
    engine: AsyncEngine, anchor: FileAnchor
) -> None:
    undo = "UPDATE key_epochs SET retired_at = NULL, retired_by = NULL"
    await make_trigger(engine, "AFTER INSERT ON key_epochs", undo)
    with pytest.raises(LedgerUnavailable, match="may not keep"):
        await restore(store(engine, anchor))
    assert (await rows(engine))["key_epochs"] == 0
