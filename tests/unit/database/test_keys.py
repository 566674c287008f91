"""The register of epochs and generations, on a real SQLite file that somebody else can write."""

import asyncio
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Table, insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from structlog.testing import capture_logs

from kms.anchor import AnchorUnusable, FileAnchor
from kms.database import keys as keys_module
from kms.database.engine import reading
from kms.database.installation import Installation
from kms.database.key_rows import EpochsUntrusted, KeyRows
from kms.database.keys import KeyStore
from kms.database.schema import key_epochs, key_identities, operator_actions, root_checks
from kms.errors import ConfigurationError, KeysConflict, LedgerUnavailable
from kms.keys.epochs import Epoch, EpochState, EpochTable, KeyProgress
from kms.keys.row_seal import RowSeal
from kms.ledger.actions import OperatorAction
from kms.operator_ports import Generation
from kms.operators import Actor, Proof, Role
from tests.recording import recorder
from tests.unit.database.dialects import ON_SQLITE, make_trigger, values
from tests.world import NOW

SEAL = RowSeal(bytes(range(64)))
ROOT = Actor(name="root", role=Role.ADMIN, proof=Proof.COMMAND_LINE)
DAY = timedelta(days=1)
VALUE = b"\x0c" * 32
LONG = 600.0  # seconds after which what the clock alone says is remembered


@dataclass
class Server:
    """One server: its disk has the anchor, its clocks can be set, the database is shared."""

    engine: AsyncEngine
    folder: Path
    now: datetime = NOW
    elapsed: float = 0.0

    def __post_init__(self) -> None:
        self.anchor = FileAnchor(self.folder / "anchor.json")
        self.restart()

    def restart(self, seal: RowSeal = SEAL) -> None:
        self.store = KeyStore(
            self.engine,
            lambda: self.now,
            seal,
            anchor=self.anchor,
            recorder=recorder(),
            monotonic=lambda: self.elapsed,
        )

    async def states(self) -> list[str]:
        table = await self.store.epochs()
        return [table.state(each, self.now).value for each in table.epochs]

    async def adopt(self, number: int, at: datetime | None = None, by: str = "alice") -> Epoch:
        made = Epoch(number=number, made_at=self.now, made_by=by, active_from=at or self.now)
        await self.store.add_epoch(made, VALUE, action(f"adopt-{number}-{by}"))
        return made

    async def retire(self, number: int, by: str = "alice") -> Epoch:
        old = await self.epoch(number)
        new = replace(old, retired_at=self.now, retired_by=by)
        await self.end(old, new, f"retire-{number}")
        return new

    async def end(self, old: Epoch, new: Epoch, name: str) -> None:
        await self.store.retire_epoch(old, new, after=0, last_look=lambda _: action(name))

    async def epoch(self, number: int) -> Epoch:
        found = (await self.store.epochs()).epoch(number)
        assert found is not None
        return found


@pytest.fixture
async def server(engine: AsyncEngine, tmp_path: Path) -> Server:
    server = Server(engine, tmp_path)
    await Installation(engine, lambda: NOW).remember_check_values({1: bytes(32)})
    await server.store.found("founding")
    return server


def other_server(server: Server) -> Server:
    """Another machine with its own anchor, which has seen nothing yet."""
    folder = server.folder / "other"
    folder.mkdir()
    return Server(server.engine, folder)


def action(name: str) -> OperatorAction:
    return OperatorAction(
        action_id=name, at=NOW, actor=ROOT, action="keys", target=None, outcome="done", details={}
    )


def generation(number: int) -> Generation:
    return Generation(number=number, made_at=NOW, made_by="alice")


async def by_hand(engine: AsyncEngine, statement: str, **values: object) -> None:
    async with engine.begin() as connection:
        await connection.execute(text(statement), values)


async def set_by_hand(engine: AsyncEngine, table: Table, column: str, value: object) -> None:
    """Set a column of the newest row to anything: SQLite keeps it."""
    [number] = table.primary_key.columns
    newest = f"(SELECT max({number.name}) FROM {table.name})"  # noqa: S608
    await by_hand(
        engine,
        f"UPDATE {table.name} SET {column} = :value WHERE {number.name} = {newest}",  # noqa: S608
        value=value,
    )


async def copy(engine: AsyncEngine, table: Table) -> list[dict[str, Any]]:
    async with reading(engine) as connection:
        rows = await connection.execute(select(table).order_by(*table.primary_key.columns))
        return [dict(row) for row in rows.mappings()]


async def put_back(engine: AsyncEngine, table: Table, rows: list[dict[str, Any]]) -> None:
    async with engine.begin() as connection:
        await connection.execute(table.delete())
        if rows:
            await connection.execute(insert(table), rows)


async def recorded(engine: AsyncEngine) -> list[str]:
    return sorted(row["id"] for row in await copy(engine, operator_actions))


async def untrusted(server: Server) -> str:
    """Give why the server uses nothing of what the database says; and it says why for every question."""
    with pytest.raises(LedgerUnavailable) as refused:
        await server.store.epochs()
    assert refused.value.reason == "epochs-untrusted"
    return refused.value.detail


# --- founding


async def test_a_new_database_has_the_first_epoch_from_the_start(server: Server) -> None:
    table = await server.store.epochs()
    assert [each.number for each in table.epochs] == [1]
    assert table.newest.made_by == "founding"
    assert table.newest.made_at == NOW
    long_ago = datetime(2000, 1, 1, tzinfo=NOW.tzinfo)
    assert table.current(long_ago) == 1, "a server whose clock is behind serves all the same"
    assert await server.store.generations() == ()


async def test_two_servers_that_found_at_once_make_one_row(engine: AsyncEngine, tmp_path: Path) -> None:
    first = Server(engine, tmp_path)
    second = other_server(first)
    await asyncio.gather(first.store.found("founding"), second.store.found("founding"))
    assert len(await copy(engine, key_epochs)) == 1
    assert await first.store.epochs() == await second.store.epochs()


async def test_founding_again_changes_nothing(server: Server) -> None:
    await server.adopt(2)
    before = await copy(server.engine, key_epochs)
    server.restart()
    await server.store.found("founding")
    assert await copy(server.engine, key_epochs) == before


async def test_a_database_that_had_epochs_is_not_founded_anew(server: Server) -> None:
    await server.adopt(2)
    await put_back(server.engine, key_epochs, [])
    fresh = other_server(server)
    with pytest.raises(ConfigurationError, match="had several") as refused:
        await fresh.store.found("founding")
    assert "restore" in refused.value.remedy
    await by_hand(server.engine, "DELETE FROM root_checks WHERE epoch = 2")
    server.restart()
    with pytest.raises(ConfigurationError, match="had several"):
        await server.store.found("founding")
    assert await copy(server.engine, key_epochs) == []


async def test_nothing_is_founded_while_the_anchor_cannot_tell_what_was(
    engine: AsyncEngine, tmp_path: Path
) -> None:
    server = Server(engine, tmp_path)
    server.anchor.path.write_bytes(b"{}")
    with pytest.raises(ConfigurationError, match="cannot be told") as refused:
        await server.store.found("founding")
    assert "KMS_LEDGER_ANCHOR" in refused.value.remedy
    assert await copy(engine, key_epochs) == []


@pytest.mark.parametrize("damage", ["the anchor", "the rows"])
async def test_what_was_founded_is_left_for_whoever_uses_it_to_judge(server: Server, damage: str) -> None:
    """So that a server may start, release nothing, and say why."""
    if damage == "the anchor":
        server.anchor.path.write_bytes(b"{}")
    else:
        await by_hand(server.engine, "UPDATE key_epochs SET made_by = 'x'")
    server.restart()
    await server.store.found("founding")
    for attempt in (server.store.epochs(), server.adopt(2)):
        with pytest.raises(LedgerUnavailable) as refused:
            await attempt
        assert refused.value.reason == ("anchor-unusable" if damage == "the anchor" else "epochs-untrusted")


async def test_before_it_is_founded_nothing_is_used(engine: AsyncEngine, tmp_path: Path) -> None:
    await untrusted(Server(engine, tmp_path))


# --- adopting


async def test_an_epoch_is_adopted_with_its_check_value_and_the_record(server: Server) -> None:
    made = await server.adopt(2)
    assert (await server.store.epochs()).newest == made
    assert await Installation(server.engine, lambda: NOW).check_values() == {1: bytes(32), 2: VALUE}
    assert await recorded(server.engine) == ["adopt-2-alice"]
    assert await server.states() == ["available", "current"]


async def test_an_epoch_waits_for_its_time(server: Server) -> None:
    await server.adopt(2, NOW + DAY)
    assert await server.states() == ["current", "scheduled"]
    server.now += DAY - timedelta(microseconds=1)
    assert await server.states() == ["current", "scheduled"]
    server.now += timedelta(microseconds=1)
    assert await server.states() == ["available", "current"]


async def test_of_two_that_adopt_at_once_one_wins_and_the_other_learns_who(server: Server) -> None:
    second = other_server(server)
    outcomes = await asyncio.gather(
        server.adopt(2, by="alice"), second.adopt(2, by="bob"), return_exceptions=True
    )
    [lost] = [each for each in outcomes if isinstance(each, BaseException)]
    [won] = [each for each in outcomes if isinstance(each, Epoch)]
    assert isinstance(lost, KeysConflict)
    assert won.made_by in lost.detail
    assert lost.details == {"epoch": 2, "made_by": won.made_by, "made_at": "2026-11-21T12:00:00.000000Z"}
    assert await recorded(server.engine) == [f"adopt-2-{won.made_by}"]
    assert await server.store.epochs() == await second.store.epochs()


async def test_an_epoch_that_is_not_the_next_one_is_not_adopted(server: Server) -> None:
    with pytest.raises(ValueError, match="without a gap"):
        await server.adopt(3)
    assert await server.states() == ["current"]


async def test_an_epoch_is_adopted_with_everything_or_not_at_all(server: Server) -> None:
    await server.adopt(2)
    same = action("adopt-2-alice")
    with pytest.raises(LedgerUnavailable):  # an id of an action that is there already
        await server.store.add_epoch(
            Epoch(number=3, made_at=NOW, made_by="alice", active_from=NOW), VALUE, same
        )
    assert len(await copy(server.engine, key_epochs)) == 2
    assert 3 not in await Installation(server.engine, lambda: NOW).check_values()


async def test_another_check_value_means_another_root(server: Server) -> None:
    await Installation(server.engine, lambda: NOW).remember_check_values({2: bytes(32)})
    with pytest.raises(KeysConflict, match="another root key") as refused:
        await server.adopt(2)
    assert refused.value.reason == "root-key-changed"
    assert await server.states() == ["current"]


# --- changing


async def test_the_time_of_an_epoch_changes_while_it_waits(server: Server) -> None:
    made = await server.adopt(2, NOW + DAY)
    later = replace(made, active_from=NOW + 2 * DAY)
    await server.store.move_epoch(made, later, action("later"))
    assert await server.epoch(2) == later
    await server.store.move_epoch(later, later, action("same"))
    server.now += 2 * DAY
    with pytest.raises(KeysConflict, match="has come"):
        await server.store.move_epoch(later, made, action("too-late"))
    assert await server.epoch(2) == later
    assert await recorded(server.engine) == ["adopt-2-alice", "later", "same"]


async def test_of_two_that_retire_at_once_one_wins(server: Server) -> None:
    await server.adopt(2)
    old, second = await server.epoch(1), other_server(server)
    alices, bobs = (replace(old, retired_at=NOW, retired_by=name) for name in ("alice", "bob"))
    outcomes = await asyncio.gather(
        server.end(old, alices, "alices"),
        second.end(old, bobs, "bobs"),
        return_exceptions=True,
    )
    [lost] = [each for each in outcomes if each is not None]
    won = await server.epoch(1)
    assert won == (alices if outcomes[0] is None else bobs)
    assert isinstance(lost, KeysConflict)
    assert f"{won.retired_by} retired epoch 1" in lost.detail
    assert await second.epoch(1) == won
    assert await server.states() == ["retired", "current"]


@pytest.mark.parametrize(
    "changes",
    [
        {"made_by": "mallory"},
        {"made_at": NOW - DAY},
        {"made_by": "mallory", "retired_at": NOW},
        {"active_from": NOW, "retired_at": NOW},
        {"retired_by": "mallory"},
    ],
    ids=str,
)
async def test_nothing_else_of_an_epoch_changes(server: Server, changes: dict[str, Any]) -> None:
    made = await server.adopt(2, NOW + DAY)
    with pytest.raises(ValueError, match="only the time"):
        await server.store.move_epoch(made, replace(made, **changes), action("x"))
    with pytest.raises(ValueError, match="ends once"):
        await server.end(made, replace(made, **changes), "x")
    assert await server.epoch(2) == made


@pytest.mark.parametrize(
    "changes", [{"retired_at": None, "retired_by": None}, {"retired_by": "bob"}], ids=str
)
async def test_a_retirement_is_for_ever(server: Server, changes: dict[str, Any]) -> None:
    await server.adopt(2)
    retired = await server.retire(1)
    with pytest.raises(ValueError, match="ends once"):
        await server.end(retired, replace(retired, **changes), "x")
    with pytest.raises(ValueError, match="only the time"):
        await server.store.move_epoch(retired, replace(retired, **changes), action("x"))


# --- generations


async def test_generations_are_added_one_by_one(server: Server) -> None:
    await server.store.add_generation(generation(2), action("two"))
    with pytest.raises(KeysConflict, match="alice made generation 2"):
        await server.store.add_generation(generation(2), action("again"))
    with pytest.raises(ValueError, match="next"):
        await server.store.add_generation(generation(4), action("four"))
    await server.store.add_generation(generation(3), action("three"))
    assert await server.store.generations() == (generation(2), generation(3))
    assert await recorded(server.engine) == ["three", "two"]


# --- the owner of the database

ALTERED = {
    "epoch": 5,
    "made_at": "2026-11-21T12:00:00.000001Z",
    "made_by": "",
    "active_from": "2020-01-01T00:00:00.000000Z",
    "retired_at": "2026-11-21T12:00:00.000000Z",
    "retired_by": "",
    "mac": bytes(32),
}
ALTERED_GENERATION = {
    "generation": 5,
    "made_at": "2026-11-21T12:00:00.000001Z",
    "made_by": "",
    "mac": bytes(32),
}
ODD = [5, 1.5, b"bytes", 9_000_000_000_000_000_000, ""]


def test_every_column_is_altered_below() -> None:
    assert set(ALTERED) == {column.name for column in key_epochs.c}
    assert set(ALTERED_GENERATION) == {column.name for column in key_identities.c}


@pytest.mark.parametrize("column", ALTERED)
async def test_a_row_altered_by_hand_spoils_all(server: Server, column: str) -> None:
    await server.adopt(2, NOW + DAY)
    await set_by_hand(server.engine, key_epochs, column, ALTERED[column])
    await untrusted(server)
    for attempt in (server.adopt(3), server.retire(1)):
        with pytest.raises(LedgerUnavailable):
            await attempt


@ON_SQLITE
@pytest.mark.parametrize("column", sorted({*ALTERED} - {"epoch"}))
@pytest.mark.parametrize("value", ODD, ids=str)
async def test_other_kinds_of_values_are_refused_by_name(server: Server, column: str, value: object) -> None:
    await set_by_hand(server.engine, key_epochs, column, value)
    await untrusted(server)


@ON_SQLITE
async def test_text_that_is_none_is_refused(server: Server) -> None:
    await by_hand(server.engine, "UPDATE key_epochs SET made_by = CAST(X'FF' AS TEXT)")
    with pytest.raises(LedgerUnavailable):
        await server.store.epochs()


@ON_SQLITE
async def test_a_mac_as_text_is_no_mac(server: Server) -> None:
    await by_hand(server.engine, "UPDATE key_epochs SET mac = CAST(mac AS TEXT)")
    with pytest.raises(LedgerUnavailable):
        await server.store.epochs()


@pytest.mark.parametrize("changes", [{"epoch": "1"}, {"epoch": True}, {"made_by": 5}], ids=str)
def test_what_looks_like_the_text_under_the_mac_is_not_it(changes: dict[str, object]) -> None:
    """Not on SQLite, whose columns would turn them; but a MAC over texts alone would not tell."""
    rows = KeyRows(SEAL)
    row = rows.of_epoch(Epoch(number=1, made_at=NOW, made_by="5", active_from=NOW))
    assert rows.epochs([tuple(row.values())]).newest.made_by == "5"
    with pytest.raises(EpochsUntrusted):
        rows.epochs([tuple((row | changes).values())])


@pytest.mark.parametrize("column", ALTERED_GENERATION)
async def test_a_generation_altered_by_hand_spoils_all(server: Server, column: str) -> None:
    await server.store.add_generation(generation(2), action("two"))
    await set_by_hand(server.engine, key_identities, column, ALTERED_GENERATION[column])
    with pytest.raises(LedgerUnavailable) as refused:
        await server.store.generations()
    assert refused.value.reason == "epochs-untrusted"
    with pytest.raises(LedgerUnavailable):
        await server.store.add_generation(generation(3), action("three"))


async def test_a_row_of_another_table_is_no_epoch(server: Server) -> None:
    """The table's name is in the MAC, and so is every column: a generation cannot be shown as an epoch."""
    await server.store.add_generation(generation(2), action("two"))
    await by_hand(
        server.engine,
        "INSERT INTO key_epochs SELECT generation, made_at, made_by, made_at, NULL, NULL, mac"
        " FROM key_identities",
    )
    await untrusted(server)


@pytest.mark.parametrize("number", [0, -1, 3, 7])
async def test_an_inserted_row_spoils_all(server: Server, number: int) -> None:
    await server.adopt(2)
    await by_hand(
        server.engine,
        "INSERT INTO key_epochs SELECT :number, made_at, made_by, active_from, NULL, NULL, mac"
        " FROM key_epochs WHERE epoch = 2",
        number=number,
    )
    await untrusted(server)


@pytest.mark.parametrize("number", [1, 2])
async def test_a_removed_row_spoils_all_also_for_a_new_server(server: Server, number: int) -> None:
    await server.adopt(2)
    await server.adopt(3)
    await by_hand(server.engine, "DELETE FROM key_epochs WHERE epoch = :number", number=number)
    assert "removed" in await untrusted(server)
    assert "removed" in await untrusted(other_server(server))


async def test_without_rows_nothing_is_used(server: Server) -> None:
    await put_back(server.engine, key_epochs, [])
    assert "removed" in await untrusted(server)


async def test_a_removed_generation_is_noticed(server: Server) -> None:
    await server.store.add_generation(generation(2), action("two"))
    await server.store.add_generation(generation(3), action("three"))
    await by_hand(server.engine, "DELETE FROM key_identities WHERE generation = 2")
    with pytest.raises(LedgerUnavailable, match="removed"):
        await server.store.generations()


async def test_rows_of_another_root_are_not_authentic(server: Server) -> None:
    server.restart(RowSeal(bytes(64)))
    assert "not written by this KMS" in await untrusted(server)


async def test_what_must_not_be_used_is_reported_once_in_a_while(server: Server) -> None:
    await by_hand(server.engine, "UPDATE key_epochs SET made_by = 'x'")
    with capture_logs() as logs:
        for server.elapsed in (0, 1, 599, 600, 601):
            await untrusted(server)
    assert [(each["event"], each["log_level"]) for each in logs] == [("epochs-untrusted", "error")] * 2


async def test_a_row_that_was_mended_is_used_again(server: Server) -> None:
    rows = await copy(server.engine, key_epochs)
    await by_hand(server.engine, "UPDATE key_epochs SET made_by = 'x'")
    await untrusted(server)
    await put_back(server.engine, key_epochs, rows)
    assert await server.states() == ["current"]


TRIGGERS = [
    ("BEFORE INSERT ON key_epochs", None),
    ("BEFORE UPDATE ON key_epochs", None),
    ("AFTER INSERT ON operator_actions", "DELETE FROM key_epochs WHERE epoch = 2"),
    ("BEFORE INSERT ON key_identities", None),
    ("BEFORE INSERT ON root_checks", None),
]


@pytest.mark.parametrize(("when", "statement"), TRIGGERS)
async def test_a_database_that_undoes_what_is_written_is_noticed(
    server: Server, when: str, statement: str | None
) -> None:
    await server.adopt(2)
    before = await copy(server.engine, key_epochs)
    await make_trigger(server.engine, when, statement)
    for attempt in (
        server.adopt(3),
        server.retire(1),
        server.store.add_generation(generation(2), action("two")),
    ):
        with pytest.raises(LedgerUnavailable, match="keep"):
            await attempt
    assert await copy(server.engine, key_epochs) == before
    assert await copy(server.engine, key_identities) == []
    assert await recorded(server.engine) == ["adopt-2-alice"]


@values("value", [], on_sqlite=["text", 5, 1.5])
async def test_a_check_value_of_another_type_is_refused(server: Server, value: object) -> None:
    await by_hand(server.engine, "UPDATE root_checks SET check_value = :value", value=value)
    with pytest.raises(LedgerUnavailable) as refused:
        await Installation(server.engine, lambda: NOW).check_values()
    assert refused.value.reason == "epochs-untrusted"
    with pytest.raises(LedgerUnavailable):
        await server.adopt(2)


# --- older copies


async def change_something(server: Server, what: str) -> None:
    """Do what an older copy of the rows takes back."""
    if what == "adopted":
        await server.adopt(3)
    elif what == "retired":
        await server.retire(1)
    else:
        old = await server.epoch(2)
        await server.store.move_epoch(old, replace(old, active_from=NOW), action("now"))


@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
@pytest.mark.parametrize("what", ["adopted", "retired", "moved"])
async def test_an_older_copy_of_the_rows_is_noticed(server: Server, what: str, restarted: bool) -> None:
    await server.adopt(2, NOW + DAY if what == "moved" else None)
    before = await copy(server.engine, key_epochs)
    await change_something(server, what)
    after = await copy(server.engine, key_epochs)
    await put_back(server.engine, key_epochs, before)
    if restarted:
        server.restart()
    assert "older copy" in await untrusted(server)
    with pytest.raises(LedgerUnavailable):
        await server.adopt(3)
    await put_back(server.engine, key_epochs, after)
    await server.store.epochs()


@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
async def test_an_older_copy_of_the_generations_is_noticed(server: Server, restarted: bool) -> None:
    await server.store.add_generation(generation(2), action("two"))
    await put_back(server.engine, key_identities, [])
    if restarted:
        server.restart()
    with pytest.raises(LedgerUnavailable, match="older copy"):
        await server.store.generations()


async def test_another_server_notices_from_when_it_has_seen_it(server: Server) -> None:
    second = other_server(server)
    await server.adopt(2)
    before = await copy(server.engine, key_epochs)
    await server.retire(1)
    assert await second.states() == ["retired", "current"]
    await put_back(server.engine, key_epochs, before)
    second.restart()
    assert "older copy" in await untrusted(second)


async def test_what_another_process_of_this_server_has_seen_counts_soon(server: Server) -> None:
    """A command retired, and the rows are put back before the server looks at them again."""
    await server.adopt(2)
    assert await server.states() == ["available", "current"]
    before = await copy(server.engine, key_epochs)
    await Server(server.engine, server.folder).retire(1)
    await put_back(server.engine, key_epochs, before)
    server.elapsed += 1.0
    assert "older copy" in await untrusted(server)


async def test_without_the_anchor_the_process_itself_remembers(server: Server) -> None:
    await server.adopt(2)
    before = await copy(server.engine, key_epochs)
    await server.retire(1)
    server.anchor.path.unlink()
    await put_back(server.engine, key_epochs, before)
    server.elapsed += 1.0
    assert "older copy" in await untrusted(server)


async def test_an_undone_retirement_cannot_hide_behind_the_next_change(server: Server) -> None:
    """Every other row is as new as can be: only a memory of each thing by itself notices."""
    await server.adopt(2)
    [first, _] = await copy(server.engine, key_epochs)
    await server.retire(1)
    second = other_server(server)
    assert await second.states() == ["retired", "current"]
    await server.adopt(3)
    await server.store.add_generation(generation(2), action("two"))
    rows = await copy(server.engine, key_epochs)
    await put_back(server.engine, key_epochs, [first, *rows[1:]])
    assert "older copy" in await untrusted(second)


async def test_an_epoch_that_was_in_use_is_not_made_to_wait_again(server: Server) -> None:
    """Operators made it current at once; with the row from before, guests would get keys of the old one."""
    made = await server.adopt(2, NOW + 30 * DAY)
    waiting = await copy(server.engine, key_epochs)
    await server.store.move_epoch(made, replace(made, active_from=NOW), action("now"))
    await put_back(server.engine, key_epochs, waiting)
    assert "older copy" in await untrusted(server)


async def test_a_clock_that_is_set_back_before_an_epoch_that_was_in_use_is_noticed(server: Server) -> None:
    await server.adopt(2, NOW + DAY)
    server.now += DAY
    assert await server.states() == ["available", "current"]
    server.elapsed += LONG
    assert await server.states() == ["available", "current"]
    server.now -= timedelta(seconds=1)
    assert "clock that was set back" in await untrusted(server)
    server.now += timedelta(seconds=1)
    assert await server.states() == ["available", "current"]


async def test_an_epoch_whose_time_came_is_not_made_to_wait_again(server: Server) -> None:
    """By the clock alone; with the row from before it got an earlier time."""
    made = await server.adopt(2, NOW + 30 * DAY)
    waiting = await copy(server.engine, key_epochs)
    await server.store.move_epoch(made, replace(made, active_from=NOW + DAY), action("sooner"))
    server.now += DAY
    for server.elapsed in (0.0, LONG):
        assert await server.states() == ["available", "current"]
    await put_back(server.engine, key_epochs, waiting)
    assert "older copy" in await untrusted(server)
    server.restart()
    assert "older copy" in await untrusted(server)


@pytest.mark.parametrize("lasts", [0.0, LONG - 1])
async def test_a_clock_that_leaps_over_the_time_of_an_epoch_and_back_stops_nothing(
    server: Server, lasts: float
) -> None:
    made = await server.adopt(2, NOW + 300 * DAY)
    for _ in range(3):
        server.now = NOW + 400 * DAY
        assert await server.states() == ["available", "current"]
        server.elapsed += lasts
        assert await server.states() == ["available", "current"]
        server.now = NOW
        assert await server.states() == ["current", "scheduled"]
        server.elapsed += 1
    assert (await server.anchor.read_keys()).in_use <= 1
    await server.store.move_epoch(made, replace(made, active_from=NOW + DAY), action("sooner"))
    assert await server.states() == ["current", "scheduled"]


async def test_what_is_adopted_or_retired_while_the_clock_is_wrong_says_nothing_of_other_epochs(
    server: Server,
) -> None:
    """Only of the epoch that operators put in use, or had in use before."""
    await server.adopt(2, NOW + 300 * DAY)
    server.now = NOW + 400 * DAY
    await server.adopt(3, NOW + 500 * DAY)
    await server.retire(1)
    server.now = NOW
    assert await server.states() == ["retired", "scheduled", "scheduled"]


async def test_after_a_clock_that_was_wrong_for_long_an_epoch_is_put_in_use_and_not_made_to_wait(
    server: Server,
) -> None:
    made = await server.adopt(2, NOW + 300 * DAY)
    server.now = NOW + 400 * DAY
    for server.elapsed in (0.0, LONG):
        await server.store.epochs()
    server.now = NOW
    assert "If it is the clock: `kms keys rotate`" in await untrusted(server)
    assert (await server.store.epochs_to_rotate()).newest == made
    before = await copy(server.engine, key_epochs)
    with pytest.raises(EpochsUntrusted):
        await server.store.move_epoch(made, replace(made, active_from=NOW + DAY), action("later"))
    assert await copy(server.engine, key_epochs) == before
    await server.store.move_epoch(made, replace(made, active_from=NOW), action("now"))
    assert await server.states() == ["available", "current"]
    server.restart()
    assert await server.states() == ["available", "current"]


@pytest.mark.parametrize("what", ["adopted", "retired"])
async def test_an_older_copy_in_which_more_is_missing_is_not_rotated(server: Server, what: str) -> None:
    """Nor does the remedy of it say that it might be the clock."""
    made = await server.adopt(2, NOW + DAY)
    before = await copy(server.engine, key_epochs)
    await server.store.move_epoch(made, replace(made, active_from=NOW), action("now"))
    await change_something(server, what)
    await put_back(server.engine, key_epochs, before)
    assert "If it is the clock" not in await untrusted(server)
    with pytest.raises(EpochsUntrusted):
        await server.store.epochs_to_rotate()
    with pytest.raises(EpochsUntrusted):
        await server.store.move_epoch(made, replace(made, active_from=NOW), action("again"))
    assert await copy(server.engine, key_epochs) == before


@pytest.mark.parametrize("command", [False, True], ids=["this process", "another process"])
async def test_a_change_while_somebody_reads_is_no_older_copy(
    server: Server, monkeypatch: pytest.MonkeyPatch, command: bool
) -> None:
    """Whoever read the rows just before a change holds them against what was seen before that."""
    await server.adopt(2)
    before = await server.store.epochs()
    read, go_on = asyncio.Event(), asyncio.Event()
    rows_of = keys_module._all

    async def slow(connection: AsyncConnection, table: Table) -> Any:
        rows = await rows_of(connection, table)
        read.set()
        await go_on.wait()
        return rows

    server.elapsed += 1.0
    with monkeypatch.context() as slowly:
        slowly.setattr(keys_module, "_all", slow)
        asking = asyncio.create_task(server.store.epochs())
        await read.wait()
    await (Server(server.engine, server.folder) if command else server).retire(1)
    go_on.set()
    assert await asking == before
    assert await server.states() == ["retired", "current"]


async def test_many_readers_and_one_that_changes_never_see_an_older_copy(server: Server) -> None:
    for number in range(2, 6):
        await server.adopt(number)

    async def read() -> None:
        for _ in range(10):
            await server.store.epochs()
            server.elapsed += 0.5

    async def change() -> None:
        for number in range(1, 5):
            await server.retire(number)

    await asyncio.gather(change(), *(read() for _ in range(5)))
    assert await server.states() == ["retired"] * 4 + ["current"]


# --- the anchor


async def test_the_anchor_is_written_before_an_epoch_is_used(server: Server) -> None:
    await server.adopt(2, NOW + DAY)
    await server.store.epochs()
    assert await server.anchor.read_keys() == KeyProgress(epochs=2)
    server.elapsed += LONG
    await server.store.epochs()
    assert await server.anchor.read_keys() == KeyProgress(epochs=2, in_use=1)
    server.now += DAY
    for server.elapsed in (LONG, 2 * LONG):
        await server.store.epochs()
    await server.retire(1)
    await server.store.add_generation(generation(2), action("two"))
    assert await server.anchor.read_keys() == KeyProgress(
        epochs=2, in_use=2, retired=frozenset({1}), generations=2
    )


async def test_an_anchor_that_cannot_be_read_stops_everything(server: Server) -> None:
    await server.store.epochs()
    server.anchor.path.write_bytes(b"{}")
    server.elapsed += 1.0
    with pytest.raises(AnchorUnusable):
        await server.store.epochs()


async def test_what_cannot_be_anchored_is_not_used_and_the_change_stands(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(_: FileAnchor, progress: KeyProgress) -> None:
        raise LedgerUnavailable("the anchor cannot be written: No space left on device")

    await server.store.epochs()
    with monkeypatch.context() as broken:
        broken.setattr(FileAnchor, "remember_keys", full)
        with capture_logs() as logs:
            await server.adopt(2)
        assert [each["event"] for each in logs] == ["keys-not-anchored"]
        with pytest.raises(LedgerUnavailable, match="No space"):
            await server.store.epochs()
    assert await server.states() == ["available", "current"]


async def test_while_nothing_changes_the_anchor_is_read_once_a_second_and_never_written(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await server.adopt(2)
    await server.store.epochs()
    reads = []
    read = FileAnchor.read_keys

    async def counted(self: FileAnchor) -> KeyProgress:
        reads.append(server.elapsed)
        return await read(self)

    monkeypatch.setattr(FileAnchor, "read_keys", counted)
    monkeypatch.setattr(FileAnchor, "remember_keys", None)
    for server.elapsed in (0.0, 0.9, 1.0, 1.5, 2.0):
        await asyncio.gather(*(server.store.epochs() for _ in range(5)))
    assert reads == [1.0, 2.0]


async def test_while_nothing_changes_no_mac_is_computed(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await server.store.epochs()
    monkeypatch.setattr(RowSeal, "verifies", None)
    assert await server.states() == ["current"]


async def test_the_database_that_is_gone_is_said_to_be(server: Server) -> None:
    await by_hand(server.engine, "ALTER TABLE key_epochs RENAME TO elsewhere")
    with pytest.raises(LedgerUnavailable) as refused:
        await server.store.epochs()
    assert refused.value.reason == "ledger-unavailable"


def test_progress_includes_only_what_is_not_further_in_anything() -> None:
    some = KeyProgress(epochs=3, in_use=2, retired=frozenset({1}), generations=2)
    assert some.includes(KeyProgress())
    assert some.includes(some)
    for further in (
        replace(some, epochs=4),
        replace(some, in_use=3),
        replace(some, retired=frozenset({2})),
        replace(some, generations=3),
    ):
        assert not some.includes(further)
        assert some.united(further).includes(some)


def test_a_table_takes_an_epoch_only_in_its_place() -> None:
    first = Epoch(number=1, made_at=NOW, made_by="x", active_from=NOW)
    table = EpochTable((first,))
    two = table.with_epoch(replace(first, number=2))
    assert [each.number for each in two.epochs] == [1, 2]
    ended = two.with_epoch(replace(first, retired_at=NOW))
    assert [ended.state(each, NOW) for each in ended.epochs] == [EpochState.RETIRED, EpochState.CURRENT]
    with pytest.raises(ValueError, match="gap"):
        table.with_epoch(replace(first, number=3))


async def test_root_checks_are_not_touched_by_a_refused_adoption(server: Server) -> None:
    await server.adopt(2)
    with pytest.raises(KeysConflict):
        await server.adopt(2, by="bob")
    assert {row["epoch"] for row in await copy(server.engine, root_checks)} == {1, 2}
