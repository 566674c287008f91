"""A power cut at any moment of a change: the old key or the new one opens the volume, and it can be finished.

What was written before a sync is on the disk. Of what was written since, any sector (512 bytes) may be there
or not: here in order, one after the other, and as chance has it.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from kms.guest.luks import DiskRefused, read_header, volume
from kms.guest.luks.device import Device, open_device
from tests.unit.guest.luks.samples import (
    AREA,
    MIB,
    Kms,
    Recorded,
    Trial,
    blank,
    needs_cryptsetup,
    opens,
    put,
)
from tests.unit.guest.luks.samples import volume as volume_of

pytestmark = [needs_cryptsetup, pytest.mark.slow]

SECTOR = 512
Log = Sequence[tuple[int, bytes] | None]


@contextmanager
def recording(path: Path, log: list[tuple[int, bytes] | None], *, write: bool = False) -> Iterator[Device]:
    with open_device(path, write=write) as opened:
        yield Recorded(
            path=opened.path, descriptor=opened.descriptor, size=opened.size, number=opened.number, log=log
        )


def unlock(disk: Path, *, current: int) -> None:
    done = volume.unlock_volume(
        volume_of(disk, format_blank=True),
        fetch=(kms := Kms(current=current)).fetch,
        newest_epoch=kms.newest_epoch,
        cryptsetup=Trial(),
    )
    assert done.warning is None


def recorded(disk: Path, monkeypatch: pytest.MonkeyPatch, *, current: int) -> Log:
    """Unlock, and give what was written."""
    log: list[tuple[int, bytes] | None] = []
    with monkeypatch.context() as patch:
        patch.setattr(volume, "open_device", lambda path, **options: recording(path, log, **options))
        unlock(disk, current=current)
    return log


def sectors(log: Log) -> Iterator[list[tuple[int, bytes]]]:
    """Give what was written between two syncs, sector for sector."""
    pending: list[tuple[int, bytes]] = []
    for entry in log:
        if entry is None:
            if pending:
                yield pending
            pending = []
        else:
            at, data = entry
            pending += [(at + i, data[i : i + SECTOR]) for i in range(0, len(data), SECTOR)]
    assert not pending, "the last write was not synced"


def after_cuts(before: bytes, log: Log, *, in_order: int, by_chance: int) -> Iterator[bytes]:
    """Give what may be on the disk after a cut: so many states of each phase."""
    chance = random.Random(8)
    area = bytearray(before)
    for phase in sectors(log):
        step = max(1, len(phase) // in_order)
        subsets = [phase[:count] for count in {0, 1, len(phase) - 1, *range(0, len(phase), step)}]
        subsets += [[each for each in phase if chance.random() < 0.5] for _ in range(by_chance)]
        for subset in subsets:
            torn = bytearray(area)
            for at, data in subset:
                torn[at : at + len(data)] = data
            yield bytes(torn)
        for at, data in phase:
            area[at : at + len(data)] = data
    yield bytes(area)


def test_moving_to_a_newer_key(disk: Path, made: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    log = recorded(disk, monkeypatch, current=2)
    phases = list(sectors(log))
    assert len(phases) == 6, "key slots, second copy, first copy: to add, and to remove"
    states = list(after_cuts(made, log, in_order=8, by_chance=2))
    assert len(states) > 40
    seen = set()
    for state in states:
        put(disk, state)
        read_header(disk)
        seen.add((opens(disk, 1), opens(disk, 2)))
    assert seen == {(True, False), (True, True), (False, True)}


def test_a_move_is_finished_after_a_cut(disk: Path, made: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    log = recorded(disk, monkeypatch, current=2)
    for state in after_cuts(made, log, in_order=1, by_chance=1):
        put(disk, state)
        unlock(disk, current=2)
        header = read_header(disk)
        assert header.raw == header.image
        assert (header.epochs, len(header.key_slots)) == ((2,), 1)
        assert opens(disk, 2)


def test_a_cut_in_what_finishes_after_a_cut(disk: Path, made: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cuts on end, of which the second hits the mending of what the first one left."""
    log = recorded(disk, monkeypatch, current=2)
    chance = random.Random(9)
    firsts = list(after_cuts(made, log, in_order=1, by_chance=1))
    for first in chance.sample(firsts, 6):
        again = recorded(put(disk, first), monkeypatch, current=2)
        seconds = list(after_cuts(first, again, in_order=1, by_chance=1))
        for second in chance.sample(seconds, min(4, len(seconds))):
            read_header(put(disk, second))
            assert opens(disk, 1) or opens(disk, 2)


def test_formatting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a cut the disk is blank, as far as anybody looks, or a volume: it is never refused."""
    disk = blank(tmp_path / "disk")
    log = recorded(disk, monkeypatch, current=1)
    size = 8 * AREA
    seen = set()
    for state in after_cuts(bytes(size), log, in_order=10, by_chance=3):
        put(disk, state)
        try:
            read_header(disk)
        except DiskRefused:
            assert not any(state[:MIB])
            seen.add("blank")
        else:
            assert opens(disk, 1)
            seen.add("volume")
    assert seen == {"blank", "volume"}


def test_formatting_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = blank(tmp_path / "disk")
    log = recorded(disk, monkeypatch, current=1)
    for state in after_cuts(bytes(8 * AREA), log, in_order=1, by_chance=1):
        unlock(put(disk, state), current=1)
        assert opens(disk, 1)
