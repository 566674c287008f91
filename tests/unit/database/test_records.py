"""Reading the record: filters, pages without gaps, look-ups by index, and all of it a page at a time."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, event, text
from sqlalchemy.ext.asyncio import AsyncEngine

from kms.database import records as records_module
from kms.database.decisions import DecisionStore
from kms.database.engine import reading, writing
from kms.database.records import DecisionRecords
from kms.database.schema import decisions, entries
from kms.errors import LedgerUnavailable, NotFound
from kms.identifiers import AppId, ChipId
from kms.ledger.entries import REFUSED, RELEASED, DecisionEntry, timestamp
from kms.ledger.recorded import RecordDamaged, RecordedDecision
from kms.operator_ports import RecordFilter
from kms.policy.decision import Ask
from tests.recording import recorder
from tests.unit.database.dialects import ON_SQLITE, values
from tests.unit.policy.samples import APP_ID, BOOT_INFO, CHIP, NOW, key

OTHER_APP, OTHER_CHIP = AppId(b"\xa2" * 20), ChipId(b"\xc2" * 64)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def records(engine: AsyncEngine) -> DecisionRecords:
    return DecisionRecords(engine, recorder())


def entry(name: str, at: datetime = NOW, *, proven: bool = True, **changes: Any) -> DecisionEntry:
    """Give a decision; what BootInfo has of the changes is changed there."""
    shown = {name: changes.pop(name) for name in list(changes) if name in {"app_id", "chip_id", "image"}}
    made = DecisionEntry(
        release_id=name,
        decided_at=at,
        outcome=RELEASED,
        code=None,
        reasons=(),
        checks=(),
        boot_info=replace(BOOT_INFO, **shown) if proven else None,
        document=None,
        ask=Ask((key("disk"),)),
        epochs=(1,),
        policy_revision=None,
        challenge=None,
        client="192.0.2.1",
        development=False,
        salt=bytes(16),
    )
    return replace(made, **changes)


async def record(engine: AsyncEngine, *entries: DecisionEntry) -> None:
    store = DecisionStore(engine, lambda: NOW, recorder())
    store.start()
    for each in entries:
        await store.record(each, None)
    await store.stop()


async def found(records: DecisionRecords, limit: int = 50, **wanted: Any) -> list[str]:
    entries = await records.entries(RecordFilter(**wanted), limit=limit)
    return [str(each["release_id"]) for each in entries]


async def scanned(records: DecisionRecords, since: datetime, until: datetime | None = None) -> list[str]:
    entries = [each async for each in records.scan(since, until=until)]
    return [str(each.get("release_id")) if isinstance(each, dict) else "damaged" for each in entries]


async def test_a_decision_is_found_by_its_id_as_it_was_recorded(
    engine: AsyncEngine, records: DecisionRecords
) -> None:
    recorded = entry("r1", challenge=b"challenge")
    await record(engine, recorded)
    read = await records.entry("r1")
    assert read is not None
    assert RecordedDecision.from_json(read).boot_info == recorded.boot_info
    assert await records.entry("r2") is None


async def test_what_is_looked_up_is_in_columns_of_its_own(engine: AsyncEngine) -> None:
    await record(engine, entry("r1"), entry("r2", proven=False))
    async with reading(engine) as connection:
        rows = (await connection.execute(decisions.select().order_by(decisions.c.id))).all()
    assert [(row.app_id, row.chip_id, row.image, row.measurement) for row in rows] == [
        (APP_ID.hex(), CHIP.hex(), "demo-os-1", "33" * 48),
        (None, None, None, None),
    ]


async def test_each_filter_gives_what_matches_newest_first(
    engine: AsyncEngine, records: DecisionRecords
) -> None:
    await record(
        engine,
        entry("a", NOW),
        entry("b", NOW + MINUTE, app_id=OTHER_APP),
        entry("c", NOW + 2 * MINUTE, chip_id=OTHER_CHIP),
        entry("d", NOW + 3 * MINUTE, image="os-2"),
        entry("e", NOW + 4 * MINUTE, outcome=REFUSED, code="policy-denied"),
        entry("f", NOW + 5 * MINUTE, outcome=REFUSED, code="evidence-untrusted", proven=False),
    )
    assert await found(records) == ["f", "e", "d", "c", "b", "a"]
    assert await found(records, app=OTHER_APP.hex()) == ["b"]
    assert await found(records, chip=OTHER_CHIP.hex()) == ["c"]
    assert await found(records, chip=CHIP.hex(), app=APP_ID.hex()) == ["e", "d", "a"]
    assert await found(records, image="os-2") == ["d"]
    assert await found(records, outcome=REFUSED) == ["f", "e"]
    assert await found(records, outcome=REFUSED, code="policy-denied") == ["e"]
    assert await found(records, since=NOW + MINUTE, until=NOW + 4 * MINUTE) == ["d", "c", "b"]
    assert await found(records, app="00" * 20) == []
    assert await found(records, limit=2, app=APP_ID.hex()) == ["e", "d"]


async def test_pages_have_no_gaps_where_many_are_of_one_moment(
    engine: AsyncEngine, records: DecisionRecords
) -> None:
    names = [f"{number:03}" for number in range(20)]
    await record(engine, *(entry(name, NOW + MINUTE * (int(name) // 8)) for name in names))
    pages, before = [], None
    while page := await found(records, limit=3, before=before, app=APP_ID.hex()):
        pages.append(page)
        before = page[-1]
    assert [len(page) for page in pages] == [3] * 6 + [2]
    assert [name for page in pages for name in page] == names[::-1]


async def test_a_cursor_that_is_no_decision_is_said(engine: AsyncEngine, records: DecisionRecords) -> None:
    await record(engine, entry("a"))
    with pytest.raises(NotFound) as refused:
        await found(records, before="nothing")
    assert refused.value.reason == "cursor-unknown"


@pytest.mark.parametrize("kept", [1, 3, 5, 7, 500])
async def test_all_of_a_time_is_read_a_page_at_a_time(
    engine: AsyncEngine, records: DecisionRecords, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    monkeypatch.setattr(records_module, "_PAGE", kept)
    names = [f"{number:03}" for number in range(7)]
    await record(engine, *(entry(name, NOW + MINUTE * (int(name) // 4)) for name in names))
    assert await scanned(records, NOW) == names[::-1]
    assert await scanned(records, NOW + MINUTE) == names[:3:-1]
    assert await scanned(records, NOW, NOW + MINUTE) == names[3::-1]
    assert await scanned(records, NOW + 2 * MINUTE) == []


async def test_what_is_recorded_during_a_scan_does_not_disturb_it(
    engine: AsyncEngine, records: DecisionRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does the scan hold the database: it has no connection while its reader is at work."""
    monkeypatch.setattr(records_module, "_PAGE", 2)
    await record(engine, *(entry(f"{number}", NOW + MINUTE * number) for number in range(5)))
    seen = []
    async for each in records.scan(NOW):
        assert isinstance(each, dict)
        seen.append(each["release_id"])
        assert "Current Checked out connections: 0" in engine.pool.status()
        await record(engine, entry(f"late {len(seen)}", NOW + MINUTE * 9))
    assert seen == ["4", "3", "2", "1", "0"]


@ON_SQLITE
@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        (RecordFilter(), "decisions_by_time"),
        (RecordFilter(since=NOW, until=NOW + MINUTE), "decisions_by_time"),
        (RecordFilter(outcome=REFUSED), "decisions_by_time"),
        (RecordFilter(before="000"), "decisions_by_time"),
        (RecordFilter(app=APP_ID.hex()), "decisions_by_app"),
        (RecordFilter(app=APP_ID.hex(), since=NOW, before="000"), "decisions_by_app"),
        (RecordFilter(chip=CHIP.hex()), "decisions_by_chip"),
        (RecordFilter(chip=CHIP.hex(), since=NOW, before="000"), "decisions_by_chip"),
    ],
)
async def test_pages_are_found_by_index(
    engine: AsyncEngine, records: DecisionRecords, wanted: RecordFilter, index: str
) -> None:
    await record(engine, entry("000"))
    asked: list[tuple[str, Any]] = []

    def note(_: Connection, __: object, statement: str, parameters: Any, *___: object) -> None:
        asked.append((statement, parameters))

    event.listen(engine.sync_engine, "before_cursor_execute", note)
    await records.entries(wanted, limit=10)
    event.remove(engine.sync_engine, "before_cursor_execute", note)
    statement, parameters = asked[-1]
    async with reading(engine) as connection:
        plan = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        steps = [row.detail for row in plan]
    assert f"INDEX {index}" in steps[0]
    # Only decisions of one moment are sorted, never the table.
    assert all("TEMP B-TREE" not in step or "LAST TERM" in step or "RIGHT PART" in step for step in steps)
    assert steps[0].startswith("SEARCH") or wanted in {RecordFilter(), RecordFilter(outcome=REFUSED)}


OTHERS = b'{"release_id": "a", "decided_at": "2026-11-22T12:00:00.000000Z"}'


@values("written", [b"\xff", b"{", b"[]", b"[" * 100_000, b"{}", OTHERS], on_sqlite=["text", 5])
async def test_what_was_overwritten_is_said_and_hides_nothing_else(
    engine: AsyncEngine, records: DecisionRecords, written: object
) -> None:
    await record(engine, *(entry(name, NOW + MINUTE * place) for place, name in enumerate("abc")))
    async with writing(engine) as connection:
        # As a shell of the database would: SQLite keeps values of any type.
        await connection.execute(
            text("UPDATE entries SET entry = :written WHERE id = 'b'"), {"written": written}
        )
    with pytest.raises(RecordDamaged, match="decision b is not the JSON object"):
        await records.entry("b")
    assert await found(records) == ["c", "b", "a"]
    listed = await records.entries(RecordFilter(), limit=50)
    assert listed[1] == {"release_id": "b", "decided_at": timestamp(NOW + MINUTE)}
    assert await found(records, limit=1, before="c") == ["b"]
    assert await found(records, limit=1, before="b") == ["a"]
    assert len(await scanned(records, NOW)) == 3


async def test_a_database_that_does_not_answer_is_unavailable(
    engine: AsyncEngine, records: DecisionRecords
) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("DROP TABLE decisions"))
    for asked in (records.entry("a"), found(records), scanned(records, NOW)):
        with pytest.raises(LedgerUnavailable):
            await asked


async def test_what_is_recorded_later_is_told_by_its_place_and_not_by_its_time(
    engine: AsyncEngine, records: DecisionRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kms.database.records._PAGE", 2)
    assert await records.end() == 0
    await record(engine, entry("z"), entry("y"))
    place = await records.end()
    assert [each async for each in records.scan_after(place)] == []
    later = [entry(name, NOW - number * timedelta(days=9)) for number, name in enumerate("dcxba")]
    await record(engine, *later)
    async with engine.begin() as connection:
        await connection.execute(entries.update().where(entries.c.id == "x").values(entry=b"\xff"))
    found = [each async for each in records.scan_after(place)]
    names = [each["release_id"] if isinstance(each, dict) else each for _, each in found]
    assert names == ["d", "c", None, "b", "a"]
    places = [at for at, _ in found]
    assert places == sorted(set(places))
    assert (places[0] > place, places[-1]) == (True, await records.end())
