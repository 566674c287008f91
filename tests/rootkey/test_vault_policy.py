"""The policies that the guide gives: enough for everything that a server does, and for nothing else."""

import asyncio
import os
from typing import Final

import hvac
import pytest

from kms.errors import RootKeyUnavailable
from kms.keys.root_messages import Mode
from kms.rootkey import create_provider
from tests.rootkey.vault_roots import NOW, QUESTION, make, opened
from tests.servers.vault import VaultServer

pytestmark = [pytest.mark.enable_socket, pytest.mark.xdist_group("vault")]

TRANSIT: Final = """
# KMS_ROOT_KEY=vault-transit:transit/attested-kms
path "transit/hmac/attested-kms/sha2-512" { capabilities = ["update"] }
path "transit/keys/attested-kms"          { capabilities = ["read"] }
path "transit/keys/attested-kms/rotate"   { capabilities = ["update"] } # `kms keys rotate`
path "auth/token/lookup-self"             { capabilities = ["read"] }
path "auth/token/renew-self"              { capabilities = ["update"] }
"""
# For the first start only; or make the key by hand:
# vault write transit/keys/attested-kms type=hmac key_size=32
TRANSIT_FIRST_START: Final = """
path "transit/keys/attested-kms"          { capabilities = ["update"] }
"""
KV: Final = """
# KMS_ROOT_KEY=vault-kv:kv/attested-kms/root
path "kv/data/attested-kms/root"          { capabilities = ["create", "read", "update"] }
path "auth/token/lookup-self"             { capabilities = ["read"] }
path "auth/token/renew-self"              { capabilities = ["update"] }
"""


async def test_the_transit_policy_is_enough_and_no_more(vault: VaultServer) -> None:
    uri, other = "vault-transit:transit/attested-kms", vault.fresh_uri("vault-transit")
    await make(other, vault.access(Mode.PRODUCTION))
    policy = vault.policy(TRANSIT)
    access = vault.access(Mode.PRODUCTION, vault.token_login(policy, ttl="2s", no_default_policy=True))
    with pytest.raises(RootKeyUnavailable) as caught:
        await create_provider(uri, access, now=NOW, random=os.urandom)
    assert caught.value.reason == "root-key-forbidden"

    first = vault.token_login(policy, vault.policy(TRANSIT_FIRST_START), no_default_policy=True)
    await make(uri, vault.access(Mode.PRODUCTION, first))

    login = vault.token_login(policy, ttl="2s", no_default_policy=True)
    async with opened(uri, vault.access(Mode.PRODUCTION, login)) as root:
        assert await root.outputs(1, QUESTION)
        await root.ensure(2, os.urandom)
        await asyncio.sleep(2.5)  # renewed
        assert await root.versions() == (1, 2)

    token = hvac.Client(vault.address, login.path.read_text(), session=vault.root.session)
    for method, path in (
        ("delete", "transit/keys/attested-kms"),
        ("post", "transit/keys/attested-kms/config"),
        ("get", "transit/export/hmac-key/attested-kms"),
        ("get", "transit/backup/attested-kms"),
        ("post", "transit/hmac/attested-kms/sha2-256"),
        ("get", f"transit/keys/{other.rpartition('/')[2]}"),
    ):
        with pytest.raises(hvac.exceptions.Forbidden):
            getattr(token.adapter, method)(f"/v1/{path}")


async def test_the_kv_policy_is_enough_and_no_more(vault: VaultServer) -> None:
    uri = "vault-kv:kv/attested-kms/root"
    login = vault.token_login(vault.policy(KV), no_default_policy=True)
    access = vault.access(Mode.PRODUCTION, login)
    await make(uri, access)
    async with opened(uri, access) as root:
        await root.ensure(2, os.urandom)
        assert await root.versions() == (1, 2)

    token = hvac.Client(vault.address, login.path.read_text(), session=vault.root.session)
    for method, path in (
        ("delete", "kv/data/attested-kms/root"),
        ("delete", "kv/metadata/attested-kms/root"),
        ("post", "kv/destroy/attested-kms/root"),
        ("get", "kv/data/attested-kms/other"),
    ):
        with pytest.raises(hvac.exceptions.Forbidden):
            getattr(token.adapter, method)(f"/v1/{path}")
