"""``kms keys`` for operators, before an office that only remembers."""

import json
from collections import Counter
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from kms.cli import run
from kms.errors import EpochInUse, KeysConflict, NotFound, OperatorRefusal
from tests.fake_office import FakeOffice

Captured = pytest.CaptureFixture[str]

AT = "2026-11-22T12:00:00.000000Z"
LATER = "2026-12-01T00:00:00.000000Z"
APP, OTHER, CHIP = "86" * 20, "5b" * 32, "38d1" + "6f" * 62
MONTH = timedelta(days=30)


def epoch(number: int, state: str, **changes: Any) -> dict[str, Any]:
    return {
        "epoch": number,
        "state": state,
        "made_at": AT,
        "made_by": "alice",
        "active_from": AT,
        "retired_at": None,
        "retired_by": None,
        **changes,
    }


FIRST: dict[str, Any] = {"generation": 1, "identity": "A" * 43, "made_at": None, "made_by": None}
KEYS: dict[str, Any] = {
    "epochs": [
        epoch(1, "retired", active_from="1970-01-01T00:00:00.000000Z", retired_at=LATER, retired_by="bob"),
        epoch(2, "current"),
        epoch(3, "scheduled", active_from=LATER),
    ],
    "current": 2,
    "root": None,
    "not_adopted": [],
    "identity": {"generation": 1, "generations": [FIRST]},
}


def left_behind(number: int) -> dict[str, Any]:
    instance = f"{number:032x}"
    return {
        "app_id": APP,
        "instance_id": instance,
        "chip_id": CHIP,
        "last_seen": AT,
        "epochs": [1],
        "keys": [{"name": "disk", "scope": "instance"}, {"name": "env", "scope": "app"}],
    }


def guest(app: str, epoch: int, instance: str | None = None) -> dict[str, Any]:
    return {
        "app_id": app,
        "instance_id": instance,
        "chip_id": None,
        "epochs": {str(epoch): AT},
        "epoch": epoch,
        "last_seen": AT,
    }


def rotation(*guests: dict[str, Any], unlisted: int = 0, **changes: Any) -> dict[str, Any]:
    """Give an answer that lists `guests`, and counts so many more that are of epoch 1."""
    by_epoch = Counter([*(guest["epoch"] for guest in guests), *[1] * unlisted])
    return {
        "since": AT,
        "guests": [*guests],
        "count": by_epoch.total(),
        "by_epoch": {str(number): count for number, count in sorted(by_epoch.items())},
        "records": 7,
        "damaged": 0,
        "complete": True,
        **changes,
    }


def behind(*guests: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "guests": [*guests],
        "count": len(guests),
        "pinned": [],
        "damaged": 0,
        "complete": True,
        **changes,
    }


def kms(*argv: str) -> int:
    return run(["keys", *argv])


# ── what there is ─────────────────────────────────────────────────────────────────────────────


def test_every_epoch_and_generation_has_a_line(office: FakeOffice, capsys: Captured) -> None:
    second: dict[str, Any] = {"generation": 2, "identity": "B" * 43, "made_at": AT, "made_by": "alice"}
    office.answers["keys"] = {**KEYS, "identity": {"generation": 2, "generations": [FIRST, second]}}
    assert kms("list") == 0
    made = "made 2026-11-22 12:00:00 by alice"
    assert capsys.readouterr().out.splitlines() == [
        f"epoch 1: retired, {made}, retired 2026-12-01 00:00:00 by bob",
        f"epoch 2: current, {made}",
        f"epoch 3: scheduled, {made}, active from 2026-12-01 00:00:00",
        f"identity, generation 1: {'A' * 43}, as old as the root",
        f"identity, generation 2: {'B' * 43}, {made}",
    ]


def test_what_nobody_adopted_and_no_current_epoch_are_said_plainly(
    office: FakeOffice, capsys: Captured
) -> None:
    office.answers["keys"] = {**KEYS, "current": None, "not_adopted": [4, 5]}
    assert kms("list") == 0
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if line.startswith("version ")] == [
        f"version {number} of the root exists at its provider and was never adopted:"
        " no key is made of it until `kms keys rotate` adopts it"
        for number in (4, 5)
    ]
    assert "NO epoch is current: no guest gets a key" in said


def test_while_the_root_does_not_answer_the_epochs_are_said_all_the_same(
    office: FakeOffice, capsys: Captured
) -> None:
    office.answers["keys"] = {
        **KEYS,
        "root": "root-key-sealed",
        "not_adopted": None,
        "identity": {"generation": 1, "generations": [{**FIRST, "identity": None}]},
    }
    assert kms("list") == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in said[:3]] == [
        "epoch 1: retired",
        "epoch 2: current",
        "epoch 3: scheduled",
    ]
    assert said[3:] == [
        "the root key does not answer now (root-key-sealed): what only it can tell is left out",
        "identity, generation 1: not known now, as old as the root",
    ]


@pytest.mark.parametrize(
    "answer",
    [{}, {**KEYS, "epochs": 1}, {**KEYS, "not_adopted": ["4"]}, {**KEYS, "identity": None}],
)
def test_an_answer_of_another_form_is_no_traceback(
    office: FakeOffice, capsys: Captured, answer: dict[str, Any]
) -> None:
    office.answers["keys"] = answer
    assert kms("list") == 2
    assert "answer" in capsys.readouterr().err


# ── changing it ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("argv", "asked"),
    [
        (["rotate"], {"at": None}),
        (["schedule", "--at", "2026-12-01T00:00:00Z"], {"at": datetime(2026, 12, 1, tzinfo=UTC)}),
        (
            ["schedule", "--at", "2026-12-01T00:00:00.5-05:00"],
            {"at": datetime(2026, 12, 1, 0, 0, 0, 500_000, tzinfo=timezone(timedelta(hours=-5)))},
        ),
    ],
)
def test_the_next_epoch_is_made(
    office: FakeOffice, capsys: Captured, argv: list[str], asked: dict[str, Any]
) -> None:
    office.answers["rotate"] = {"epoch": epoch(2, "current")}
    assert kms(*argv) == 0
    assert capsys.readouterr().out.startswith("epoch 2: current, made ")
    assert office.asked("rotate") == [asked]


def test_the_identity_is_rotated_only_by_its_own_option(office: FakeOffice, capsys: Captured) -> None:
    office.answers["rotate_identity"] = {"generation": 2, "identity": "B" * 43}
    assert kms("rotate", "--identity") == 0
    said = capsys.readouterr().out
    assert f"identity, generation 2: {'B' * 43}\n" in said
    assert "started again" in said
    assert [call.method for call in office.calls] == ["rotate_identity"]


def test_an_epoch_is_retired(office: FakeOffice, capsys: Captured) -> None:
    retired = epoch(1, "retired", retired_at=LATER, retired_by="alice")
    office.answers["retire"] = {"epoch": retired, **behind()}
    assert kms("retire", "1") == 0
    assert capsys.readouterr().out.count("\n") == 1
    office.answers["retire"] = {"epoch": retired, **behind(left_behind(7))}
    assert kms("retire", "1", "--seen-within", "90d", "--force") == 0
    took = "took epoch 1 of disk@instance, env@app"
    assert capsys.readouterr().out.splitlines()[1:] == [
        "left behind:",
        f"  app {APP}, instance {7:032x}, chip {CHIP[:16]}…: {took}, last seen 2026-11-22 12:00:00",
    ]
    assert office.asked("retire") == [
        {"epoch": 1, "seen_within": MONTH, "force": False},
        {"epoch": 1, "seen_within": 3 * MONTH, "force": True},
    ]


def test_an_epoch_in_use_is_not_retired_and_the_guests_are_named(
    office: FakeOffice, capsys: Captured
) -> None:
    guests = [left_behind(number) for number in range(50)]
    refusal = EpochInUse("60 guests were seen lately", details=behind(*guests, count=60))
    office.answers["retire"] = refusal
    assert kms("retire", "1") == 1
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert said.out == ""
    assert lines[0] == "kms keys: epoch-in-use: 60 guests were seen lately"
    assert sum(line.startswith(f"  app {APP}, instance ") for line in lines) == 50
    assert lines[-2] == "  and 10 more"
    assert "--force" in lines[-1]
    assert kms("retire", "1", "--json") == 1
    assert json.loads(capsys.readouterr().out)["error"]["details"] == refusal.details


def test_a_server_that_names_more_guests_does_not_fill_the_screen(
    office: FakeOffice, capsys: Captured
) -> None:
    guests = [left_behind(number) for number in range(70)]
    office.answers["retire"] = EpochInUse("many", details=behind(*guests))
    assert kms("retire", "1") == 1
    said = capsys.readouterr().err
    assert said.count(f"app {APP}") == 50
    assert "  and 20 more\n" in said


@pytest.mark.parametrize(
    ("reason", "details", "said"),
    [
        ("epoch-pinned", behind(pinned=[APP]), f"  app {APP}: pinned to it by the policy in force"),
        (
            "epoch-pins-unknown",
            behind(pinned=None),
            "  apps that the policy in force pins to it, if any: it cannot be asked",
        ),
        (
            "records-damaged",
            behind(damaged=3),
            "3 record(s) cannot be read any more: guests may be missing here",
        ),
        (
            "too-many-records",
            behind(complete=False),
            "NOT ALL: there are more records than are read at once; only the latest were",
        ),
    ],
)
def test_what_stands_against_it_but_guests_can_be_forced_too(
    office: FakeOffice, capsys: Captured, reason: str, details: dict[str, Any], said: str
) -> None:
    office.answers["retire"] = EpochInUse("it may be in use", reason=reason, details=details)
    assert kms("retire", "1") == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[1:-1] == [said]
    assert "--force" in lines[-1]


@pytest.mark.parametrize(
    ("refusal", "status"),
    [(KeysConflict("epoch 2 is the current one"), 1), (NotFound("there is no epoch 9"), 2)],
)
def test_other_refusals_say_why(
    office: FakeOffice, capsys: Captured, refusal: OperatorRefusal, status: int
) -> None:
    office.answers["retire"] = refusal
    assert kms("retire", "9") == status
    assert refusal.detail in capsys.readouterr().err


# ── who took which ────────────────────────────────────────────────────────────────────────────


def test_a_rotation_is_a_table_by_app_and_then_the_stragglers(office: FakeOffice, capsys: Captured) -> None:
    office.answers["keys"] = KEYS
    office.answers["rotation"] = rotation(
        guest(OTHER, 2), guest(APP, 1, "1f" * 16), guest(APP, 2), guest(APP, 2), damaged=1
    )
    assert kms("rotation", "--since", "7d") == 0
    assert capsys.readouterr().out.splitlines() == [
        f"app{' ' * 61}  guests  epoch 1  epoch 2",
        f"{OTHER}       1        0        1",
        f"{APP:<64}       3        1        2",
        f"{'all':<64}       4        1        3",
        "4 guest(s) in 7 record(s) since 2026-11-22 12:00:00",
        "1 record(s) cannot be read any more: guests may be missing here",
        "1 guest(s) are still of an older epoch than 2, the current one:",
        f"  app {APP}, instance {'1f' * 16}: still of epoch 1, last seen 2026-11-22 12:00:00",
    ]
    assert office.asked("rotation") == [{"app": None, "since": timedelta(days=7)}]


def test_right_after_a_rotation_everybody_is_a_straggler(office: FakeOffice, capsys: Captured) -> None:
    """Though nobody took the new epoch yet, so that no guest shows that there is one."""
    office.answers["keys"] = KEYS
    office.answers["rotation"] = rotation(guest(APP, 1), guest(APP, 1))
    assert kms("rotation", "--app", APP) == 0
    assert "2 guest(s) are still of an older epoch than 2" in capsys.readouterr().out
    assert office.asked("rotation") == [{"app": APP, "since": MONTH}]


@pytest.mark.parametrize(
    ("guests", "current", "last"),
    [
        ([guest(APP, 2), guest(APP, 3)], 2, "every guest is of epoch 2, the current one"),
        ([], 2, "0 guest(s) in 7 record(s) since 2026-11-22 12:00:00"),
        ([guest(APP, 2)], None, "NO epoch is current: no guest gets a key"),
    ],
)
def test_a_rotation_that_is_done(
    office: FakeOffice, capsys: Captured, guests: list[Any], current: int | None, last: str
) -> None:
    office.answers |= {"keys": {**KEYS, "current": current}, "rotation": rotation(*guests)}
    assert kms("rotation") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == last
    assert ("no guest took a key in this time" in said) == (not guests)


def test_of_very_many_guests_all_are_counted_and_what_is_left_out_is_said(
    office: FakeOffice, capsys: Captured
) -> None:
    office.answers |= {"keys": KEYS, "rotation": rotation(guest(APP, 1), unlisted=5, complete=False)}
    assert kms("rotation") == 0
    said = capsys.readouterr().out.splitlines()
    assert f"{'all':<40}       6        6" in said
    assert "by app only the 1 that are furthest behind: see --app" in said
    assert "NOT ALL: there are more records than are read at once; only the latest were" in said
    assert said[-3].startswith("6 guest(s) are still of an older epoch than 2")
    assert said[-1] == "  and 5 more"


@pytest.mark.parametrize("by_epoch", [{"x": 1}, {"1": "1"}, {"0": 1}, {"9" * 5000: 1}, [1]])
def test_a_count_of_another_form_is_no_traceback(office: FakeOffice, by_epoch: Any) -> None:
    office.answers |= {"keys": KEYS, "rotation": rotation(by_epoch=by_epoch)}
    assert kms("rotation") == 2


def test_what_others_wrote_does_not_move_the_cursor(office: FakeOffice, capsys: Captured) -> None:
    office.answers["keys"] = KEYS
    office.answers["rotation"] = rotation(guest("\x1b[2J", 1, "\u202e"))
    assert kms("rotation") == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "\u202e" not in said


# ── for programs, and wrong use ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("argv", "asked", "answer"),
    [
        (["list"], "keys", KEYS),
        (["rotate"], "rotate", {"epoch": epoch(2, "current")}),
        (["rotate", "--identity"], "rotate_identity", {"generation": 2, "identity": "B" * 43}),
        (["schedule", "--at", "2026-12-01T00:00:00Z"], "rotate", {"epoch": epoch(2, "scheduled")}),
        (["retire", "1"], "retire", {"epoch": epoch(1, "retired"), **behind(left_behind(1))}),
        (["rotation"], "rotation", rotation(guest(APP, 1))),
    ],
)
def test_for_programs_the_answer_is_one_document(
    office: FakeOffice, capsys: Captured, argv: list[str], asked: str, answer: dict[str, Any]
) -> None:
    office.answers[asked] = answer
    assert kms(*argv, "--json") == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == answer
    assert said.err == ""
    assert [call.method for call in office.calls] == [asked]


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["nosuch"],
        ["rotate", "--at", "2026-12-01T00:00:00Z"],
        ["schedule"],
        ["schedule", "--identity", "--at", "2026-12-01T00:00:00Z"],
        *(
            ["schedule", "--at", time]
            for time in (
                "2026-12-01T00:00:00", "2026-12-01", "2026-12-01T00:00Z", "2026-W49-2T00:00:00Z", "+7d", "",
                "2026-13-01T00:00:00Z", "2026-12-01T00:00:00+25:00", "1999-12-01T00:00:00Z",
                "9999-12-31T23:59:59-23:00", "२०२६-12-01T00:00:00Z", "now",
            )
        ),
        ["retire"],
        *(["retire", number] for number in ("0", "-1", "1.0", "x", "0x1", "٣", "9" * 30, "")),
        ["retire", "1", "--seen-within", "0d"],
        ["rotation", "--since", "ever"],
        *(["rotation", "--app", app] for app in ("", "86", "00" * 20, "86" * 21, "AB" * 20, "payments")),
    ],
)  # fmt: skip
def test_wrong_use_is_said_and_nothing_is_asked(
    office: FakeOffice, capsys: Captured, argv: list[str]
) -> None:
    assert kms(*argv) == 2
    assert capsys.readouterr().err
    assert office.calls == []
