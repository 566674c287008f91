"""The workload and the hash that it must have: what `enforces: [host-data]` asks of an image."""

import json
import os
import tempfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from kms.errors import ConfigurationError
from kms.guest import secret_file, workload
from kms.guest.errors import AppDocumentRefused
from kms.guest.workload import WorkloadRefused, check_workload, compose_hash_of, workload_copied
from kms.identifiers import ComposeHash
from tests.local_peers import SOMEBODY, in_child, needs_root
from tests.unit.guest.conftest import APP_ID, app_document

CONTENT = b"services: {}\n"
HASH = ComposeHash(sha256(CONTENT).digest())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "compose.yaml"
    path.write_bytes(CONTENT)
    return path


def test_the_right_one(path: Path) -> None:
    check_workload(path, HASH)


@pytest.mark.parametrize("content", [b"", CONTENT[:-1], CONTENT + b"\0", b"Services: {}\n"], ids=repr)
def test_every_other_one_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(WorkloadRefused, match=HASH.hex()) as refused:
        check_workload(path, HASH)
    assert (refused.value.code, refused.value.reason) == ("workload-refused", "compose-hash-differs")


def test_one_of_many_parts(path: Path) -> None:
    content = bytes(3 * (1 << 20) + 7)
    path.write_bytes(content)
    check_workload(path, ComposeHash(sha256(content).digest()))


def test_a_device_without_an_end_is_left(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload, "MAX_WORKLOAD", len(CONTENT) - 1)
    with pytest.raises(ConfigurationError, match="longer than"):
        check_workload(path, HASH)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path, tmp_path / "pipe", Path("/dev/zero"), tmp_path / "missing"):
        with pytest.raises(ConfigurationError):
            check_workload(place, HASH)


class TestCopy:
    """What runs must be what was checked: a host can change what is read twice."""

    @pytest.fixture
    def copy(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            yield Path(folder) / "workload"

    def test_the_right_one_is_there_for_its_owner_alone(self, path: Path, copy: Path) -> None:
        with workload_copied(path, copy, HASH):
            pass
        assert copy.read_bytes() == CONTENT
        assert copy.stat().st_mode & 0o777 == 0o600

    def test_it_is_not_there_before_all_went_well(self, path: Path, copy: Path) -> None:
        there: list[Path] = []

        def fails() -> None:
            with workload_copied(path, copy, HASH):
                there.extend(copy.parent.iterdir())
                raise LookupError

        with pytest.raises(LookupError):
            fails()
        assert there == list(copy.parent.iterdir()) == []

    def test_errors_of_the_block_stay_what_they_are(self, path: Path, copy: Path) -> None:
        with pytest.raises(BrokenPipeError), workload_copied(path, copy, HASH):
            raise BrokenPipeError

    def test_another_one_leaves_nothing(self, path: Path, copy: Path) -> None:
        path.write_bytes(b"other")
        with pytest.raises(WorkloadRefused), workload_copied(path, copy, HASH):
            pytest.fail("it must not come here")
        assert list(copy.parent.iterdir()) == []

    def test_what_the_host_changes_afterwards_does_not_matter(self, path: Path, copy: Path) -> None:
        with workload_copied(path, copy, HASH):
            path.write_bytes(b"other")
        with workload_copied(path, copy, HASH):
            pass
        assert copy.read_bytes() == CONTENT

    def test_two_at_once(self, path: Path, copy: Path) -> None:
        with workload_copied(path, copy, HASH), workload_copied(path, copy, HASH):
            pass
        assert copy.read_bytes() == CONTENT

    def test_another_copy_that_is_there_is_refused(self, path: Path, copy: Path) -> None:
        copy.write_bytes(b"other")
        with pytest.raises(WorkloadRefused), workload_copied(path, copy, HASH):
            pytest.fail("it must not come here")

    @pytest.mark.parametrize("how", ["link", "mode", "owner", "folder"])
    def test_a_copy_that_others_can_change_is_refused(self, path: Path, copy: Path, how: str) -> None:
        copy.write_bytes(CONTENT)
        copy.chmod(0o600)
        if how == "link":
            copy.unlink()
            copy.symlink_to(path)
        elif how == "mode":
            copy.chmod(0o666)
        elif how == "folder":
            copy.parent.chmod(0o777)
        elif os.geteuid() != 0:
            pytest.skip("only root can give a file away")
        else:
            os.chown(copy, 61234, 61234)
        with pytest.raises(ConfigurationError), workload_copied(path, copy, HASH):
            pytest.fail("it must not come here")

    @needs_root
    def test_a_folder_that_one_may_not_enter(self, path: Path, copy: Path) -> None:
        def refused() -> None:
            with pytest.raises(ConfigurationError), workload_copied(path, copy, HASH):
                pytest.fail("it must not come here")

        assert in_child(refused, uid=SOMEBODY) == 0

    def test_never_on_a_disk(self, path: Path, monkeypatch: pytest.MonkeyPatch, copy: Path) -> None:
        monkeypatch.setattr(secret_file, "_IN_MEMORY", frozenset())
        with (
            pytest.raises(ConfigurationError, match="host's to change"),
            workload_copied(path, copy, HASH),
        ):
            pytest.fail("it must not come here")
        assert not copy.exists()


class TestDocument:
    def test_ours_and_dstacks(self) -> None:
        assert compose_hash_of(app_document()) == b"\xc3" * 32
        theirs = {"version": 3, "app_id": APP_ID.hex(), "compose_hash": "d4" * 32}
        assert compose_hash_of(json.dumps(theirs).encode()) == b"\xd4" * 32

    @pytest.mark.parametrize(
        "document",
        [b"", b"{}", b"[]", b"\xff", app_document(version=2), app_document(more=1), app_document() * 2],
        ids=repr,
    )
    def test_what_is_none(self, document: bytes) -> None:
        with pytest.raises(AppDocumentRefused) as refused:
            compose_hash_of(document)
        assert refused.value.reason == "app-document-unreadable"
