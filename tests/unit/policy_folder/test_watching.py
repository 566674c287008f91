import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from kms.errors import ConfigurationError, LedgerUnavailable
from kms.policy.revision import Revision
from kms.policy_folder.watching import FolderWatcher, read_policy

ONE, TWO = "kind: revoked\nname: one\n", "kind: revoked\nname: two\n"


class Store:
    """What was applied; `fails` is raised instead."""

    def __init__(self) -> None:
        self.applied: list[str] = []
        self.followed = 0
        self.fails: Exception | None = None
        self.asks_for_signatures = False

    async def folder_revision(self) -> str | None:
        return self.applied[-1] if self.applied else None

    async def apply(self, revision: Revision, files: Mapping[str, bytes]) -> bool:
        if self.fails is not None:
            raise self.fails
        if self.asks_for_signatures:
            return False
        assert files
        self.applied.append(revision.digest)
        return True

    async def follow(self) -> None:
        self.followed += 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "policies"
    made.mkdir()
    (made / "a.yaml").write_text(ONE)
    return made


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
async def watcher(folder: Path, store: Store) -> FolderWatcher:
    watcher = FolderWatcher(folder, store, development=False, applied=store.follow)
    await watcher.apply_at_start(read_policy(folder, development=False)[0])
    return watcher


async def test_the_folder_is_applied_at_start_and_then_left_alone(
    watcher: FolderWatcher, store: Store
) -> None:
    for _ in range(4):
        await watcher.look()
    assert len(store.applied) == store.followed == 1


async def test_a_half_written_folder_is_never_applied(
    watcher: FolderWatcher, store: Store, folder: Path
) -> None:
    for number in range(5):
        (folder / f"{number}.yaml").write_text(f"kind: revoked\nname: part-{number}\n")
        await watcher.look()
    assert len(store.applied) == 1
    await watcher.look()
    assert len(store.applied) == store.followed == 2
    assert store.applied[-1] == read_policy(folder, development=False)[1].digest


async def test_an_edit_that_is_taken_back_is_none(watcher: FolderWatcher, store: Store, folder: Path) -> None:
    (folder / "a.yaml").write_text(TWO)
    await watcher.look()
    (folder / "a.yaml").write_text(ONE)
    for _ in range(3):
        await watcher.look()
    assert len(store.applied) == 1


async def test_an_unreadable_moment_passes(watcher: FolderWatcher, folder: Path, tmp_path: Path) -> None:
    shutil.move(folder, tmp_path / "away")
    await watcher.look()
    assert watcher.failing
    shutil.move(tmp_path / "away", folder)
    await watcher.look()
    await watcher.look()
    assert not watcher.failing


async def test_errors_stay_said_until_they_are_mended(
    watcher: FolderWatcher, store: Store, folder: Path
) -> None:
    (folder / "a.yaml").write_text("kind: [")
    with capture_logs() as logs:
        for _ in range(5):
            await watcher.look()
    assert watcher.failing
    assert [line["event"] for line in logs].count("policy-folder-invalid") == 1
    (folder / "a.yaml").write_text(ONE)
    await watcher.look()
    assert watcher.failing
    await watcher.look()
    assert not watcher.failing
    assert len(store.applied) == 1


async def test_what_could_not_be_stored_is_tried_again(
    watcher: FolderWatcher, store: Store, folder: Path
) -> None:
    store.fails = LedgerUnavailable("locked")
    (folder / "a.yaml").write_text(TWO)
    for _ in range(3):
        await watcher.look()
    assert len(store.applied) == 1
    store.fails = None
    await watcher.look()
    assert len(store.applied) == 2


async def test_a_folder_that_changes_while_the_server_starts(
    folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kms.policy_folder.watching._LOOK_EVERY", 0)
    watcher = FolderWatcher(folder, store, development=False, applied=store.follow)
    first, _ = read_policy(folder, development=False)
    (folder / "a.yaml").write_text(TWO)
    await watcher.apply_at_start(first)
    assert store.applied == [read_policy(folder, development=False)[1].digest]


async def test_a_folder_that_never_rests_is_refused(
    folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kms.policy_folder.watching._LOOK_EVERY", 0)
    numbers = iter(range(1000))

    def changing(path: Path, *, development: bool) -> tuple[dict[str, bytes], Revision]:
        (folder / "a.yaml").write_text(f"kind: revoked\nname: n{next(numbers)}\n")
        return read_policy(path, development=development)

    monkeypatch.setattr("kms.policy_folder.watching.read_policy", changing)
    watcher = FolderWatcher(folder, store, development=False, applied=store.follow)
    with pytest.raises(ConfigurationError, match="keeps changing"):
        await watcher.apply_at_start({})
    assert store.applied == []


async def test_a_folder_that_waits_for_signatures_is_said_until_they_are_there(
    watcher: FolderWatcher, store: Store, folder: Path
) -> None:
    store.asks_for_signatures = True
    (folder / "a.yaml").write_text(TWO)
    with capture_logs() as logs:
        for _ in range(4):
            await watcher.look()
    assert [each["event"] for each in logs] == ["policy-folder-waits-for-signatures"]
    assert watcher.unsigned
    assert len(store.applied) == store.followed == 1
    waiting = str(logs[0]["revision"])
    store.applied.append(waiting)  # as `kms policy apply` of what was signed does
    await watcher.look()
    assert not watcher.unsigned


async def test_a_folder_that_has_to_wait_is_said_once_and_judged_once(
    watcher: FolderWatcher, store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = 0
    from_files = Revision.from_files.__func__  # type: ignore[attr-defined]

    def count(cls: type[Revision], files: Mapping[str, bytes], *, development: bool) -> Revision:
        nonlocal judged
        judged += 1
        revision: Revision = from_files(cls, files, development=development)
        return revision

    monkeypatch.setattr(Revision, "from_files", classmethod(count))
    store.fails = LedgerUnavailable("an older database was put in its place", reason="policy-untrusted")
    (folder / "a.yaml").write_text(TWO)
    with capture_logs() as logs:
        for _ in range(5):
            await watcher.look()
    assert [(each["event"], each["reason"]) for each in logs] == [
        ("policy-folder-not-applied", "policy-untrusted")
    ]
    assert judged == 1
    store.fails = None
    await watcher.look()
    assert len(store.applied) == 2
