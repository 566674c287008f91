"""Whatever somebody changes in a database, verifying the ledger names it."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from kms.ledger.checkpoint import CheckpointKey
from kms.ledger.findings import MAX_FINDINGS, FindingKind, Report
from kms.ledger.merkle import EMPTY_ROOT
from kms.ledger.sealed_entry import EntrySeal, SealedEntry
from kms.ledger.tiles import DATA_LEVEL, Edge, leaf_hashes
from kms.ledger.verifying import LedgerVerification
from tests.unit.ledger.recorded_ledger import KEY, ORIGIN, SEAL, RecordedLedger, note_of, sealed

SIZE = 70_000 // 100  # two full tiles, a partial one, and one above
LARGE = 66_000  # a full tile of level 1


def found(report: Report) -> set[tuple[str, int | None, str | None]]:
    return {(finding.kind.value, finding.index, finding.id) for finding in report.findings}


def kinds(report: Report) -> set[str]:
    return {finding.kind.value for finding in report.findings}


@pytest.fixture
def ledger() -> RecordedLedger:
    return RecordedLedger.of(SIZE, checkpoints=[1, 100, 256, 400, 513], waiting=3)


@pytest.fixture(scope="module")
def large() -> RecordedLedger:
    return RecordedLedger.of(LARGE, checkpoints=[65_536])


def entry_at(ledger: RecordedLedger, index: int) -> SealedEntry:
    entry = ledger.entries[ledger.leaves[index]]
    assert entry is not None
    return entry


@pytest.mark.parametrize("size", [0, 1, 2, 255, 256, 257, 511, 512, SIZE])
def test_a_ledger_that_nobody_changed_is_sound(size: int) -> None:
    report = RecordedLedger.of(size, checkpoints=range(0, size, 50), waiting=2).verify()
    assert report.sound
    assert not report.findings
    assert report.checkpoint is not None
    assert (report.checkpoint.size, report.waiting, report.left_out) == (size, 2, 0)


@pytest.mark.parametrize("index", [0, 255, 256, 511, 512, SIZE - 1])
def test_an_edited_entry_is_named(ledger: RecordedLedger, index: int) -> None:
    place = ledger.leaves[index]
    ledger.entries[place] = replace(entry_at(ledger, index), entry=b"{}")
    assert found(ledger.verify()) == {("entry-changed", index, f"r{place}")}
    assert found(ledger.verify(macs=False)) == {("entry-changed", index, f"r{place}")}


def test_a_changed_salt_counts_as_the_entry(ledger: RecordedLedger) -> None:
    ledger.entries[8] = replace(sealed(8), salt=bytes(16))
    assert found(ledger.verify()) == {("entry-changed", 7, "r8")}


def test_what_stands_beside_the_entry_is_under_its_mac(ledger: RecordedLedger) -> None:
    ledger.entries[8] = replace(sealed(8), server="b")
    ledger.entries[9] = replace(sealed(9), mac=bytes(32))
    assert found(ledger.verify()) == {("entry-not-authentic", 7, "r8"), ("entry-not-authentic", 8, "r9")}


def test_a_removed_entry_is_named_whether_or_not_its_leaf_went_too(ledger: RecordedLedger) -> None:
    del ledger.entries[300]
    # By its leaf, and by its place.
    assert found(ledger.verify()) == {("entry-removed", 299, None), ("entry-removed", None, None)}
    del ledger.leaves[299]
    assert found(ledger.verify()) == {("entry-removed", 299, None), ("entry-removed", None, None)}
    del ledger.entries[SIZE], ledger.leaves[SIZE - 1]
    report = ledger.verify()
    assert {finding.index for finding in report.findings} == {299, SIZE - 1, None}
    assert {finding.sentence for finding in report.findings if finding.index is None} == {
        "nothing is recorded at place 300 any more",
        f"nothing is recorded at place {SIZE} any more",
    }


def test_an_entry_whose_leaf_alone_was_removed_is_found_again(ledger: RecordedLedger) -> None:
    del ledger.leaves[299]
    report = ledger.verify()
    assert found(report) == {("entry-removed", 299, None), ("entry-moved", None, "r300")}
    assert any("place 300 belongs to leaf 299" in finding.sentence for finding in report.findings)


def test_entries_in_another_order_are_named_with_where_they_belong(ledger: RecordedLedger) -> None:
    ledger.leaves[5], ledger.leaves[600] = ledger.leaves[600], ledger.leaves[5]
    report = ledger.verify()
    moved = {finding.index: finding for finding in report.findings if finding.kind is FindingKind.ENTRY_MOVED}
    assert {index: finding.id for index, finding in moved.items()} == {5: "r601", 600: "r6"}
    assert "leaf 5 belongs to leaf 600" in moved[5].sentence
    assert "leaf 600 belongs to leaf 5" in moved[600].sentence
    # The order of recording says so too.
    assert kinds(report) == {"entry-moved", "lookup-changed"}


def test_rows_that_swapped_their_contents_are_named(ledger: RecordedLedger) -> None:
    ledger.entries[6], ledger.entries[601] = ledger.entries[601], ledger.entries[6]
    assert found(ledger.verify()) == {("entry-moved", 5, "r601"), ("entry-moved", 600, "r6")}


def test_a_copy_of_another_entry_is_named_as_that(ledger: RecordedLedger) -> None:
    ledger.entries[6] = replace(sealed(6), salt=sealed(601).salt, entry=sealed(601).entry)
    assert found(ledger.verify()) == {("entry-moved", 5, "r6")}


def test_entries_that_moved_up_by_one_are_all_named(ledger: RecordedLedger) -> None:
    del ledger.entries[100]
    ledger.leaves = {index: index + 1 if index < 99 else index + 2 for index in range(SIZE - 1)}
    ledger.place = SIZE
    report = ledger.verify()
    assert {f.index for f in report.findings if f.kind is FindingKind.ENTRY_MOVED} == {*range(99, SIZE - 1)}
    assert ("entry-removed", SIZE - 1, None) in found(report)


def test_an_added_entry_is_named(ledger: RecordedLedger) -> None:
    forged = sealed(9999, EntrySeal(b"\x01" * 64))
    ledger.entries[SIZE + 4] = forged
    ledger.entries[SIZE + 5] = None
    report = ledger.verify()
    assert found(report) == {("entry-added", None, "r9999"), ("entry-added", None, None)}
    assert report.waiting == 3
    # A row that nobody could have left out: it is older than the checkpoint.
    ledger = RecordedLedger.of(SIZE, waiting=1)
    ledger.place = SIZE + 1
    assert found(ledger.verify()) == {("entry-added", None, f"r{SIZE + 1}")}


def test_a_leaf_beyond_the_checkpoint_waits_for_the_next(ledger: RecordedLedger) -> None:
    ledger.leaves[SIZE] = SIZE + 1
    report = ledger.verify()
    assert report.sound
    assert report.waiting == 3
    ledger.entries[SIZE + 1] = sealed(SIZE + 1, EntrySeal(b"\x01" * 64))
    assert found(ledger.verify()) == {("entry-added", None, f"r{SIZE + 1}")}


def test_an_entry_that_was_promised_and_removed_before_its_checkpoint_leaves_a_gap() -> None:
    ledger = RecordedLedger.of(SIZE)
    # Places 301 and 302, and 701, were given to what never came into the tree.
    ledger.leaves = {index: index + 1 if index < 300 else index + 3 for index in range(SIZE)}
    ledger.entries = {place: sealed(index + 1) for index, place in ledger.leaves.items()}
    ledger.place = SIZE + 3
    sentences = sorted(finding.sentence for finding in ledger.verify().findings)
    assert sentences == [
        "nothing is recorded at place 703 any more",
        "nothing is recorded at places 301 to 302 any more",
    ]


def test_places_that_nobody_could_have_given_do_not_take_for_ever() -> None:
    ledger = RecordedLedger.of(3)
    ledger.place = 2**62
    ledger.leaves[2] = 2**61
    ledger.entries[2**61] = ledger.entries.pop(3)
    sentences = {finding.sentence for finding in ledger.verify().findings}
    assert sentences == {
        f"nothing is recorded at places 3 to {2**61 - 1} any more",
        f"nothing is recorded at places {2**61 + 1} to {2**62} any more",
    }


def test_what_is_recorded_and_was_never_taken_is_no_gap() -> None:
    ledger = RecordedLedger.of(SIZE)
    ledger.leaves = {index: index + 1 if index < 300 else index + 3 for index in range(SIZE)}
    ledger.entries = {place: sealed(index + 1) for index, place in ledger.leaves.items()}
    ledger.entries[301] = None
    ledger.place = SIZE + 2
    sentences = [finding.sentence for finding in ledger.verify().findings]
    assert sentences == [
        "what is recorded at place 301 was made by no server of this KMS",
        "nothing is recorded at place 302 any more",
    ]


def test_a_row_that_is_looked_up_by_other_values_is_named(ledger: RecordedLedger) -> None:
    ledger.lookups[41] = "its outcome is not the entry's"
    report = ledger.verify()
    assert found(report) == {("lookup-changed", 41, "r42")}
    assert "its outcome is not the entry's" in report.findings[0].sentence


CHANGES: list[Callable[[bytes], bytes | None]] = [
    lambda tile: bytes([tile[0] ^ 1]) + tile[1:],
    lambda tile: tile[:-1] + bytes([tile[-1] ^ 0x80]),
    lambda tile: tile[:-32],
    lambda tile: tile[:-1],
    lambda _: b"",
    lambda _: None,
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("key", [(0, 0), (0, 2), (1, 0), (DATA_LEVEL, 1), (DATA_LEVEL, 2)])
def test_a_changed_tile_is_named_and_no_entry_is_blamed(
    ledger: RecordedLedger, key: tuple[int, int], change: Callable[[bytes], bytes | None]
) -> None:
    changed = change(ledger.tiles.pop(key))
    if changed is not None:
        ledger.tiles[key] = changed
    report = ledger.verify()
    assert kinds(report) == {"tile-changed"}
    assert len(report.findings) == 1
    level, number = ("entries" if key[0] == DATA_LEVEL else key[0]), key[1]
    assert f"tile/{level}/{number:03}" in report.findings[0].sentence


def test_without_any_tiles_the_entries_still_prove_themselves(ledger: RecordedLedger) -> None:
    ledger.tiles.clear()
    report = ledger.verify()
    assert kinds(report) == {"tile-changed"}
    assert len(report.findings) == 3 + 1 + 3


def test_a_tile_that_grew_meanwhile_is_right(ledger: RecordedLedger) -> None:
    newer = RecordedLedger.of(SIZE + 3)
    ledger.tiles = newer.tiles
    assert ledger.verify().sound


def test_an_entry_is_named_even_if_tiles_were_changed_with_it(ledger: RecordedLedger) -> None:
    place = 300
    ledger.entries[place] = changed = replace(sealed(place), entry=b"{}")
    row = bytearray(ledger.tiles[DATA_LEVEL, 1])
    row[43 * 32 : 44 * 32] = changed.digest
    ledger.tiles[DATA_LEVEL, 1] = bytes(row)
    assert found(ledger.verify()) == {("entry-changed", 299, "r300"), ("tile-changed", None, None)}
    ledger.tiles[0, 1] = leaf_hashes(bytes(row))
    # Nothing has the right hash any more: the MAC still says which; without it, its neighbourhood is named.
    assert found(ledger.verify()) == {("entry-not-authentic", 299, "r300"), ("tile-changed", None, None)}
    report = ledger.verify(macs=False)
    assert found(report) == {("entry-changed", 256, None), ("tile-changed", None, None)}
    assert "at least one of the entries 256 to 511" in report.findings[-1].sentence


def test_an_entry_and_a_tile_elsewhere_are_both_named(ledger: RecordedLedger) -> None:
    ledger.entries[300] = replace(sealed(300), entry=b"{}")
    for key in ((1, 0), (0, 2), (0, 0)):
        ledger.tiles[key] = CHANGES[0](ledger.tiles[key]) or b""
    report = ledger.verify()
    assert ("entry-changed", 299, "r300") in found(report)
    assert sum(finding.kind is FindingKind.TILE_CHANGED for finding in report.findings) == 3
    assert len(report.findings) == 4


def test_a_change_that_all_tiles_were_made_to_fit_does_not_fit_the_signed_root(
    ledger: RecordedLedger,
) -> None:
    ledger.entries[300] = replace(sealed(300), entry=b"{}")
    ledger.recompute_tiles()
    report = ledger.verify()
    assert found(report) == {("root-mismatch", None, None), ("entry-not-authentic", 299, "r300")}
    assert "between 256 and 399" in report.findings[0].sentence
    assert kinds(ledger.verify(macs=False)) == {"root-mismatch"}


def test_a_changed_entry_deep_in_a_large_ledger_is_named(large: RecordedLedger) -> None:
    assert large.verify().sound
    place = 40_001
    original, tile = large.entries[place], large.tiles[1, 0]
    large.entries[place] = replace(sealed(place), entry=b"{}")
    assert found(large.verify()) == {("entry-changed", 40_000, "r40001")}
    large.tiles[1, 0] = bytes(len(tile))
    report = large.verify()
    assert found(report) == {("entry-changed", 40_000, "r40001"), ("tile-changed", None, None)}
    large.entries[place], large.tiles[1, 0] = original, tile


def test_a_checkpoint_that_the_key_did_not_sign_is_named(ledger: RecordedLedger) -> None:
    forger = CheckpointKey(bytes(32), ORIGIN)
    ledger.notes[256] = note_of(256, bytes(32), forger)
    report = ledger.verify()
    assert kinds(report) == {"checkpoint-forged"}
    ledger.entries[600] = replace(sealed(600), entry=b"{}")
    ledger.entries[6] = replace(sealed(6), entry=b"{}")
    ledger.notes[SIZE] = note_of(SIZE, bytes(32), forger)
    # The rest is verified against the newest that is not forged: entry 599 is after that.
    report = ledger.verify()
    assert report.checkpoint is not None
    assert report.checkpoint.size == 513
    assert found(report) == {
        ("checkpoint-forged", None, None),
        ("entry-changed", 5, "r6"),
        ("entry-added", None, "r600"),
    }
    ledger.notes = {SIZE: ledger.notes[SIZE]}
    report = ledger.verify()
    assert report.checkpoint is None
    assert "checkpoint-forged" in kinds(report)


def test_history_that_was_written_anew_and_signed_again_is_not_append_only(ledger: RecordedLedger) -> None:
    yesterday = ledger.notes[400]
    entries = [sealed(place + 1_000_000 * (place == 300)) for place in range(1, SIZE + 1)]
    growth = Edge.empty().append([entry.digest for entry in entries])
    anew = RecordedLedger(
        dict(enumerate(entries, start=1)),
        leaves=ledger.leaves,
        tiles=dict(growth.tiles),
        notes={SIZE: note_of(SIZE, growth.root)},
        place=SIZE,
    )
    assert anew.verify().sound
    assert kinds(anew.verify(older=[yesterday])) == {"not-append-only"}
    assert anew.verify(older=[ledger.notes[256]]).sound
    # Two roots of the same size: a split view.
    assert kinds(anew.verify(older=[ledger.notes[SIZE]])) == {"not-append-only"}


def test_a_ledger_that_was_rolled_back_is_not_append_only(ledger: RecordedLedger) -> None:
    before = RecordedLedger.of(600)
    report = before.verify(older=[ledger.notes[SIZE], ledger.notes[513]])
    assert kinds(report) == {"not-append-only"}
    assert f"a checkpoint of {SIZE} entries, and the newest has 600" in report.findings[0].sentence
    empty = RecordedLedger.of(0)
    assert kinds(empty.verify(older=[ledger.notes[1]])) == {"not-append-only"}
    assert ledger.verify(older=[note_of(0, EMPTY_ROOT)]).sound


def test_an_export_is_verified_without_tiles_places_and_macs(ledger: RecordedLedger) -> None:
    def report(*, older: tuple[str, ...] = ()) -> Report:
        verification = LedgerVerification(ledger.notes[SIZE], KEY.verifier_key, older=older)
        for index, place in ledger.leaves.items():
            entry = ledger.entries.get(place)
            verification.read_leaf(index, place, None if entry is None else replace(entry, mac=b""))
        return verification.report()

    assert report(older=(ledger.notes[400],)).sound
    ledger.entries[300] = replace(sealed(300), entry=b"{}")
    mismatch = report(older=(ledger.notes[256], ledger.notes[400]))
    assert kinds(mismatch) == {"root-mismatch"}
    assert "between 256 and 399" in mismatch.findings[0].sentence
    del ledger.entries[300]
    assert found(report()) == {("root-mismatch", None, None), ("entry-removed", 299, None)}


@pytest.mark.parametrize("index", [1, 0, -1])
def test_a_leaf_out_of_order_is_named(index: int) -> None:
    verification = LedgerVerification(RecordedLedger.of(3).notes[3], KEY.verifier_key, verifies=SEAL.verifies)
    verification.read_leaf(1, 2, sealed(2))
    verification.read_leaf(index, 2, sealed(2))
    assert "leaf-added" in kinds(verification.report())


def test_whoever_changes_everything_does_not_fill_the_memory(ledger: RecordedLedger) -> None:
    many = RecordedLedger.of(2 * MAX_FINDINGS)
    many.entries = {place: replace(sealed(place), entry=b"%d" % place) for place in many.entries}
    report = many.verify()
    assert len(report.findings) == MAX_FINDINGS
    assert report.left_out >= MAX_FINDINGS
    many.entries.clear()
    report = many.verify()
    assert len(report.findings) == MAX_FINDINGS
    assert report.left_out == MAX_FINDINGS + 1
