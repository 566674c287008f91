"""The SIMULATED configfs-tsm, through the system calls that a program would make, and `kms simulate tsm`.

What it must do is what drivers/virt/coco/guest/report.c, sev-guest.c and fs/configfs/file.c of Linux do.
"""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kms.guest.tsm import TsmSource
from kms.simulator.machine import SimulatedMachine
from kms.simulator.tsm_fuse import Faults, SimulatedTsm
from kms.snp.report import LENGTH, Report
from tests.conformance.own_server import environment
from tests.processes import ended
from tests.simulated_tsm import needs_fuse, simulated_tsm
from tests.unit.guest.conftest import app_document, machine

__all__ = ["machine"]

pytestmark = [pytest.mark.slow, needs_fuse]

DATA = bytes(range(64))
WITHIN = 120.0  # seconds, for a command; `simulate host` makes keys of 4096 bits


@pytest.fixture
def tsm(tmp_path: Path, machine: SimulatedMachine) -> Iterator[SimulatedTsm]:
    with simulated_tsm(tmp_path / "report", machine) as served:
        yield served


@pytest.fixture
def entry(tmp_path: Path, tsm: SimulatedTsm) -> Iterator[Path]:
    folder = tmp_path / "report" / "entry"
    folder.mkdir()
    yield folder
    folder.rmdir()
    assert tsm.entries == ()


def refused(call: Callable[[], object]) -> int | None:
    with pytest.raises(OSError, check=lambda error: error.errno is not None) as raised:
        call()
    return raised.value.errno


def open_files() -> set[str]:
    return {each.name for each in Path("/proc/self/fd").iterdir()}


def generation(entry: Path) -> int:
    return int((entry / "generation").read_text("ascii"))


class TestLikeTheKernel:
    def test_an_entry_has_the_attributes_of_sev_guest_at_vmpl_0(self, entry: Path) -> None:
        modes = {each.name: oct(each.stat().st_mode & 0o777) for each in entry.iterdir()}
        readable = dict.fromkeys(("provider", "generation", "privlevel_floor", "outblob", "auxblob"), "0o444")
        assert modes == readable | {"inblob": "0o200", "privlevel": "0o200"}
        assert (entry / "provider").read_bytes() == b"sev_guest\n"
        assert (entry / "privlevel_floor").read_bytes() == b"0\n"

    def test_a_report_over_what_was_written_last(self, entry: Path) -> None:
        for data in (DATA, DATA[::-1]):
            (entry / "inblob").write_bytes(data)
            assert Report.parse((entry / "outblob").read_bytes()).report_data == data
        assert generation(entry) == 2

    def test_reading_in_pieces_and_twice_gives_the_same_report(self, entry: Path) -> None:
        (entry / "inblob").write_bytes(DATA)
        with (entry / "outblob").open("rb", buffering=0) as file:
            pieces = b"".join(iter(lambda: file.read(100), b""))
        assert len(pieces) == LENGTH
        assert pieces == (entry / "outblob").read_bytes()

    def test_what_is_written_in_pieces_is_stored_when_the_file_is_closed(self, entry: Path) -> None:
        with (entry / "inblob").open("wb", buffering=0) as file:
            file.write(DATA[:32])
            file.write(DATA[32:])
            assert generation(entry) == 0
        assert generation(entry) == 1
        assert Report.parse((entry / "outblob").read_bytes()).report_data == DATA

    def test_the_privilege_level_is_in_the_report(self, entry: Path) -> None:
        (entry / "inblob").write_bytes(DATA)
        (entry / "privlevel").write_text("2")
        assert generation(entry) == 2
        assert Report.parse((entry / "outblob").read_bytes()).vmpl == 2

    def test_no_report_before_data_nor_over_other_lengths(self, entry: Path) -> None:
        assert refused((entry / "outblob").read_bytes) == errno.EINVAL
        (entry / "inblob").write_bytes(DATA[:63])
        assert refused((entry / "outblob").read_bytes) == errno.EINVAL
        assert refused(lambda: (entry / "inblob").write_bytes(DATA + b"\0")) == errno.EFBIG

    @pytest.mark.parametrize("level", ["4", "-1", "x", ""])
    def test_privilege_levels_that_there_are_not(self, entry: Path, level: str) -> None:
        with (entry / "privlevel").open("wb", buffering=0) as file:
            if level:
                assert refused(lambda: file.write(level.encode())) == errno.EINVAL
        assert generation(entry) == 0

    def test_not_even_root_reads_what_is_to_be_written(self, entry: Path) -> None:
        assert refused((entry / "inblob").read_bytes) == errno.EACCES
        assert refused(lambda: (entry / "outblob").open("r+b")) == errno.EACCES

    def test_only_entries_can_be_made_and_removed(self, entry: Path) -> None:
        assert refused((entry / "folder").mkdir) == errno.EPERM
        assert refused((entry / "file").touch) == errno.EACCES
        assert refused((entry.parent / "file").touch) == errno.EACCES
        assert refused((entry / "inblob").unlink) == errno.EPERM
        assert refused(lambda: (entry / "inblob").rename(entry / "other")) == errno.EPERM
        assert refused(entry.mkdir) == errno.EEXIST
        assert refused((entry.parent / "none").rmdir) == errno.ENOENT

    def test_others_than_root_make_no_entries(self, tsm: SimulatedTsm, tmp_path: Path) -> None:
        for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
            folder.chmod(0o755)
        command = ["setpriv", "--reuid=65534", "--clear-groups", "mkdir", str(tmp_path / "report" / "theirs")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "Permission denied" in done.stderr
        assert tsm.entries == ()

    def test_an_entry_that_is_gone_answers_no_more(self, tsm: SimulatedTsm, tmp_path: Path) -> None:
        folder = tmp_path / "report" / "entry"
        folder.mkdir()
        with (folder / "provider").open("rb", buffering=0) as file:
            folder.rmdir()
            assert refused(file.read) == errno.ENOENT

    def test_evidence_of_it_is_evidence(self, tsm: SimulatedTsm, tmp_path: Path) -> None:
        evidence = TsmSource(tmp_path / "report").evidence(DATA)
        assert {*evidence} == {"tee", "report", "certificate_table"}
        assert tsm.entries == ()


class TestFaults:
    def test_busy_until_the_time_is_over(self, tsm: SimulatedTsm, entry: Path) -> None:
        tsm.faults = Faults(busy_for=0.3)
        (entry / "inblob").write_bytes(DATA)
        assert refused((entry / "outblob").read_bytes) == errno.EBUSY
        time.sleep(0.3)
        assert len((entry / "outblob").read_bytes()) == LENGTH

    def test_each_of_the_others(self, tsm: SimulatedTsm, entry: Path) -> None:
        (entry / "inblob").write_bytes(DATA)
        tsm.faults = Faults(cut=100, auxblob=False, provider="tdx_guest", generation_step=2)
        assert len((entry / "outblob").read_bytes()) == 100
        assert not (entry / "auxblob").exists()
        assert "auxblob" not in {each.name for each in entry.iterdir()}
        assert (entry / "provider").read_text() == "tdx_guest\n"
        tsm.faults = Faults(generation_step=2, other_report_data=True, deny_mkdir=True, deny_rmdir=True)
        (entry / "inblob").write_bytes(DATA)
        assert generation(entry) == 3
        assert Report.parse((entry / "outblob").read_bytes()).report_data != DATA
        assert refused((entry.parent / "other").mkdir) == errno.EACCES
        assert refused(entry.rmdir) == errno.EBUSY
        tsm.faults = Faults(privlevel_floor=2)
        (entry / "inblob").write_bytes(DATA)
        assert refused((entry / "outblob").read_bytes) == errno.EINVAL
        tsm.faults = Faults()

    def test_what_the_platform_says_is_what_the_reader_gets(self, tmp_path: Path) -> None:
        def broken(_report_data: bytes, _privlevel: int) -> tuple[bytes, bytes]:
            raise OSError(errno.ENOTTY, "VMPCK is disabled")

        with SimulatedTsm(broken).serve(tmp_path):
            entry = tmp_path / "entry"
            entry.mkdir()
            (entry / "inblob").write_bytes(DATA)
            assert refused((entry / "outblob").read_bytes) == errno.ENOTTY


class TestMounting:
    def test_nothing_is_left_of_it(self, tmp_path: Path, machine: SimulatedMachine) -> None:
        before = open_files()
        with simulated_tsm(tmp_path / "report", machine):
            (tmp_path / "report" / "left behind").mkdir()
        assert open_files() == before
        assert not os.path.ismount(tmp_path / "report")
        assert [each.name for each in threading.enumerate()].count("simulated-tsm") == 0

    def test_it_ends_although_somebody_has_a_file_open(
        self, tmp_path: Path, machine: SimulatedMachine
    ) -> None:
        with simulated_tsm(tmp_path / "report", machine):
            entry = tmp_path / "report" / "entry"
            entry.mkdir()
            file = (entry / "provider").open("rb", buffering=0)
        assert refused(file.read) == errno.ENOTCONN
        assert refused(file.close) == errno.ENOTCONN

    def test_a_folder_that_is_not_there(self, tmp_path: Path, machine: SimulatedMachine) -> None:
        tsm = SimulatedTsm(lambda _data, _level: (b"", b""))
        assert refused(lambda: tsm.run(tmp_path / "none")) == errno.ENOENT


@contextmanager
def kms(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """Run a command until it ends, the block fails, or its time is over."""
    process = subprocess.Popen(
        [sys.executable, "-m", "kms", *map(str, arguments)],
        env=environment({}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    # Also whoever waits for its first line, or for an answer of what it mounted.
    too_late = threading.Timer(WITHIN, process.kill)
    too_late.start()
    try:
        with ended(process):
            yield process
    finally:
        too_late.cancel()
        too_late.join()


@pytest.fixture
def mountpoint(tmp_path: Path) -> Iterator[Path]:
    """A folder on which nothing stays mounted, however the process ended that did it."""
    folder = tmp_path / "tsm"
    folder.mkdir()
    yield folder
    subprocess.run(["umount", "--lazy", folder], capture_output=True, check=False)


@pytest.fixture(scope="module")
def rack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rack") / "host"
    with kms("simulate", "host", folder) as process:
        process.communicate()
    return folder


class TestCommand:
    @pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
    def test_it_serves_the_guest_that_was_asked_for_until_it_is_told_to_end(
        self, rack: Path, tmp_path: Path, mountpoint: Path, end: signal.Signals
    ) -> None:
        document = tmp_path / "app.json"
        document.write_bytes(app_document())
        with kms("simulate", "tsm", rack, mountpoint, "--app-document", document, "--json") as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "{\n"
            evidence = TsmSource(mountpoint).evidence(DATA)
            process.send_signal(end)
            _, errors = process.communicate()
        assert process.returncode == 0
        assert "SIMULATED" in errors
        assert evidence["certificate_table"]
        assert not os.path.ismount(mountpoint)

    def test_a_place_where_nothing_can_be_mounted(self, rack: Path, tmp_path: Path) -> None:
        with kms("simulate", "tsm", rack, tmp_path / "none") as process:
            _, errors = process.communicate()
        assert process.returncode == 2
        assert "cannot mount" in errors
