"""``kms keys recovery-key`` and ``kms keys passphrase``."""

import asyncio
import json
import tomllib
from pathlib import Path
from typing import Any, NoReturn

import pytest

from kms.administration.permission import Journal
from kms.errors import LedgerUnavailable, RootKeyUnavailable
from kms.keys.recovery_key import RecoveryKey
from kms.keys.root_messages import challenge_message
from kms.recovery_keys import read_recipients, read_recovery_key
from kms.settings import load_settings
from kms.wiring import open_key_stores
from tests.unit.cli.key_folder import SECRETS, KeyFolder, forms, keys_command, released, write_file

OLD, NEW = b"correct horse battery", b"staple of another kind"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KeyFolder:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KMS_DATA_DIR", str(tmp_path / "data"))
    write_file("old", OLD + b"\n")
    write_file("new", NEW + b"\n")
    return KeyFolder(tmp_path)


def error_of(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    capsys.readouterr()
    assert keys_command(*argv, "--json") == 2
    error: dict[str, Any] = json.loads(capsys.readouterr().out)["error"]
    return error


class TestRecoveryKey:
    def test_what_is_printed_is_a_line_of_the_list(
        self, folder: KeyFolder, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert keys_command("recovery-key", "--out", "alice.key") == 0
        assert (
            keys_command("recovery-key", "--out", "b.key", "--name", "bob", "--passphrase-file", "new") == 0
        )
        said = capsys.readouterr().out
        recipients = read_recipients(write_file("list.toml", said.encode()))
        assert list(tomllib.loads(said)) == ["alice", "bob"]
        keys: dict[str, RecoveryKey] = {
            name: read_recovery_key(path, path.read_bytes(), lambda: NEW)
            for name, path in (("alice", Path("alice.key")), ("bob", Path("b.key")))
        }
        for name, key in keys.items():
            assert recipients[name].public_key == key.public_key
            assert f"SHA-256 {recipients[name].fingerprint.hex()}" in said
            for form in forms(key.private_bytes()):
                assert form not in said.encode()

    def test_its_file_is_its_owners_alone(self, folder: KeyFolder) -> None:
        assert keys_command("recovery-key", "--out", "alice.key") == 0
        assert Path("alice.key").stat().st_mode & 0o777 == 0o600

    def test_for_programs(self, folder: KeyFolder, capsys: pytest.CaptureFixture[str]) -> None:
        assert keys_command("recovery-key", "--out", "alice.key", "--passphrase-file", "new", "--json") == 0
        answer = json.loads(capsys.readouterr().out)
        assert (answer["name"], answer["file"], answer["encrypted"]) == ("alice", "alice.key", True)
        assert answer["line"].startswith('alice = "mlkem768x25519:')

    def test_no_key_is_overwritten(self, folder: KeyFolder, capsys: pytest.CaptureFixture[str]) -> None:
        write_file("alice.key", b"precious")
        assert "never overwritten" in error_of(capsys, "recovery-key", "--out", "alice.key")["detail"]
        assert Path("alice.key").read_bytes() == b"precious"

    def test_what_cannot_be_is_said(self, folder: KeyFolder, capsys: pytest.CaptureFixture[str]) -> None:
        assert "say --name" in error_of(capsys, "recovery-key", "--out", "a b.key")["detail"]
        assert "No such file" in error_of(capsys, "recovery-key", "--out", "none/alice.key")["detail"]
        write_file("short", b"eleven byte")
        short = error_of(capsys, "recovery-key", "--out", "alice.key", "--passphrase-file", "short")
        assert "fewer than 12" in short["detail"]
        write_file("open", NEW, mode=0o644)
        shown = error_of(capsys, "recovery-key", "--out", "alice.key", "--passphrase-file", "open")
        assert "others can use it" in shown["detail"]
        assert not Path("alice.key").exists()


class TestPassphrase:
    @pytest.fixture
    def planted(self, folder: KeyFolder) -> KeyFolder:
        folder.plant(SECRETS)
        return folder

    def test_it_is_set_changed_and_removed_and_the_root_stays(
        self, planted: KeyFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = released()
        assert keys_command("passphrase", "--new-file", "old") == 0
        assert "set KMS_ROOT_KEY_PASSPHRASE_FILE to old" in capsys.readouterr().out
        assert b"ciphertext" in planted.root_key.read_bytes()
        monkeypatch.setenv("KMS_ROOT_KEY_PASSPHRASE_FILE", "old")
        assert released() == before
        assert keys_command("passphrase", "--new-file", "new") == 0
        assert "put new in the place of the file with the old passphrase" in capsys.readouterr().out
        Path("new").replace("old")
        assert released() == before
        assert keys_command("passphrase", "--remove") == 0
        assert "unset KMS_ROOT_KEY_PASSPHRASE_FILE" in capsys.readouterr().out
        monkeypatch.delenv("KMS_ROOT_KEY_PASSPHRASE_FILE")
        assert released() == before
        assert planted.root_key.stat().st_mode & 0o777 == 0o600

    async def test_a_server_that_runs_meanwhile_answers_guests_and_is_not_ready(
        self, planted: KeyFolder
    ) -> None:
        async with open_key_stores(load_settings(None)[0]) as keys:
            before = await keys.root.prf(1, challenge_message())
            assert await asyncio.to_thread(keys_command, "passphrase", "--new-file", "new") == 0
            with pytest.raises(RootKeyUnavailable) as unavailable:
                await keys.root.check(1)
            assert unavailable.value.reason == "root-key-damaged"
            assert await keys.root.prf(1, challenge_message()) == before

    def test_each_change_is_in_the_record(self, planted: KeyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
        assert keys_command("passphrase", "--new-file", "new") == 0
        monkeypatch.setenv("KMS_ROOT_KEY_PASSPHRASE_FILE", "new")
        assert keys_command("passphrase", "--remove") == 0
        monkeypatch.delenv("KMS_ROOT_KEY_PASSPHRASE_FILE")
        write_file("short", b"eleven byte")
        assert keys_command("passphrase", "--new-file", "short") == 2
        actions = planted.actions("keys-passphrase")
        assert [(each["outcome"], each["details"]["encrypted"]) for each in actions] == [
            ("done", True),
            ("done", False),
            ("done", True),
            ("configuration", True),
        ]

    def test_nothing_changes_that_cannot_be_recorded(
        self, planted: KeyFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def fails(*_: object, **__: object) -> NoReturn:
            raise LedgerUnavailable("the disk is full")

        assert keys_command("list") == 0
        before = planted.root_key.read_bytes()
        with monkeypatch.context() as broken:
            broken.setattr(Journal, "record", fails)
            error = error_of(capsys, "passphrase", "--new-file", "new")
        assert error["code"] == "ledger-unavailable"
        planted.database.write_bytes(b"no database")
        error = error_of(capsys, "passphrase", "--new-file", "new")
        assert "was not changed, for nobody could record that" in error["detail"]
        assert planted.root_key.read_bytes() == before

    def test_where_there_is_no_root_none_is_made(
        self, folder: KeyFolder, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert "no root key" in error_of(capsys, "passphrase", "--new-file", "new")["detail"]
        assert not folder.root_key.parent.exists()

    def test_for_programs(self, planted: KeyFolder, capsys: pytest.CaptureFixture[str]) -> None:
        assert keys_command("passphrase", "--new-file", "new", "--json") == 0
        assert json.loads(capsys.readouterr().out) == {"root_key": str(planted.root_key), "encrypted": True}

    def test_without_the_current_one_nothing_changes(
        self, planted: KeyFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert keys_command("passphrase", "--new-file", "old") == 0
        before = planted.root_key.read_bytes()
        assert "is encrypted" in error_of(capsys, "passphrase", "--remove")["detail"]
        monkeypatch.setenv("KMS_ROOT_KEY_PASSPHRASE_FILE", "new")
        assert "does not open it" in error_of(capsys, "passphrase", "--remove")["detail"]
        assert planted.root_key.read_bytes() == before

    def test_a_new_one_that_protects_nothing_is_refused(
        self, planted: KeyFolder, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = planted.root_key.read_bytes()
        write_file("short", b"eleven byte")
        write_file("open", NEW, mode=0o640)
        for name, said in (
            ("short", "fewer than 12"),
            ("open", "others can use it"),
            ("none", "cannot be read"),
        ):
            assert said in error_of(capsys, "passphrase", "--new-file", name)["detail"]
        assert planted.root_key.read_bytes() == before

    def test_only_a_file_has_one(
        self, planted: KeyFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_file("token", b"token")
        monkeypatch.setenv("KMS_ROOT_KEY", "vault-kv:kv/root")
        monkeypatch.setenv("KMS_VAULT_ADDR", "https://vault.example.org")
        monkeypatch.setenv("KMS_VAULT_TOKEN_FILE", "token")
        assert "vault-kv: root key has no passphrase" in error_of(capsys, "passphrase", "--remove")["detail"]

    def test_one_thing_is_said(self, planted: KeyFolder, capsys: pytest.CaptureFixture[str]) -> None:
        assert error_of(capsys, "passphrase")["code"] == "wrong-use"
        assert error_of(capsys, "passphrase", "--remove", "--new-file", "new")["code"] == "wrong-use"

    def test_no_secret_is_said_or_left_behind(
        self, planted: KeyFolder, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert keys_command("passphrase", "--new-file", "new") == 0
        assert keys_command("passphrase", "--remove") == 2
        Path("new").unlink()
        said = capsys.readouterr()
        everything = said.out.encode() + said.err.encode() + planted.written() + planted.root_key.read_bytes()
        for secret in (*SECRETS.values(), NEW):
            for form in forms(secret):
                assert form not in everything
