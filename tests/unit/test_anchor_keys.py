"""How far epochs and generations came stands in the anchor beside the policy; neither disturbs the other."""

import asyncio
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from kms.anchor import AnchorUnusable, FileAnchor
from kms.errors import ConfigurationError
from kms.keys.epochs import KeyProgress
from kms.policy.history import Head

A = "sha256:" + "aa" * 32
SOME = KeyProgress(epochs=3, in_use=2, retired=frozenset({1}), generations=2)


@pytest.fixture
def anchor(tmp_path: Path) -> FileAnchor:
    return FileAnchor(tmp_path / "anchor.json")


async def test_nothing_was_seen_before_the_first_time(anchor: FileAnchor) -> None:
    assert await anchor.read_keys() == KeyProgress()


async def test_what_was_seen_is_kept_and_readable(anchor: FileAnchor) -> None:
    await anchor.remember_keys(SOME)
    assert await anchor.read_keys() == SOME
    assert json.loads(anchor.path.read_bytes()) == {
        "keys": {"epochs": 3, "in_use": 2, "retired": [1], "generations": 2}
    }


async def test_the_policy_and_the_keys_do_not_disturb_each_other(anchor: FileAnchor) -> None:
    await anchor.remember_keys(SOME)
    assert await anchor.read() is None, "a file with keys alone: no policy was used yet"
    await anchor.remember(Head(7, A))
    await anchor.remember_keys(replace(SOME, epochs=4))
    assert await anchor.read() == Head(7, A)
    assert await anchor.read_keys() == replace(SOME, epochs=4)


async def test_an_anchor_from_before_has_seen_no_epochs(anchor: FileAnchor) -> None:
    await anchor.remember(Head(7, A))
    assert await anchor.read_keys() == KeyProgress()


async def test_it_only_goes_forward_in_everything(anchor: FileAnchor) -> None:
    await anchor.remember_keys(SOME)
    await anchor.remember_keys(KeyProgress(epochs=2, in_use=4, retired=frozenset({2}), generations=1))
    assert await anchor.read_keys() == KeyProgress(
        epochs=3, in_use=4, retired=frozenset({1, 2}), generations=2
    )


async def test_what_is_kept_already_is_not_written_again(anchor: FileAnchor) -> None:
    await anchor.remember_keys(SOME)
    before = anchor.path.stat()
    await anchor.remember_keys(KeyProgress(epochs=1))
    await anchor.remember_keys(SOME)
    assert anchor.path.stat().st_ino == before.st_ino


async def test_of_many_at_once_none_takes_back_what_another_wrote(anchor: FileAnchor) -> None:
    every = [KeyProgress(epochs=number, retired=frozenset({number})) for number in range(1, 9)]
    await asyncio.gather(anchor.remember(Head(1, A)), *(anchor.remember_keys(each) for each in every))
    assert await anchor.read_keys() == KeyProgress(epochs=8, retired=frozenset(range(1, 9)))
    assert await anchor.read() == Head(1, A)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"ledger": {}}',
        b'{"keys": null}',
        b'{"keys": {}}',
        b'{"keys": {"epochs": 3, "in_use": 2, "retired": [1]}}',
        b'{"keys": {"epochs": "3", "in_use": 2, "retired": [1], "generations": 2}}',
        b'{"keys": {"epochs": 3, "in_use": 2, "retired": ["1"], "generations": 2}}',
        b'{"keys": {"epochs": 3, "in_use": 2, "retired": [true], "generations": 2}}',
        b'{"keys": {"epochs": 3, "in_use": 2, "retired": [1], "generations": 0}}',
        b'{"keys": {"epochs": 3, "in_use": 2, "retired": [1], "generations": 2, "more": 1}}',
    ],
)
async def test_a_damaged_file_never_means_that_nothing_was_seen(anchor: FileAnchor, content: bytes) -> None:
    anchor.path.write_bytes(content)
    anchor.path.chmod(0o600)
    for attempt in (anchor.read_keys, partial(anchor.remember_keys, SOME)):
        with pytest.raises(AnchorUnusable, match="damaged") as refused:
            await attempt()
        assert "copy it from another server" in refused.value.detail
    assert anchor.path.read_bytes() == content


@pytest.mark.parametrize(
    "content", [b"", b"{}", b'{"policy": 1}', b'{"keys": {}}', b'{"keys": {"epochs": "2"}}']
)
async def test_a_damaged_one_is_said_before_a_kms_is_founded(tmp_path: Path, content: bytes) -> None:
    anchor = FileAnchor(tmp_path / "anchor.json")
    anchor.path.write_bytes(content)
    anchor.path.chmod(0o600)
    with pytest.raises(ConfigurationError, match="is damaged") as refused:
        await anchor.require_usable(made_later=tmp_path)
    assert "Restore it" in refused.value.remedy
    assert anchor.path.read_bytes() == content


async def test_one_that_is_whole_or_not_there_yet_stands_in_nobodys_way(tmp_path: Path) -> None:
    anchor = FileAnchor(tmp_path / "anchor.json")
    await anchor.require_usable(made_later=tmp_path)
    assert await anchor.read_keys() == KeyProgress()
    await anchor.remember_keys(SOME)
    await anchor.require_usable(made_later=tmp_path)
    assert await anchor.read_keys() == SOME


async def test_a_folder_that_is_not_there_is_a_fault_unless_it_is_the_one_that_a_start_makes(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "data"
    await FileAnchor(folder / "anchor.json").require_usable(made_later=folder)
    elsewhere = FileAnchor(tmp_path / "not-mounted" / "anchor.json")
    with pytest.raises(ConfigurationError, match="is not there") as refused:
        await elsewhere.require_usable(made_later=folder)
    assert "mount" in refused.value.remedy
    assert not folder.exists()
