"""The root as a key of Vault's transit engine, in a real Vault."""

import asyncio
import hmac
import os
import secrets
from collections.abc import Mapping

import pytest
from structlog.testing import capture_logs

from kms.errors import ConfigurationError, RootKeyUnavailable
from kms.keys.root_messages import Mode
from kms.rootkey import (
    CheckedRoot,
    NotExportable,
    RootKeyMissing,
    create_provider,
    open_provider,
    restore_provider,
)
from kms.rootkey.vault_transit import TransitRootKey
from tests.rootkey.vault_roots import NOW, QUESTION, make, new_root, opened, reason
from tests.roots import StoredValues
from tests.servers.vault import VaultServer

pytestmark = [pytest.mark.enable_socket, pytest.mark.xdist_group("vault")]


def _name(uri: str) -> str:
    return uri.rpartition("/")[2]


@pytest.fixture
async def made(vault: VaultServer) -> str:
    """The URI of a new root."""
    uri = vault.fresh_uri("vault-transit")
    await make(uri, vault.access(Mode.PRODUCTION))
    return uri


async def test_vault_makes_a_key_that_never_leaves_it(vault: VaultServer, made: str) -> None:
    key = vault.root.secrets.transit.read_key(_name(made))["data"]
    assert (key["type"], key["key_size"], key["latest_version"]) == ("hmac", 32, 1)
    assert not key["exportable"]
    assert not key["allow_plaintext_backup"]
    assert not key["deletion_allowed"]


async def test_the_outputs_are_hmac_sha_512_of_the_named_version(vault: VaultServer) -> None:
    name, first = f"known-{secrets.token_hex(4)}", secrets.token_bytes(32)
    vault.import_hmac_key(name, first)
    messages = [b"", b"a", os.urandom(1000)]
    expected = tuple(hmac.digest(first, message, "sha512") for message in messages)
    async with opened(f"vault-transit:transit/{name}", vault.access(Mode.PRODUCTION)) as root:
        assert await root.outputs(1, messages) == expected
        await root.ensure(2, os.urandom)
        assert await root.outputs(1, messages) == expected
        assert set(await root.outputs(2, messages)).isdisjoint(expected)


async def test_many_questions_are_one_call(
    vault: VaultServer, made: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(made, vault.access(Mode.PRODUCTION)) as root:
        assert isinstance(root, TransitRootKey)
        calls = []
        post = root._session.post

        async def counted(path: str, body: Mapping[str, object]) -> object:
            calls.append((path, body["key_version"]))
            return await post(path, body)

        monkeypatch.setattr(root._session, "post", counted)
        assert len(await root.outputs(1, [b"a", b"b", b"c"])) == 3
    assert calls == [(f"transit/hmac/{_name(made)}/sha2-512", 1)]


async def test_a_mount_may_have_slashes(vault: VaultServer) -> None:
    uri = f"vault-transit:team/{vault.fresh_uri('vault-transit').removeprefix('vault-transit:')}"
    await make(uri, vault.access(Mode.PRODUCTION))
    async with opened(uri, vault.access(Mode.PRODUCTION)) as root:
        assert await root.versions() == (1,)


async def test_epochs_are_versions_and_follow_each_other(vault: VaultServer, made: str) -> None:
    async with opened(made, vault.access(Mode.PRODUCTION)) as root:
        assert await reason(root, 2) == "root-epoch-missing"
        await root.ensure(2, os.urandom)
        await root.ensure(1, os.urandom)
        assert await root.versions() == (1, 2)
        with pytest.raises(ConfigurationError):
            await root.ensure(4, os.urandom)
        assert await root.versions() == (1, 2)
        # Vault would take 0 for the latest version.
        assert await reason(root, 0) == "root-epoch-missing"


async def test_a_version_that_somebody_else_made_is_the_next_epoch(vault: VaultServer, made: str) -> None:
    async with opened(made, vault.access(Mode.PRODUCTION)) as root:
        vault.root.secrets.transit.rotate_key(_name(made))
        await root.ensure(2, os.urandom)
        assert await root.versions() == (1, 2)


async def test_two_servers_may_rotate_at_once(vault: VaultServer, made: str) -> None:
    access = vault.access(Mode.PRODUCTION)
    async with opened(made, access) as one, opened(made, access) as other:
        await asyncio.gather(one.ensure(2, os.urandom), other.ensure(2, os.urandom))
        assert (await one.versions())[:2] == (1, 2)
        assert await one.outputs(2, QUESTION) == await other.outputs(2, QUESTION)


@pytest.mark.parametrize("limit", ["min_encryption_version", "min_decryption_version"])
async def test_a_version_that_vault_no_longer_lets_us_use_is_no_epoch(
    vault: VaultServer, made: str, limit: str
) -> None:
    async with opened(made, vault.access(Mode.PRODUCTION)) as root:
        before = await root.outputs(1, QUESTION)
        await root.ensure(2, os.urandom)
        vault.configure_key(_name(made), **{limit: 2})
        assert await root.versions() == (2,)
        assert await reason(root, 1) == "root-epoch-missing"
        assert await root.outputs(2, QUESTION)
        vault.configure_key(_name(made), **{limit: 1})
        assert await root.outputs(1, QUESTION) == before


async def test_a_key_that_was_deleted_and_made_again_answers_nothing(vault: VaultServer, made: str) -> None:
    access = vault.access(Mode.PRODUCTION)
    async with opened(made, access) as root:
        checked = CheckedRoot(root, StoredValues(), mode=Mode.PRODUCTION, random=os.urandom)
        await checked.verify_all()
        assert len(await checked.prf(1, b"question")) == 64

        vault.delete_key(_name(made))
        assert await reason(root) == "root-key-missing"
        with pytest.raises(RootKeyUnavailable) as caught:
            await root.versions()
        assert caught.value.reason == "root-key-missing"

        await make(made, access)
        with pytest.raises(RootKeyUnavailable) as caught:
            await checked.prf(1, b"question")
        assert caught.value.reason == "root-key-changed"


async def test_a_missing_key_is_missing_and_an_existing_one_is_not_made_again(
    vault: VaultServer, made: str
) -> None:
    access = vault.access(Mode.PRODUCTION)
    with pytest.raises(RootKeyMissing):
        await open_provider(vault.fresh_uri("vault-transit"), access)
    with pytest.raises(ConfigurationError):
        await create_provider(made, access, now=NOW, random=os.urandom)


async def test_a_key_of_another_type_is_refused(vault: VaultServer) -> None:
    name = f"other-{secrets.token_hex(4)}"
    vault.root.secrets.transit.create_key(name, key_type="aes256-gcm96")
    with pytest.raises(ConfigurationError, match="aes256-gcm96"):
        await open_provider(f"vault-transit:transit/{name}", vault.access(Mode.PRODUCTION))


async def test_a_key_that_can_be_read_or_deleted_is_named_in_the_log(vault: VaultServer, made: str) -> None:
    vault.configure_key(_name(made), deletion_allowed=True, allow_plaintext_backup=True)
    with capture_logs() as logs:
        async with opened(made, vault.access(Mode.PRODUCTION)):
            pass
    events = {entry["event"] for entry in logs if entry["log_level"] == "warning"}
    assert events == {"root-key-exportable", "root-key-deletable"}


async def test_an_imported_key_that_may_not_be_rotated_gets_no_epoch(vault: VaultServer) -> None:
    name = f"known-{secrets.token_hex(4)}"
    vault.import_hmac_key(name, secrets.token_bytes(32), rotatable=False)
    async with opened(f"vault-transit:transit/{name}", vault.access(Mode.PRODUCTION)) as root:
        with pytest.raises(ConfigurationError):
            await root.ensure(2, os.urandom)


async def test_the_root_can_neither_be_exported_nor_restored(vault: VaultServer) -> None:
    async with new_root(vault) as root:
        with pytest.raises(NotExportable):
            await root.secrets()
        assert not root.marked
    with pytest.raises(NotExportable):
        await restore_provider(
            vault.fresh_uri("vault-transit"), vault.access(Mode.PRODUCTION), {1: b"x" * 32}, now=NOW
        )
