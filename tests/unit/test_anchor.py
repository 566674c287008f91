"""The anchor goes forward only, survives a power cut, and is never mistaken for an empty one."""

import asyncio
import fcntl
import json
import multiprocessing
import os
import stat
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from kms import private_files
from kms.anchor import AnchorUnusable, FileAnchor
from kms.errors import ConfigurationError, LedgerUnavailable
from kms.policy.history import Head
from kms.policy_authority import PolicyUntrusted

A, B = "sha256:" + "aa" * 32, "sha256:" + "bb" * 32


def read(path: Path) -> Head | None:
    return asyncio.run(FileAnchor(path).read())


def remember(path: Path, head: Head) -> None:
    asyncio.run(FileAnchor(path).remember(head))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "anchor.json"


def test_nothing_was_used_before_the_first_time(path: Path) -> None:
    assert read(path) is None


def test_what_was_used_is_known_to_another_process(path: Path) -> None:
    remember(path, Head(7, A))
    assert read(path) == Head(7, A)
    remember(path, Head(9, B))
    assert read(path) == Head(9, B)
    assert json.loads(path.read_bytes()) == {"policy": {"sequence": 9, "revision": B}}


def test_only_its_owner_can_read_or_write_it(path: Path) -> None:
    remember(path, Head(1, A))
    assert {stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()} == {0o600}


@pytest.mark.parametrize("head", [Head(6, A), Head(6, B), Head(7, B)], ids=str)
def test_it_never_goes_back_nor_says_otherwise(path: Path, head: Head) -> None:
    remember(path, Head(7, A))
    with pytest.raises(PolicyUntrusted, match="this server has used"):
        remember(path, head)
    assert read(path) == Head(7, A)


def test_the_same_again_writes_nothing(path: Path) -> None:
    remember(path, Head(7, A))
    before = path.stat()
    remember(path, Head(7, A))
    assert path.stat().st_ino == before.st_ino


def test_members_of_others_are_kept(path: Path) -> None:
    path.write_text(json.dumps({"later": {"size": 12}, "policy": {"sequence": 1, "revision": A}}))
    path.chmod(0o600)
    remember(path, Head(2, B))
    assert json.loads(path.read_bytes()) == {
        "later": {"size": 12},
        "policy": {"sequence": 2, "revision": B},
    }


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 90,
        b"[]",
        b"null",
        b"{}",
        b'{"policy": null}',
        b'{"policy": {}}',
        b'{"policy": {"sequence": 0, "revision": "sha256:aa"}}',
        b'{"policy": {"sequence": "7", "revision": "sha256:aa"}}',
        b'{"policy": {"sequence": 7, "revision": 5}}',
        b'{"policy": {"sequence": 7, "revision": "sha256:aa", "more": 1}}',
        b'{"policy": {"sequence": 7, "revision": "sha256:aa"}, "policy": {"sequence": 1, "revision": "x"}}',
        b'{"policy": {"sequence": 7, "revision": "sha256:aa"}',
        b"{" + b" " * (1 << 16) + b"}",
    ],
)
def test_a_damaged_file_never_means_that_nothing_was_used(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    for attempt in (read, partial(remember, head=Head(8, A))):
        with pytest.raises(AnchorUnusable, match="damaged") as refused:
            attempt(path)
        assert "copy it from another server" in refused.value.detail
    assert path.read_bytes() == content


def test_a_folder_that_is_not_there_never_means_that_nothing_was_used(tmp_path: Path) -> None:
    # The disk that the anchor is on was not mounted.
    with pytest.raises(AnchorUnusable, match="not there") as refused:
        read(tmp_path / "mount" / "anchor.json")
    assert "mount" in refused.value.detail


def test_a_link_is_refused(path: Path) -> None:
    remember(path, Head(1, A))
    link = path.with_name("link.json")
    link.symlink_to(path)
    for attempt in (read, partial(remember, head=Head(2, A))):
        with pytest.raises(AnchorUnusable, match="cannot be read") as refused:
            attempt(link)
        assert "not a link" in refused.value.detail


def test_something_else_than_a_file_is_refused_and_hangs_nothing(path: Path) -> None:
    os.mkfifo(path, 0o600)
    with pytest.raises(AnchorUnusable, match="not a regular file"):
        read(path)
    with pytest.raises(AnchorUnusable, match="not a regular file"):
        read(path.parent)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_write_is_refused(path: Path, mode: int) -> None:
    remember(path, Head(1, A))
    path.chmod(mode)
    with pytest.raises(AnchorUnusable, match="can be written by others") as refused:
        read(path)
    assert "chmod 0600" in refused.value.detail


def test_a_crash_while_writing_leaves_what_was_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remember(path, Head(1, A))
    written = path.read_bytes()

    def broken(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(LedgerUnavailable, match="No space left"):
        remember(path, Head(2, B))
    assert path.read_bytes() == written
    assert {each.name for each in path.parent.iterdir()} == {"anchor.json", "anchor.json.lock"}


def test_the_file_and_its_folder_are_on_disk_when_it_returns(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    fsync, replace = os.fsync, Path.replace

    def recorded_fsync(descriptor: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def recorded_replace(self: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "replace", recorded_replace)
    remember(path, Head(1, A))
    assert steps == ["file", "rename", "folder"]


def test_a_lock_that_is_not_given_back_ends_in_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_files, "_LOCK_WITHIN", 0.05)
    with path.with_name("anchor.json.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(LedgerUnavailable, match="another process holds its lock"):
            remember(path, Head(1, A))
    remember(path, Head(1, A))


def remember_each(path: Path, sequences: list[int]) -> None:
    for sequence in sequences:
        with suppress(PolicyUntrusted):  # the other process was faster
            remember(path, Head(sequence, A))
            seen = read(path)
            if seen is None or seen.sequence < sequence:
                raise ValueError(f"{sequence} was taken back: {seen}")


def test_of_processes_at_once_none_takes_back_what_another_wrote(path: Path) -> None:
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawned) as processes:
        odd = processes.submit(remember_each, path, list(range(1, 100, 2)))
        even = processes.submit(remember_each, path, list(range(2, 101, 2)))
        odd.result()
        even.result()
    assert read(path) == Head(100, A)


class TestSetting:
    DEFAULT = Path("data/anchor.json")

    @pytest.mark.parametrize(
        ("text", "path"),
        [
            (None, "data/anchor.json"),
            ("/var/lib/anchor.json", "/var/lib/anchor.json"),
            ("anchor.json", "anchor.json"),
            ("file:anchor.json", "anchor.json"),
            ("file:/var/lib/anchor.json", "/var/lib/anchor.json"),
            ("file:///var/lib/anchor.json", "/var/lib/anchor.json"),
            ("./odd:name", "odd:name"),
        ],
    )
    def test_paths(self, text: str | None, path: str) -> None:
        assert FileAnchor.from_setting(text, self.DEFAULT) == FileAnchor(Path(path))

    @pytest.mark.parametrize(
        "text", ["vault-kw:secret/kms", "https://user:hunter2@vault/kv", "FILE:x", "s3://bucket/anchor"]
    )
    def test_other_places_are_refused_and_never_repeated(self, text: str) -> None:
        with pytest.raises(ConfigurationError, match="names no place") as refused:
            FileAnchor.from_setting(text, self.DEFAULT)
        assert "hunter2" not in f"{refused.value.detail} {refused.value.remedy}"

    @pytest.mark.parametrize("text", ["", "file:", "file://host/anchor", "a\0b", "//host/anchor"])
    def test_what_is_no_path_is_refused(self, text: str) -> None:
        with pytest.raises(ConfigurationError, match="needs the path"):
            FileAnchor.from_setting(text, self.DEFAULT)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can work for somebody else")
def test_a_command_of_root_leaves_the_anchor_to_the_server(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    os.chown(folder, 12345, 12345)
    path = folder / "anchor.json"
    remember(path, Head(1, A))
    assert {each.stat().st_uid for each in folder.iterdir()} == {12345}
    remember(path, Head(2, B))
    assert path.stat().st_uid == 12345
    assert read(path) == Head(2, B)
    os.chown(path, 54321, 54321)
    with pytest.raises(AnchorUnusable, match="by others"):
        read(path)
