"""From ``KMS_ROOT_KEY`` to a provider."""

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kms.errors import ConfigurationError
from kms.keys.root_messages import Mode
from kms.rootkey import (
    RootAccess,
    RootKeyMissing,
    check_uri,
    create_provider,
    open_provider,
    restore_provider,
)
from kms.rootkey.file import FileRootKey

NOW = datetime(2026, 1, 2, tzinfo=UTC)
ACCESS = RootAccess(mode=Mode.PRODUCTION)


@pytest.mark.parametrize("form", ["file:{}", "file://{}"])
async def test_a_file_is_made_once_and_opened_again(tmp_path: Path, form: str) -> None:
    uri = form.format(tmp_path / "root.key")
    check_uri(uri, ACCESS)
    made = await create_provider(uri, ACCESS, now=NOW, random=os.urandom)
    again = await open_provider(uri, ACCESS)
    assert isinstance(again, FileRootKey)
    assert await made.outputs(1, [b"x"]) == await again.outputs(1, [b"x"])
    with pytest.raises(ConfigurationError, match="already there"):
        await create_provider(uri, ACCESS, now=NOW, random=os.urandom)


async def test_opening_and_checking_never_make_a_root(tmp_path: Path) -> None:
    uri = f"file:{tmp_path}/root.key"
    check_uri(uri, ACCESS)
    with pytest.raises(RootKeyMissing):
        await open_provider(uri, ACCESS)
    assert list(tmp_path.iterdir()) == []  # noqa: ASYNC240 -- nobody waits


async def test_a_backup_is_restored(tmp_path: Path) -> None:
    secrets = {1: b"a" * 32, 2: b"b" * 32}
    restored = await restore_provider(f"file:{tmp_path}/root.key", ACCESS, secrets, now=NOW)
    assert await restored.secrets() == secrets


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "file",
        "file:",
        "/root.key",
        "FILE:/x",
        "hunter2:/x",
        "file://host/x",
        "file:/x\0y",
        ":x",
        "a:hunter2",
    ],
)
async def test_other_uris_are_refused_without_echo(uri: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_uri(uri, ACCESS)
    assert "hunter2" not in caught.value.detail + caught.value.remedy
    assert caught.value.remedy
    with pytest.raises(ConfigurationError) as caught:
        await open_provider(uri, ACCESS)
    assert not isinstance(caught.value, RootKeyMissing)
