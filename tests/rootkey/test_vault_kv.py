"""The root as a secret of Vault's KV engine, in a real Vault."""

import asyncio
import hmac
import os
import secrets
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from kms.errors import ConfigurationError, RootKeyUnavailable
from kms.keys.root_messages import Mode
from kms.rootkey import RootKeyMissing, create_provider, open_provider, restore_provider
from kms.rootkey.vault_kv import KvRootKey
from tests.rootkey.vault_roots import NOW, QUESTION, make, new_root, opened, reason
from tests.servers.vault import VaultServer

pytestmark = [pytest.mark.enable_socket, pytest.mark.xdist_group("vault")]


@pytest.fixture
async def made(vault: VaultServer) -> str:
    """The URI of a new root."""
    uri = vault.fresh_uri("vault-kv")
    await make(uri, vault.access(Mode.PRODUCTION))
    return uri


def _path(uri: str) -> str:
    return uri.removeprefix("vault-kv:kv/")


async def test_a_backup_is_restored_and_gives_the_same_keys(vault: VaultServer) -> None:
    backup = {1: secrets.token_bytes(32), 2: secrets.token_bytes(32)}
    uri, access = vault.fresh_uri("vault-kv"), vault.access(Mode.PRODUCTION)
    await (await restore_provider(uri, access, backup, now=NOW)).close()
    async with opened(uri, access) as root:
        assert root.marked
        assert await root.secrets() == backup
        assert await root.outputs(2, QUESTION) == (hmac.digest(backup[2], QUESTION[0], "sha512"),)
    with pytest.raises(ConfigurationError):
        await restore_provider(uri, access, backup, now=NOW)


async def test_a_root_of_the_other_mode_is_refused(vault: VaultServer, made: str) -> None:
    with pytest.raises(ConfigurationError, match="production"):
        await open_provider(made, vault.access(Mode.DEVELOPMENT))


async def test_an_epoch_that_another_server_added_is_found(vault: VaultServer, made: str) -> None:
    access = vault.access(Mode.PRODUCTION)
    async with opened(made, access) as one, opened(made, access) as other:
        assert await reason(one, 2) == "root-epoch-missing"
        await other.ensure(2, os.urandom)
        assert await one.outputs(2, QUESTION) == await other.outputs(2, QUESTION)
        assert await one.versions() == (1, 2)
        with pytest.raises(ConfigurationError):
            await one.ensure(4, os.urandom)


async def test_of_servers_that_add_an_epoch_at_once_all_get_the_same(vault: VaultServer, made: str) -> None:
    access = vault.access(Mode.PRODUCTION)
    async with opened(made, access) as one, opened(made, access) as two, opened(made, access) as three:
        racers = (one, two, three)
        await asyncio.gather(*(root.ensure(2, os.urandom) for root in racers))
        assert len({await root.outputs(2, QUESTION) for root in racers}) == 1
        assert await one.versions() == (1, 2)


async def test_what_was_deleted_is_missing_and_never_written_over(vault: VaultServer, made: str) -> None:
    access = vault.access(Mode.PRODUCTION)
    with pytest.raises(RootKeyMissing):
        await open_provider(vault.fresh_uri("vault-kv"), access)
    async with opened(made, access) as root:
        before = await root.outputs(1, QUESTION)
        vault.root.secrets.kv.v2.delete_latest_version_of_secret(_path(made), mount_point="kv")
        with pytest.raises(RootKeyMissing):
            await open_provider(made, access)
        with pytest.raises(ConfigurationError):
            await create_provider(made, access, now=NOW, random=os.urandom)
        with pytest.raises(RootKeyUnavailable) as caught:
            await root.versions()
        assert caught.value.reason == "root-key-missing"
        assert await root.outputs(1, QUESTION) == before

        vault.root.secrets.kv.v2.undelete_secret_versions(_path(made), [1], mount_point="kv")
        assert await root.versions() == (1,)


async def test_a_root_that_was_exchanged_or_damaged_is_noticed(vault: VaultServer, made: str) -> None:
    kv = vault.root.secrets.kv.v2
    access = vault.access(Mode.PRODUCTION)
    other = vault.fresh_uri("vault-kv")
    await make(other, access)
    text = kv.read_secret_version(_path(other), mount_point="kv", raise_on_deleted_version=True)["data"][
        "data"
    ]["root"]
    async with opened(made, access) as root:
        before = await root.outputs(1, QUESTION)
        for exchanged in (text, text.replace("production", "development"), text[:-9]):
            kv.create_or_update_secret(_path(made), {"root": exchanged}, mount_point="kv")
            with pytest.raises(RootKeyUnavailable) as caught:
                await root.versions()
            assert caught.value.reason == "root-key-changed"
            assert await root.outputs(1, QUESTION) == before
    with pytest.raises(ConfigurationError):
        await open_provider(made, access)


@pytest.fixture
def old_engine(vault: VaultServer) -> Iterator[str]:
    """The mount of a KV engine of version 1."""
    vault.root.sys.enable_secrets_engine("kv", "old", options={"version": "1"})
    yield "old"
    vault.root.sys.disable_secrets_engine("old")


async def test_an_engine_without_check_and_set_is_refused(vault: VaultServer, old_engine: str) -> None:
    policy = vault.policy('path "old/*" { capabilities = ["create", "read", "update"] }')
    access = vault.access(Mode.PRODUCTION, vault.token_login(policy))
    with pytest.raises(ConfigurationError, match="version 2"):
        await make(f"vault-kv:{old_engine}/root", access)


async def test_keys_are_released_while_vault_is_sealed(vault: VaultServer) -> None:
    async with new_root(vault, "vault-kv") as root:
        before = await root.outputs(1, QUESTION)
        vault.seal()
        try:
            assert await root.outputs(1, QUESTION) == before
            with pytest.raises(RootKeyUnavailable) as caught:
                await root.versions()
            assert caught.value.reason == "root-key-sealed"
        finally:
            vault.unseal()


async def test_a_root_that_vault_will_delete_is_named_in_the_log(vault: VaultServer) -> None:
    uri, access = vault.fresh_uri("vault-kv"), vault.access(Mode.PRODUCTION)
    vault.root.secrets.kv.v2.update_metadata(_path(uri), delete_version_after="1h", mount_point="kv")
    await make(uri, access)
    with capture_logs() as logs:
        await (await open_provider(uri, access)).close()
    assert [log["event"] for log in logs if log["log_level"] == "warning"] == ["root-key-deletable"]


async def test_what_was_being_read_at_the_end_brings_no_secret_back(
    vault: VaultServer, made: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = await open_provider(made, vault.access(Mode.PRODUCTION))
    assert isinstance(root, KvRootKey)
    read = root._read

    async def closed_meanwhile() -> object:
        stored = await read()
        await root.close()
        return stored

    monkeypatch.setattr(root, "_read", closed_meanwhile)
    with pytest.raises(RootKeyUnavailable, match="closed"):
        await root.versions()
    assert root._secrets == {}


async def test_closing_overwrites_the_secrets(vault: VaultServer, made: str) -> None:
    root = await open_provider(made, vault.access(Mode.PRODUCTION))
    assert isinstance(root, KvRootKey)
    held = root._secrets[1]
    assert any(held)
    await root.close()
    assert not any(held)
    assert await reason(root) == "root-key-unreachable"
