"""The ledger of a server as `kms.wiring` builds it: sequenced by itself, refused where it went back."""

import asyncio
import json
import shutil
import sqlite3
from contextlib import AbstractAsyncContextManager, closing
from pathlib import Path

import httpx2
import pytest

from kms.anchor import FileAnchor
from kms.errors import ConfigurationError, LedgerUnavailable
from kms.ledger.checkpoint import open_checkpoint
from kms.operators import Actor, Proof, Role
from kms.settings import Settings, load_settings
from kms.wiring import Kms, open_kms, open_ledger

ACTOR = Actor(name="ada", role=Role.ADMIN, proof=Proof.COMMAND_LINE)


@pytest.fixture
def policies(tmp_path: Path) -> Path:
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "revoked.yaml").write_text("kind: revoked\nname: first\n")
    return folder


@pytest.fixture
def settings(tmp_path: Path, policies: Path) -> Settings:
    environment = {"KMS_DATA_DIR": str(tmp_path / "data"), "KMS_POLICY_DIR": str(policies)}
    return load_settings(None, environment)[0]


def built(settings: Settings) -> AbstractAsyncContextManager[Kms]:
    return open_kms(settings, asyncio.Event())


async def checkpoint_of(kms: Kms, size: int) -> str:
    """Give the newest checkpoint once it is of so many entries."""
    transport = httpx2.ASGITransport(app=kms.app)
    async with httpx2.AsyncClient(transport=transport, base_url="https://kms") as client:
        async with asyncio.timeout(10):
            while True:
                answer = await client.get("/ledger/checkpoint")
                if answer.status_code == 200 and int(answer.text.split("\n")[1]) >= size:
                    return answer.text
                await asyncio.sleep(0.05)


async def reasons(kms: Kms) -> list[str]:
    transport = httpx2.ASGITransport(app=kms.app)
    async with httpx2.AsyncClient(transport=transport, base_url="https://kms") as client:
        return list((await client.get("/readyz")).json().get("reasons", []))


async def until(kms: Kms, reason: str) -> None:
    async with asyncio.timeout(10):
        while reason not in await reasons(kms):  # noqa: ASYNC110 -- it can only be asked
            await asyncio.sleep(0.05)


def copy_database(settings: Settings, target: Path) -> None:
    """Make a backup, as SQLite's own command does."""
    with (
        closing(sqlite3.connect(settings.data_dir / "kms.sqlite3")) as source,
        closing(sqlite3.connect(target)) as sink,
    ):
        source.backup(sink)


async def rolled_back(settings: Settings, policies: Path, tmp_path: Path) -> None:
    """Have a server record and sequence something, and put the database of before it back."""
    copy = tmp_path / "copy.sqlite3"
    async with built(settings) as kms:
        await checkpoint_of(kms, 1)
    copy_database(settings, copy)
    (policies / "revoked.yaml").write_text("kind: revoked\nname: second\n")
    async with built(settings) as kms:
        await checkpoint_of(kms, 2)
    shutil.copyfile(copy, settings.data_dir / "kms.sqlite3")


async def test_what_a_server_records_is_in_a_checkpoint_soon(settings: Settings) -> None:
    async with built(settings) as kms:
        note = await checkpoint_of(kms, 1)
        assert await reasons(kms) == []
    async with open_ledger(settings) as local:
        checkpoint = open_checkpoint(note, local.key.verifier_key)
        seen = await local.anchor.read_ledger()
    assert seen is not None
    assert (seen.size, seen.root) == (checkpoint.size, checkpoint.root)


async def test_an_older_database_is_refused_at_start(
    settings: Settings, policies: Path, tmp_path: Path
) -> None:
    await rolled_back(settings, policies, tmp_path)
    with pytest.raises(ConfigurationError) as refused:
        async with built(settings):
            pass
    assert "of 1 entries" in refused.value.detail
    assert "of 2 entries" in refused.value.detail
    assert "kms ledger accept-rollback" in refused.value.remedy


@pytest.mark.parametrize("look", ["anchored_ledger", "read"], ids=["the ledger's", "the policy's"])
async def test_an_anchor_that_does_not_answer_for_a_moment_is_awaited_at_start(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, look: str
) -> None:
    async with built(settings) as kms:
        await checkpoint_of(kms, 1)
    there, asked = getattr(FileAnchor, look), []

    async def away_at_first(anchor: FileAnchor) -> object:
        asked.append(anchor)
        if len(asked) == 1:
            raise LedgerUnavailable("Vault is sealed", reason="anchor-unavailable", retry_after=0)
        return await there(anchor)

    monkeypatch.setattr(FileAnchor, look, away_at_first)
    async with built(settings) as kms:
        assert await reasons(kms) == []
    assert len(asked) > 1


async def test_an_operator_can_accept_it(settings: Settings, policies: Path, tmp_path: Path) -> None:
    await rolled_back(settings, policies, tmp_path)
    async with open_ledger(settings) as local:
        done = await local.acceptance.accept(ACTOR, "the disk burnt")
    assert (done.before.size, done.after.size) == (2, 1)
    async with built(settings) as kms:
        await checkpoint_of(kms, 2)
        # The policy went back too, and is not accepted by this: the anchor has another member for it.
        await until(kms, "policy-untrusted")
        assert "ledger-rolled-back" not in await reasons(kms)


async def test_what_was_recorded_before_there_was_a_ledger_is_taken_over(settings: Settings) -> None:
    async with built(settings) as kms:
        await checkpoint_of(kms, 1)
    database, anchor = settings.data_dir / "kms.sqlite3", settings.data_dir / "anchor.json"
    with closing(sqlite3.connect(database)) as connection, connection:
        for table in ("ledger_checkpoints", "ledger_leaves", "ledger_tiles"):
            connection.execute(f"DELETE FROM {table}")  # noqa: S608 -- names from above
        connection.execute("UPDATE entries SET mac = NULL, server = ''")
    kept = json.loads(anchor.read_bytes())
    del kept["ledger"]
    anchor.write_text(json.dumps(kept))
    for _ in range(2):
        async with built(settings) as kms:
            await checkpoint_of(kms, 2)
    async with open_ledger(settings) as local:
        entries = [each.entry for each in await local.reader.leaves(0, limit=10)]
    words = [json.loads(each.entry)["action"] for each in entries if each]
    assert words.count("ledger-founded") == 1
    assert words[-1] == "ledger-founded"


async def test_a_running_server_says_that_it_was_rolled_back(
    settings: Settings, policies: Path, tmp_path: Path
) -> None:
    await rolled_back(settings, policies, tmp_path)
    async with open_ledger(settings) as local:
        await local.acceptance.accept(ACTOR, "for a moment")
    async with built(settings) as kms:
        await checkpoint_of(kms, 2)
        with closing(sqlite3.connect(settings.data_dir / "kms.sqlite3")) as connection, connection:
            connection.execute("DELETE FROM ledger_checkpoints WHERE size > 1")
        await until(kms, "ledger-rolled-back")
