"""The server as `kms.wiring` builds it, in this process."""

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, closing
from pathlib import Path

import httpx2
import pytest

from kms.database.decisions import DecisionStore
from kms.errors import ConfigurationError
from kms.policy_folder.watching import FolderWatcher
from kms.policy_following import FollowedPolicies
from kms.settings import load_settings
from kms.wiring import Kms, open_kms


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Settings with a policy that allows nobody."""
    policies = tmp_path / "policies"
    policies.mkdir()
    (policies / "revoked.yaml").write_text("kind: revoked\nname: none\n")
    return {"KMS_DATA_DIR": str(tmp_path / "data"), "KMS_POLICY_DIR": str(policies)}


def built(environment: dict[str, str]) -> AbstractAsyncContextManager[Kms]:
    return open_kms(load_settings(None, environment)[0], asyncio.Event())


@pytest.fixture
async def kms(environment: dict[str, str]) -> AsyncIterator[Kms]:
    async with built(environment) as kms:
        yield kms


async def refused(environment: dict[str, str]) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as refusal:
        async with built(environment):
            pass
    return refusal.value


async def get(kms: Kms, path: str) -> httpx2.Response:
    transport = httpx2.ASGITransport(app=kms.app)
    async with httpx2.AsyncClient(transport=transport, base_url="https://kms") as client:
        return await client.get(path)


async def reasons(kms: Kms) -> list[str]:
    return list((await get(kms, "/readyz")).json().get("reasons", []))


async def revision(kms: Kms) -> str:
    active = await kms.desk.policies.active()
    assert active is not None
    return active.policy.revision


async def until(kms: Kms, wanted: list[str]) -> None:
    async with asyncio.timeout(5):
        while await reasons(kms) != wanted:  # noqa: ASYNC110 -- it can only be asked
            await asyncio.sleep(0.05)


class TestReadiness:
    async def test_lesson_38_ready_when_all_is_well(self, kms: Kms) -> None:
        assert (await get(kms, "/readyz")).status_code == 200

    async def test_no_policy(self, environment: dict[str, str]) -> None:
        del environment["KMS_POLICY_DIR"]
        async with built(environment) as kms:
            assert await reasons(kms) == ["policy-missing"]

    async def test_an_anchor_that_is_damaged_until_it_is_mended(self, kms: Kms, tmp_path: Path) -> None:
        anchor = tmp_path / "data" / "anchor.json"
        whole = anchor.read_bytes()
        anchor.write_bytes(b"{}")
        await until(kms, ["anchor-unusable"])
        anchor.write_bytes(whole)
        await until(kms, [])

    async def test_a_folder_that_is_gone_for_a_moment(self, kms: Kms, tmp_path: Path) -> None:
        folder = tmp_path / "policies"
        folder.rename(tmp_path / "away")
        await until(kms, ["policy-folder-invalid"])
        (tmp_path / "away").rename(folder)
        await until(kms, [])

    async def test_a_folder_with_errors_until_it_is_mended(self, kms: Kms, tmp_path: Path) -> None:
        file = tmp_path / "policies" / "revoked.yaml"
        good = file.read_text()
        before = await revision(kms)
        file.write_text("kind: [")
        await until(kms, ["policy-folder-invalid"])
        assert await revision(kms) == before
        file.write_text(good)
        await until(kms, [])

    async def test_an_edit_is_in_force_within_two_seconds(self, kms: Kms, tmp_path: Path) -> None:
        before = await revision(kms)
        (tmp_path / "policies" / "revoked.yaml").write_text("kind: revoked\nname: another\n")
        async with asyncio.timeout(2):
            while await revision(kms) == before:  # noqa: ASYNC110 -- it can only be asked
                await asyncio.sleep(0.02)

    @pytest.mark.parametrize(
        ("part", "background", "reason"),
        [
            (DecisionStore, "_writer", "record-stopped"),
            (FollowedPolicies, "_follower", "policy-follower-stopped"),
            (FolderWatcher, "_watcher", "policy-watcher-stopped"),
        ],
    )
    async def test_lesson_38_what_died_is_named(
        self,
        environment: dict[str, str],
        monkeypatch: pytest.MonkeyPatch,
        part: type,
        background: str,
        reason: str,
    ) -> None:
        started: list[object] = []
        start = part.start  # type: ignore[attr-defined]

        def noting(self: object) -> None:
            started.append(self)
            start(self)

        monkeypatch.setattr(part, "start", noting)
        async with built(environment) as kms:
            assert await reasons(kms) == []
            await getattr(started[0], background).stop()
            assert await reasons(kms) == [reason]

    async def test_a_database_that_is_gone(self, kms: Kms, tmp_path: Path) -> None:
        with closing(sqlite3.connect(tmp_path / "data" / "kms.sqlite3")) as database:
            database.execute("drop table active_policy")
            database.commit()
        assert await reasons(kms) == ["database-unavailable"]


class TestStart:
    async def test_starting_again_changes_nothing(self, environment: dict[str, str]) -> None:
        seen = []
        for _ in range(2):
            async with built(environment) as kms:
                seen.append((await get(kms, "/v1/identity")).json())
        assert seen[0] == seen[1]

    async def test_lesson_30_a_lost_root_is_never_made_again(
        self, environment: dict[str, str], tmp_path: Path
    ) -> None:
        async with built(environment):
            pass
        root = tmp_path / "data" / "root-key.json"
        root.unlink()
        assert "is lost" in (await refused(environment)).detail
        assert not root.exists()

    async def test_lesson_30_none_is_made_where_the_anchor_knows_of_one(
        self, environment: dict[str, str], tmp_path: Path
    ) -> None:
        """Root and database are lost, and what this server has seen is not."""
        async with built(environment):
            pass
        data = tmp_path / "data"
        for path in [data / "root-key.json", *data.glob("kms.sqlite3*")]:
            path.unlink()
        assert "this KMS had one" in (await refused(environment)).detail
        assert not (data / "root-key.json").exists()

    async def test_lesson_30_another_root_is_refused(
        self, environment: dict[str, str], tmp_path: Path
    ) -> None:
        async with built(environment):
            pass
        other = tmp_path / "other"
        async with built({**environment, "KMS_DATA_DIR": str(other)}):
            pass
        shutil.copy(other / "root-key.json", tmp_path / "data" / "root-key.json")
        assert "is not the one of this database" in (await refused(environment)).detail

    async def test_two_folders_with_one_database_have_one_root(
        self, environment: dict[str, str], tmp_path: Path
    ) -> None:
        shared = {**environment, "KMS_DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path}/shared.sqlite3"}
        async with built(shared):
            pass
        other = tmp_path / "other"
        assert "is lost" in (await refused({**shared, "KMS_DATA_DIR": str(other)})).detail
        assert not (other / "root-key.json").exists()

    @pytest.mark.parametrize(
        "wrong",
        [
            {"KMS_TLS_CERT": "cert.pem"},
            {"KMS_TLS_KEY": "key.pem"},
            {"KMS_TLS_CERT": "nothing.pem", "KMS_TLS_KEY": "nothing.pem"},
            {"KMS_TLS_NAMES": "k\u00e4se"},
            {"KMS_POLICY_DIR": "nothing"},
            {"KMS_POLICY_DIR": "{broken}"},
            {"KMS_POLICY_TRUST": "trust.json"},
            {"KMS_LEDGER_ANCHOR": "vault-kv:secret/anchor"},
            {"KMS_OPERATOR_CA": "nothing.pem"},
            {"KMS_OIDC_ISSUER": "https://login.example.org"},
            {"KMS_ROOT_KEY": "pkcs11:token"},
            {"KMS_DATABASE_URL": "sqlite+aiosqlite://"},
            {"KMS_DEVELOPMENT_ROOTS": "nothing.pem"},
        ],
        ids="-".join,
    )
    async def test_a_wrong_setting_leaves_nothing_behind(
        self, environment: dict[str, str], tmp_path: Path, wrong: dict[str, str]
    ) -> None:
        broken = tmp_path / "broken"
        broken.mkdir()
        (broken / "app.yaml").write_text("kind: [")
        changed = {name: value.format(broken=broken) for name, value in wrong.items()}
        await refused({**environment, **changed})
        assert not (tmp_path / "data").exists()

    async def test_a_data_folder_that_cannot_be_made(
        self, environment: dict[str, str], tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_text("")
        refusal = await refused({**environment, "KMS_DATA_DIR": str(tmp_path / "file" / "data")})
        assert "KMS_DATA_DIR" in refusal.remedy


async def test_the_docs_load_nothing(kms: Kms) -> None:
    page = await get(kms, "/docs")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'")
    assert "<script" not in page.text
    assert "http" not in page.text.replace("https://kms", "")
    assert '<a href="/openapi.json">' in page.text
    for path in (await get(kms, "/openapi.json")).json()["paths"]:
        assert f" {path}</code>" in page.text
    for path in ("/docs/oauth2-redirect", "/redoc"):
        assert (await get(kms, path)).status_code == 404
