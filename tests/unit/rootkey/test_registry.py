import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kms.errors import ConfigurationError
from kms.keys.root_messages import Mode
from kms.rootkey import FileRootKey, RootKeyMissing, create_root_key, open_root_key

NOW = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.mark.parametrize("form", ["file:{}", "file://{}"])
async def test_a_file_is_made_once_and_opened_again(tmp_path: Path, form: str) -> None:
    uri = form.format(tmp_path / "root.key")
    made = create_root_key(uri, mode=Mode.PRODUCTION, now=NOW, random=os.urandom)
    again = open_root_key(uri, mode=Mode.PRODUCTION)
    assert isinstance(again, FileRootKey)
    assert await made.prf(1, b"x") == await again.prf(1, b"x")
    assert (tmp_path / "root.key").exists()


def test_opening_never_makes_a_root(tmp_path: Path) -> None:
    with pytest.raises(RootKeyMissing):
        open_root_key(f"file:{tmp_path}/root.key", mode=Mode.PRODUCTION)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("uri", ["vault-transit:mount/key", "vault-kv:mount/path", "pkcs11:pin-value=1234"])
def test_providers_of_later_versions_are_named_and_refused(uri: str) -> None:
    for attempt in (open_root_key, lambda u, mode: create_root_key(u, mode=mode, now=NOW, random=os.urandom)):
        with pytest.raises(ConfigurationError, match="this version has no root key provider") as caught:
            attempt(uri, mode=Mode.PRODUCTION)
        assert uri.partition(":")[2] not in caught.value.detail
        assert caught.value.remedy


@pytest.mark.parametrize(
    "uri", ["", "file", "file:", "/root.key", "FILE:/x", "hunter2:/x", "file://host/x", "file:/x\0y", ":x"]
)
def test_other_uris_are_refused_without_echo(uri: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_root_key(uri, mode=Mode.PRODUCTION)
    assert "hunter2" not in caught.value.detail
    assert not isinstance(caught.value, RootKeyMissing)
    assert caught.value.remedy
