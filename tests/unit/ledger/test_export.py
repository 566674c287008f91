"""An export reads back as it was written, is verified from its lines alone, and a broken one says where."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from kms.ledger.export import (
    FORMAT,
    MAX_ENTRY,
    MAX_LINE,
    ExportedLeaf,
    ExportHeader,
    ExportInvalid,
    read_export,
)
from kms.ledger.verifying import LedgerVerification
from tests import ledger_verifier
from tests.unit.ledger.recorded_ledger import KEY, ORIGIN, RecordedLedger, sealed

LEDGER = RecordedLedger.of(3)
HEADER = ExportHeader(origin=ORIGIN, key=KEY.verifier_key, checkpoint=LEDGER.notes[3], size=3)
LEAVES = [ExportedLeaf(index=index, place=index + 1, entry=sealed(index + 1)) for index in range(3)]
LINES = [HEADER.line().encode(), *(leaf.line().encode() for leaf in LEAVES)]


def read(lines: list[bytes]) -> tuple[ExportHeader, list[ExportedLeaf]]:
    export = read_export(lines)
    return export.header, list(export.leaves)


def test_an_export_reads_back_without_its_macs() -> None:
    header, leaves = read(LINES)
    assert header == HEADER
    assert leaves == [replace(leaf, entry=replace(leaf.entry, mac=b"")) for leaf in LEAVES]
    assert all(b"mac" not in line for line in LINES)
    assert list(json.loads(LINES[0])) == ["format", "origin", "key", "checkpoint", "size"]
    assert list(json.loads(LINES[1])) == ["index", "place", "id", "kind", "server", "salt", "entry"]


def test_an_export_is_verified_from_its_lines() -> None:
    export = read_export(LINES)
    verification = LedgerVerification(export.header.checkpoint, KEY.verifier_key)
    for leaf in export.leaves:
        verification.read_leaf(leaf.index, leaf.place, leaf.entry)
    assert verification.report().sound
    _, size, root = ledger_verifier.open_checkpoint(export.header.checkpoint, export.header.key)
    _, leaves = read(LINES)
    assert size == 3
    assert ledger_verifier.mth([leaf.entry.digest for leaf in leaves]) == root


def test_an_empty_ledger_has_an_export_of_one_line() -> None:
    header = replace(HEADER, checkpoint=RecordedLedger.of(0).notes[0], size=0)
    assert read([header.line().encode()]) == (header, [])


Change = Callable[[dict[str, object]], object]


def put(name: str, value: object) -> Change:
    return lambda members: members.__setitem__(name, value)


@pytest.mark.parametrize(
    ("number", "change"),
    [
        (1, put("format", "attested-kms-ledger/2")),
        (1, put("size", -1)),
        (1, put("size", "3")),
        (1, put("origin", "a b")),
        (1, put("key", "\x1b[2J")),
        (1, put("more", 1)),
        (1, lambda members: members.pop("checkpoint")),
        (2, put("index", 1)),
        (3, put("index", 0)),
        (3, put("index", 1.0)),
        (3, put("index", True)),
        (2, put("place", 0)),
        (2, put("id", "")),
        (2, put("id", "r1\n")),
        (2, put("id", "\x1b[31m")),
        (2, put("id", "r" * 65)),
        (2, put("kind", "decision or not at all")),
        (2, put("server", "s" * 65)),
        (2, put("salt", "AAAA")),
        (2, put("salt", "A" * 24)),
        (2, put("entry", "*")),
        (2, put("entry", None)),
        (2, put("mac", "AAAA")),
        (4, lambda members: members.pop("entry")),
    ],
)
def test_a_line_that_is_not_just_so_is_named(number: int, change: Change) -> None:
    members = json.loads(LINES[number - 1])
    change(members)
    lines = [*LINES]
    lines[number - 1] = json.dumps(members).encode() + b"\n"
    with pytest.raises(ExportInvalid, match=f"^line {number}: "):
        read(lines)


@pytest.mark.parametrize(
    ("lines", "number"),
    [
        ([], 1),
        ([b""], 1),
        ([b"\n"], 1),
        ([b"[]\n"], 1),
        ([LINES[0][:-1]], 1),
        (LINES[1:], 1),
        (LINES[:3], 4),
        (LINES[:1], 2),
        ([*LINES, LINES[3]], 5),
        ([LINES[0], LINES[2], LINES[1], LINES[3]], 2),
        ([*LINES[:2], b"\n", *LINES[2:]], 3),
        ([*LINES[:3], LINES[3][:-1]], 4),
        ([*LINES[:3], LINES[3][:-2] + b',"id":"r9"}\n'], 4),
        ([*LINES[:3], b"\xff\n"], 4),
        ([*LINES[:3], b" " * MAX_LINE + LINES[3]], 4),
        ([LINES[0], b"[" * 100_000 + b"\n"], 2),
    ],
)
def test_missing_further_and_foreign_lines_are_named(lines: list[bytes], number: int) -> None:
    with pytest.raises(ExportInvalid, match=f"^line {number}: "):
        read(lines)


def test_the_largest_entry_fits_and_a_larger_one_is_not_written() -> None:
    large = ExportedLeaf(index=0, place=1, entry=replace(sealed(1), entry=bytes(MAX_ENTRY), mac=b""))
    header = replace(HEADER, size=1)
    assert read([header.line().encode(), large.line().encode()]) == (header, [large])
    with pytest.raises(ValueError, match="entry"):
        replace(large, entry=replace(large.entry, entry=bytes(MAX_ENTRY + 1))).line()


def test_the_format_has_its_name() -> None:
    assert json.loads(LINES[0])["format"] == FORMAT == "attested-kms-ledger/1"
