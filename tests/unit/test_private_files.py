"""Small private files: judged by what was opened, written whole or not at all."""

import fcntl
import os
import socket
import stat
import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from kms import private_files
from kms.private_files import ForeignMode, ForeignOwner, NotRegular, TooLong, Unfit
from tests.unit.faults import Crash, fault_at, recorded

OLD, NEW = b"old" * 100, b"new" * 5000
US = {os.geteuid()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    private_files.write_new(file, OLD)
    return file


def read(path: Path, *, at_most: int = 1 << 20, follow: bool = False) -> bytes:
    return bytes(private_files.read(path, at_most=at_most, owners=US, follow=follow))


def names(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir()}


class TestReading:
    def test_what_is_read_can_be_overwritten(self, path: Path) -> None:
        content = private_files.read(path, at_most=1000, owners=US)
        assert content == OLD
        content[:] = bytes(len(content))

    def test_a_file_of_exactly_the_length_is_read_and_a_byte_more_is_not(self, path: Path) -> None:
        assert read(path, at_most=len(OLD)) == OLD
        with pytest.raises(TooLong, match=f"longer than {len(OLD) - 1} bytes"):
            read(path, at_most=len(OLD) - 1)

    def test_an_empty_file_is_empty(self, path: Path) -> None:
        path.write_bytes(b"")
        assert read(path) == b""

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o777])
    def test_lesson_31_a_file_that_others_can_use_is_refused(self, path: Path, mode: int) -> None:
        path.chmod(mode)
        with pytest.raises(ForeignMode, match=f"has mode {mode:04o}") as refused:
            read(path)
        assert refused.value.mode == mode

    def test_the_caller_says_which_bits_are_foreign(self, path: Path) -> None:
        path.chmod(0o644)
        assert private_files.read(path, at_most=1000, owners=US, foreign=0o022) == OLD
        path.chmod(0o664)
        with pytest.raises(ForeignMode):
            private_files.read(path, at_most=1000, owners=US, foreign=0o022)

    def test_a_file_of_another_user_is_refused_unless_the_caller_says_otherwise(self, path: Path) -> None:
        with pytest.raises(ForeignOwner):
            private_files.read(path, at_most=1000, owners={os.geteuid() + 1})
        assert private_files.read(path, at_most=1000, owners=None) == OLD

    def test_a_link_is_followed_only_where_the_caller_says_so(self, path: Path) -> None:
        link = path.with_name("link")
        link.symlink_to(path)
        with pytest.raises(OSError, match="symbolic links"):
            read(link)
        assert read(link, follow=True) == OLD

    def test_what_is_no_file_is_refused_and_hangs_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir(mode=0o700)
        os.mkfifo(tmp_path / "fifo", 0o600)
        for name in ("folder", "fifo"):
            with pytest.raises(NotRegular):
                read(tmp_path / name)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(tmp_path / "s"))
            with pytest.raises(OSError, match="No such device"):
                read(tmp_path / "s")

    def test_no_descriptor_stays_open(self, path: Path) -> None:
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        for attempt in (path, path.parent, path.with_name("missing")):
            try:
                read(attempt, at_most=1)
            except (OSError, Unfit):
                continue
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def write_new(path: Path) -> None:
    private_files.write_new(path, NEW)


def replace(path: Path) -> None:
    private_files.replace(path, NEW)


def replace_alone(path: Path) -> None:
    with private_files.locked(path):
        private_files.replace(path, NEW)


class TestWriting:
    @pytest.mark.parametrize("umask", [0, 0o077])
    def test_the_modes_are_what_was_asked_whatever_the_umask(self, tmp_path: Path, umask: int) -> None:
        before = os.umask(umask)
        try:
            private_files.write_new(tmp_path / "new", NEW)
            private_files.replace(tmp_path / "replaced", NEW)
            private_files.replace(tmp_path / "public", NEW, mode=0o644)
        finally:
            os.umask(before)
        modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in tmp_path.iterdir()}
        assert modes == {"new": 0o600, "replaced": 0o600, "public": 0o644}

    def test_what_is_there_is_never_replaced_by_a_new_file(self, path: Path) -> None:
        path.with_name("link").symlink_to(path.with_name("elsewhere"))
        for taken in (path, path.with_name("link")):
            with pytest.raises(FileExistsError):
                write_new(taken)
        assert path.read_bytes() == OLD
        assert names(path.parent) == {"secret", "link"}

    def test_a_link_is_replaced_and_what_it_names_left_alone(self, path: Path) -> None:
        link = path.with_name("link")
        link.symlink_to(path)
        replace(link)
        assert path.read_bytes() == OLD
        assert not link.is_symlink()
        assert read(link) == NEW

    def test_the_file_is_on_disk_before_it_has_its_name_and_the_name_afterwards(self, tmp_path: Path) -> None:
        for write, naming in ((write_new, "link"), (replace, "replace")):
            with recorded() as steps:
                write(tmp_path / "file")
            assert [each for each in steps if each in {"fsync", naming}] == ["fsync", naming, "fsync"]

    @pytest.mark.parametrize("dead", [False, True], ids=["full disk", "crash"])
    @pytest.mark.parametrize("write", [replace, replace_alone])
    def test_whatever_fails_the_old_file_or_the_new_one_is_there_whole(
        self, path: Path, write: Callable[[Path], None], *, dead: bool
    ) -> None:
        seen = set()
        for step in count():
            path.write_bytes(OLD)
            with fault_at(step, dead=dead) as faults:
                try:
                    write(path)
                except (OSError, Crash):
                    assert faults.reached
            content = read(path)
            assert content in {OLD, NEW}
            seen.add(content)
            if not faults.reached:
                break
        assert seen == {OLD, NEW}
        replace_alone(path)
        assert names(path.parent) <= {"secret", "secret.lock"}

    @pytest.mark.parametrize("dead", [False, True], ids=["full disk", "crash"])
    def test_whatever_fails_a_new_file_is_there_whole_or_not_at_all(
        self, tmp_path: Path, *, dead: bool
    ) -> None:
        path = tmp_path / "new"
        seen = set()
        for step in count():
            path.unlink(missing_ok=True)
            with fault_at(step, dead=dead) as faults:
                try:
                    write_new(path)
                except (OSError, Crash):
                    assert faults.reached
            seen.add(path.exists())
            assert not path.exists() or read(path) == NEW
            if not faults.reached:
                break
        assert seen == {False, True}

    def test_what_a_crash_left_is_removed_under_the_lock_and_nothing_else_is(self, path: Path) -> None:
        others = {f".secret.{'0' * 15}", f".secret.{'g' * 16}", f".other.{'0' * 16}", "secret.0"}
        for name in {*others, f".secret.{'0' * 16}"}:
            path.with_name(name).write_bytes(OLD)
        with private_files.locked(path):
            pass
        assert names(path.parent) == {"secret", "secret.lock", *others}


class TestLock:
    def test_of_many_that_read_and_write_none_is_lost(self, path: Path) -> None:
        path.write_bytes(b"0")

        def increase() -> None:
            for _ in range(5):
                with private_files.locked(path):
                    private_files.replace(path, b"%d" % (int(read(path)) + 1))

        threads = [threading.Thread(target=increase) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert read(path) == b"20"

    def test_a_lock_that_is_not_given_back_ends_in_an_error(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(private_files, "_LOCK_WITHIN", 0.05)
        with path.with_name("secret.lock").open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            with pytest.raises(TimeoutError, match="another process holds its lock"):
                replace_alone(path)
        assert read(path) == OLD
        replace_alone(path)

    def test_a_link_in_the_place_of_the_lock_is_not_followed(self, path: Path) -> None:
        path.with_name("secret.lock").symlink_to(path.with_name("elsewhere"))
        with pytest.raises(OSError, match="symbolic links"):
            replace_alone(path)
        assert not path.with_name("elsewhere").exists()


def test_missing_folders_are_made_private_and_existing_ones_left_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    private_files.make_folder(tmp_path / "a" / "b")
    private_files.make_folder(tmp_path / "a" / "b")
    modes = [stat.S_IMODE((tmp_path / each).stat().st_mode) for each in ("", "a", "a/b")]
    assert modes == [0o755, 0o700, 0o700]


def test_a_file_in_the_place_of_a_folder_is_an_error(path: Path) -> None:
    with pytest.raises(OSError, match="Not a directory"):
        private_files.make_folder(path / "below")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can work for somebody else")
def test_what_root_does_for_somebody_else_is_theirs(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 12345)
    with private_files.locked(tmp_path / "given"):
        private_files.replace(tmp_path / "given", NEW, owner_of=tmp_path)
    private_files.replace(tmp_path / "kept", NEW)
    owners = {each.name: each.stat().st_uid for each in tmp_path.iterdir()}
    assert owners == {"given": 12345, "given.lock": 12345, "kept": 0}
