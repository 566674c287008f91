"""How the session with a real Vault gets its token, keeps it, and gets another one."""

import asyncio
import os
import secrets
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from kms.errors import ConfigurationError
from kms.keys.root_messages import Mode
from kms.rootkey import check_uri, vault_session
from kms.rootkey.vault_access import AppRole, Kubernetes, TokenFile
from tests.rootkey.vault_roots import QUESTION, make, new_root, reason
from tests.servers.vault import VaultServer

pytestmark = [pytest.mark.enable_socket, pytest.mark.xdist_group("vault")]

WAYS = ["token", "approle", "kubernetes"]


def _login(vault: VaultServer, way: str, ttl: str = "1h") -> TokenFile | AppRole | Kubernetes:
    if way == "token":
        return vault.token_login(ttl=ttl)
    return vault.approle_login(ttl=ttl) if way == "approle" else vault.kubernetes_login(ttl=ttl)


@pytest.mark.parametrize("way", WAYS)
async def test_each_way_to_log_in(vault: VaultServer, way: str) -> None:
    access = vault.access(Mode.PRODUCTION, _login(vault, way))
    uri = vault.fresh_uri("vault-transit")
    check_uri(uri, access)
    async with new_root(vault, access=access) as root:
        assert await root.versions() == (1,)


async def test_tokens_live_on_by_renewal(vault: VaultServer) -> None:
    async def live(way: str) -> None:
        access = vault.access(Mode.PRODUCTION, _login(vault, way, ttl="3s"))
        async with new_root(vault, access=access) as root:
            logs.clear()
            await asyncio.sleep(4.5)
            assert await root.outputs(1, QUESTION)

    with capture_logs() as logs:
        await asyncio.gather(*map(live, WAYS))
    assert logs == []  # no other login was needed


async def test_a_token_that_cannot_be_renewed_any_more_is_replaced_before_it_ends(vault: VaultServer) -> None:
    access = vault.access(Mode.PRODUCTION, vault.approle_login(ttl="3s", token_max_ttl="3s"))
    with capture_logs() as logs:
        async with new_root(vault, access=access) as root:
            logs.clear()
            await asyncio.sleep(2.9)
            assert [entry["event"] for entry in logs] == ["vault-logged-in"]
            assert await root.outputs(1, QUESTION)


async def test_an_expired_token_is_named_and_a_new_one_in_the_file_is_taken(vault: VaultServer) -> None:
    login = vault.token_login(ttl="1s", renewable=False)
    async with new_root(vault, access=vault.access(Mode.PRODUCTION, login)) as root:
        await root.outputs(1, QUESTION)
        await asyncio.sleep(1.5)
        assert await reason(root) == "root-key-token-expired"
        login.path.write_text(vault.token())
        assert await root.outputs(1, QUESTION)


async def test_a_new_token_in_the_file_is_used_before_the_old_one_ends(vault: VaultServer) -> None:
    login = vault.token_login()
    async with new_root(vault, access=vault.access(Mode.PRODUCTION, login)) as root:
        before = await root.outputs(1, QUESTION)
        with capture_logs() as logs:
            login.path.write_text("hvs.refused")
            await asyncio.sleep(2.5)
            # The old one is kept, and Vault is not shown the same wrong one again and again.
            assert [entry["event"] for entry in logs] == ["vault-token-not-renewed"]
            assert await root.outputs(1, QUESTION) == before
            login.path.write_text(vault.token())
            await asyncio.sleep(2.5)
        assert [entry["event"] for entry in logs] == ["vault-token-not-renewed", "vault-logged-in"]
        assert await root.outputs(1, QUESTION) == before


async def test_a_token_works_to_its_end_though_no_other_can_be_had(
    vault: VaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vault_session, "_LOOK_AT_LEASE_EVERY", 0.1)
    login = vault.approle_login(ttl="8s", token_max_ttl="8s")
    async with new_root(vault, access=vault.access(Mode.PRODUCTION, login)) as root:
        vault.revoke_secret_id(login)
        await asyncio.sleep(6.8)  # some attempts have failed
        assert await root.outputs(1, QUESTION)
        await asyncio.sleep(1.8)
        assert await reason(root) == "root-key-token-expired"


async def test_one_login_replaces_a_token_that_vault_forgot_however_many_meet_it(
    vault: VaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vault_session, "_REST_AFTER_LOGIN", 0.0)
    login = vault.token_login()
    async with new_root(vault, access=vault.access(Mode.PRODUCTION, login)) as root:
        before = await root.outputs(1, QUESTION)
        vault.root.auth.token.revoke(login.path.read_text())
        login.path.write_text(vault.token())
        with capture_logs() as logs:
            answers = await asyncio.gather(*(root.outputs(1, QUESTION) for _ in range(50)))
        assert set(answers) == {before}
        assert [entry["event"] for entry in logs] == ["vault-logged-in"]


async def test_a_removed_secret_id_is_named_and_does_not_lock_the_role(vault: VaultServer) -> None:
    login = vault.approle_login(ttl="1s", token_max_ttl="1s")
    async with new_root(vault, access=vault.access(Mode.PRODUCTION, login)) as root:
        vault.revoke_secret_id(login)
        await asyncio.sleep(1.2)
        # Vault locks a role after five wrong secret ids; the breaker lets one call a second through.
        assert {await reason(root) for _ in range(10)} == {"root-key-token-expired"}
        await asyncio.sleep(1.2)
        assert await reason(root) == "root-key-token-expired"
        login.secret_id_file.write_text(vault.secret_id(login))
        await asyncio.sleep(1.2)
        assert await root.outputs(1, QUESTION)


async def test_the_projected_token_is_read_anew(vault: VaultServer) -> None:
    login = vault.kubernetes_login(ttl="1s")
    async with new_root(vault, access=vault.access(Mode.PRODUCTION, login)) as root:
        # As a link, with the mode that a projected volume has.
        stale = vault.service_account_token(timedelta(minutes=-10))
        _project(login.token_file, stale)
        vault.root.sys.revoke_prefix("auth/kubernetes/login")
        await asyncio.sleep(1.2)
        assert await reason(root) == "root-key-token-expired"
        _project(login.token_file, vault.service_account_token())
        assert await root.outputs(1, QUESTION)


def _project(path: Path, text: str) -> None:
    target = path.with_name(f"..{secrets.token_hex(4)}")
    target.write_text(text)
    target.chmod(0o644)
    path.unlink()
    path.symlink_to(target)


async def test_a_policy_that_forbids_is_named_and_heals_when_it_is_changed(vault: VaultServer) -> None:
    policy = vault.policy('path "transit/keys/*" { capabilities = ["read"] }')
    access = vault.access(Mode.PRODUCTION, vault.approle_login(policy))
    async with new_root(vault, access=access) as root:
        with capture_logs() as logs:
            reasons = await asyncio.gather(*(reason(root) for _ in range(50)))
        assert set(reasons) == {"root-key-forbidden"}
        assert logs == []  # no login for each: they would all be leases for Vault to keep
        assert await root.versions() == (1,)
        vault.root.sys.create_or_update_policy(
            policy, 'path "transit/*" { capabilities = ["read", "update"] }'
        )
        assert await root.outputs(1, QUESTION)


async def test_a_role_that_got_another_policy_is_logged_in_anew(
    vault: VaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = vault.policy('path "transit/keys/*" { capabilities = ["read"] }')
    login = vault.approle_login(policy)
    async with new_root(vault, access=vault.access(Mode.PRODUCTION, login)) as root:
        role = login.secret_id_file.name.removeprefix("secret-id-of-")
        vault.root.auth.approle.create_or_update_approle(role, token_policies=["all"])
        assert await reason(root) == "root-key-forbidden"
        monkeypatch.setattr(vault_session, "_REST_AFTER_LOGIN", 0.0)
        assert await root.outputs(1, QUESTION)


@pytest.mark.parametrize("fault", ["mode", "missing", "empty", "two lines"])
async def test_a_credential_that_cannot_be_used_is_a_fault_of_the_configuration(
    vault: VaultServer, fault: str
) -> None:
    login = vault.token_login(ttl="1s", renewable=False)
    access = vault.access(Mode.PRODUCTION, login)
    async with new_root(vault, access=access) as root:
        token = login.path.read_text()
        if fault == "mode":
            login.path.chmod(0o640)
        elif fault == "missing":
            login.path.unlink()
        else:
            login.path.write_text("" if fault == "empty" else f"{token}\nX-Vault-Namespace: other")
        with pytest.raises(ConfigurationError) as caught:
            check_uri(vault.fresh_uri("vault-transit"), access)
        assert token not in caught.value.detail
        await asyncio.sleep(1.2)
        assert await reason(root) == "root-key-token-expired"


async def test_nothing_of_the_environment_is_used(
    vault: VaultServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hostile: Mapping[str, str] = {
        "VAULT_TOKEN": "hvs.other",
        "VAULT_ADDR": "https://127.0.0.1:1",
        "VAULT_NAMESPACE": "other",
        "VAULT_SKIP_VERIFY": "1",
        "HTTPS_PROXY": "http://127.0.0.1:1",
        "REQUESTS_CA_BUNDLE": str(tmp_path / "none.pem"),
        "CURL_CA_BUNDLE": str(tmp_path / "none.pem"),
        "HOME": str(tmp_path),
    }
    access = vault.access(Mode.PRODUCTION)
    (tmp_path / ".vault-token").write_text("hvs.other")
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login a password b")
    for name, value in hostile.items():
        monkeypatch.setenv(name, value)
    async with new_root(vault, access=access) as root:
        assert await root.outputs(1, QUESTION)


async def test_credentials_are_in_no_error_log_or_repr(vault: VaultServer) -> None:
    login = vault.approle_login("default", ttl="1s")
    access = vault.access(Mode.PRODUCTION, login)
    uri = vault.fresh_uri("vault-transit")
    await make(uri, vault.access(Mode.PRODUCTION))
    secret_id = login.secret_id_file.read_text()
    seen: list[str] = []
    with capture_logs() as logs:
        root = vault_session.VaultSession(vault.vault_access(login))
        for _ in range(2):
            with pytest.raises(Exception) as caught:  # noqa: PT011 -- whatever it is
                await root.get("transit/keys/none")
            seen.append(repr(caught.value))
            assert caught.value.__context__ is None
        lease = root._lease
        assert lease is not None
        seen += [repr(lease), repr(root), repr(root._connection), repr(root._login), repr(access)]
        vault.revoke_secret_id(login)
        await asyncio.sleep(1.2)
        with pytest.raises(Exception) as caught:  # noqa: PT011
            await root.get("transit/keys/none")
        seen.append(repr(caught.value))
        await root.close()
    text = "\n".join([*seen, *map(str, logs)])
    for canary in (lease.token, secret_id):
        assert canary not in text


async def test_a_closed_session_answers_with_an_error(vault: VaultServer) -> None:
    async with new_root(vault) as root:
        await root.close()
        assert await reason(root) == "root-key-unreachable"
        with pytest.raises(Exception, match="closed"):
            await root.ensure(2, os.urandom)
