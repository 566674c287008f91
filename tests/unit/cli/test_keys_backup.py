"""``kms keys export`` and ``kms keys restore``, on a data folder of their own."""

import asyncio
import json
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

import pytest

from kms import root_place
from kms.administration.permission import Journal
from kms.cli.office import command_line_actor
from kms.errors import LedgerUnavailable
from kms.keys.dstack import DstackRoots
from kms.rootkey import NotExportable, RootKeyMissing
from kms.rootkey.file import FileRootKey
from kms.settings import load_settings
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.product import Product
from kms.wiring import open_key_stores
from tests.unit.cli.key_folder import SECRETS, KeyFolder, forms, keys_command, released, write_file

PASSPHRASE = b"correct horse battery"
DSTACK = DstackRoots(ca=b"CANARY-of-a-CA-in-another-system", k256=b"CANARY-of-another-systems-k256-k")
OTHERS = DstackRoots(ca=b"\x01" * 32, k256=b"\x02" * 32)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KeyFolder:
    """A root of two epochs and its database, two recovery keys, and the list that names them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KMS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("KMS_RECOVERY_KEYS", "recovery-keys.toml")
    folder = KeyFolder(tmp_path)
    folder.plant(SECRETS)
    return folder


@pytest.fixture
def recovery(folder: KeyFolder, capsys: pytest.CaptureFixture[str]) -> KeyFolder:
    """The same, with recovery keys of alice (under a passphrase) and bob."""
    write_file("passphrase", PASSPHRASE + b"\n")
    assert keys_command("recovery-key", "--out", "alice.key", "--passphrase-file", "passphrase") == 0
    assert keys_command("recovery-key", "--out", "bob.key") == 0
    write_file("recovery-keys.toml", capsys.readouterr().out.encode())
    return folder


@pytest.fixture
def adopted(recovery: KeyFolder, capsys: pytest.CaptureFixture[str]) -> KeyFolder:
    """The same, and the database has both epochs."""
    assert keys_command("rotate") == 0
    capsys.readouterr()
    return recovery


@pytest.fixture
def backed_up(adopted: KeyFolder, capsys: pytest.CaptureFixture[str]) -> KeyFolder:
    """The same, and there is a backup for both."""
    assert export("--all") == 0
    capsys.readouterr()
    return adopted


def export(*options: str, out: str = "root.backup") -> int:
    return keys_command("export", *options, "--out", out)


def restore(*options: str, key: str = "bob.key", backup: str = "root.backup") -> int:
    return keys_command("restore", backup, "--key", key, *options)


def error_of(
    capsys: pytest.CaptureFixture[str], command: Callable[..., int], *options: str
) -> dict[str, Any]:
    """Run what must fail, and give its error."""
    capsys.readouterr()
    assert command(*options, "--json") == 2
    error: dict[str, Any] = json.loads(capsys.readouterr().out)["error"]
    return error


def listed(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Give the epochs and generations."""
    capsys.readouterr()
    assert keys_command("list", "--json") == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def import_dstack(roots: DstackRoots) -> None:
    async def store() -> None:
        async with open_key_stores(load_settings(None)[0]) as keys:
            action = keys.journal.entry(command_line_actor(), "keys-import-dstack")
            await keys.foreign.import_dstack(roots, action=action, replace=True)

    asyncio.run(store())


def kept_dstack() -> DstackRoots | None:
    async def read() -> DstackRoots | None:
        async with open_key_stores(load_settings(None)[0]) as keys:
            return await keys.foreign.dstack()

    return asyncio.run(read())


class TestExport:
    def test_it_goes_to_those_who_are_named_and_to_nobody_else(
        self, adopted: KeyFolder, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert export("--to", "bob", "--to", "bob") == 0
        said = capsys.readouterr().out
        assert "2 epoch(s), production" in said
        assert "sealed to bob, SHA-256 " in said
        assert "alice" not in said
        assert Path("root.backup").stat().st_mode & 0o777 == 0o600
        assert restore("--check") == 0
        error = error_of(capsys, lambda *o: restore(*o, "--passphrase-file", "passphrase", key="alice.key"))
        assert error["reason"] == "backup-not-for-key"

    def test_for_programs_the_answer_is_one_document(
        self, adopted: KeyFolder, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert export("--all", "--json") == 0
        answer = json.loads(capsys.readouterr().out)
        assert [each["epoch"] for each in answer["epochs"]] == [1, 2]
        assert [each["name"] for each in answer["recipients"]] == ["alice", "bob"]
        assert answer["file"] == "root.backup"

    def test_the_record_says_to_whom(self, adopted: KeyFolder) -> None:
        assert export("--to", "bob") == 0
        (action,) = adopted.actions("keys-export")
        assert (action["proof"], action["outcome"]) == ("command-line", "done")
        details = action["details"]
        assert details["epochs"] == [1, 2]
        assert [each["name"] for each in details["recipients"]] == ["bob"]
        assert details["dstack"] is False
        assert len(details["backup_sha256"]) == 64

    def test_nothing_leaves_that_cannot_be_recorded(
        self, adopted: KeyFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def fails(*_: object, **__: object) -> NoReturn:
            raise LedgerUnavailable("the disk is full")

        monkeypatch.setattr(Journal, "record", fails)
        assert error_of(capsys, export, "--to", "bob")["code"] == "ledger-unavailable"
        assert not Path("root.backup").exists()

    def test_a_stranger_is_refused_and_the_known_are_named(
        self, adopted: KeyFolder, capsys: pytest.CaptureFixture[str]
    ) -> None:
        error = error_of(capsys, export, "--to", "bob", "--to", "mallory")
        assert "mallory" in error["detail"]
        assert "alice, bob" in error["detail"]
        assert not Path("root.backup").exists()
        assert adopted.actions("keys-export") == []

    def test_nothing_is_overwritten(self, adopted: KeyFolder, capsys: pytest.CaptureFixture[str]) -> None:
        Path("root.backup").symlink_to("nowhere")
        assert "never overwritten" in error_of(capsys, export, "--to", "bob")["detail"]
        assert not Path("nowhere").exists()
        assert adopted.actions("keys-export") == []

    def test_a_list_that_others_can_write_is_not_used(
        self, adopted: KeyFolder, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Path("recovery-keys.toml").chmod(0o620)
        assert "others can use it" in error_of(capsys, export, "--to", "bob")["detail"]
        assert not Path("root.backup").exists()

    def test_without_a_list_nobody_gets_it(
        self, adopted: KeyFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("KMS_RECOVERY_KEYS")
        assert "KMS_RECOVERY_KEYS" in error_of(capsys, export, "--to", "bob")["detail"]

    def test_a_root_that_stays_where_it_is_is_backed_up_there(
        self, adopted: KeyFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As in Vault's transit engine, or an HSM."""

        async def stays(_: FileRootKey) -> NoReturn:
            raise NotExportable("a key of Vault's transit engine never leaves Vault: back up Vault itself")

        monkeypatch.setattr(FileRootKey, "secrets", stays)
        error = error_of(capsys, export, "--to", "bob")
        assert error["code"] == "root-key-not-exportable"
        assert "back up Vault itself" in error["detail"]
        assert not Path("root.backup").exists()
        assert adopted.actions("keys-export") == []

    def test_where_there_is_no_root_none_is_made(
        self, recovery: KeyFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A backup of a root that was made just now looks like one of the KMS that was meant."""
        monkeypatch.setenv("KMS_DATA_DIR", str(recovery.path / "elsewhere"))
        error = error_of(capsys, export, "--to", "bob")
        assert f"no root key at file:{recovery.path}/elsewhere/root-key.json" in error["detail"]
        assert not (recovery.path / "elsewhere").exists()
        assert not Path("root.backup").exists()

    def test_what_was_recorded_and_not_written_is_recorded_as_well(
        self, adopted: KeyFolder, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert "No such file" in error_of(capsys, lambda *o: export("--all", *o, out="none/x"))["detail"]
        assert [each["outcome"] for each in adopted.actions("keys-export")] == ["done", "configuration"]

    def test_it_is_the_root_that_answers_guests(
        self, adopted: KeyFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def another(_: FileRootKey) -> Mapping[int, bytes]:
            return {**SECRETS, 2: b"x" * 32}

        monkeypatch.setattr(FileRootKey, "secrets", another)
        assert error_of(capsys, export, "--to", "bob")["reason"] == "root-key-changed"
        assert not Path("root.backup").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["export", "--all", "--out", "x"],
        ["restore", "x", "--key", "x"],
        ["recovery-key", "--out", "x"],
        ["passphrase", "--remove"],
    ],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize("options", [["--server", "https://kms:8443"], ["--token-file", "token"]])
def test_there_is_no_way_over_the_network(
    folder: KeyFolder, capsys: pytest.CaptureFixture[str], command: list[str], options: list[str]
) -> None:
    assert keys_command(*command, *options) == 2
    assert "unrecognized arguments" in capsys.readouterr().err


class TestRestore:
    def test_a_lost_root_comes_back(self, backed_up: KeyFolder, capsys: pytest.CaptureFixture[str]) -> None:
        before, file = released(), backed_up.root_key.stat()
        backed_up.root_key.unlink()
        assert keys_command("list") == 2
        assert restore() == 0
        assert f"restored: file:{backed_up.root_key}" in capsys.readouterr().out
        assert released() == before
        assert backed_up.root_key.stat().st_mode == file.st_mode
        (action,) = backed_up.actions("keys-restore")
        assert action["details"]["root_made"] is True
        assert action["details"]["epochs"] == [1, 2]
        assert (
            action["details"]["backup_sha256"]
            == backed_up.actions("keys-export")[0]["details"]["backup_sha256"]
        )

    def test_it_is_encrypted_if_the_settings_say_so(
        self, backed_up: KeyFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        backed_up.root_key.unlink()
        monkeypatch.setenv("KMS_ROOT_KEY_PASSPHRASE_FILE", "passphrase")
        assert restore() == 0
        assert b"ciphertext" in backed_up.root_key.read_bytes()
        assert released()

    def test_with_a_key_under_a_passphrase(
        self, backed_up: KeyFolder, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write_file("wrong", b"another passphrase")
        assert "is encrypted" in error_of(capsys, lambda *o: restore(*o, key="alice.key"))["detail"]
        wrong = error_of(capsys, lambda *o: restore(*o, "--passphrase-file", "wrong", key="alice.key"))
        assert "does not open it" in wrong["detail"]
        assert restore("--check", "--passphrase-file", "passphrase", key="alice.key") == 0

    def test_a_key_that_others_can_read_is_refused(
        self, backed_up: KeyFolder, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Path("bob.key").chmod(0o640)
        assert "chmod 600 bob.key" in error_of(capsys, restore)["remedy"]

    def test_a_backup_that_was_changed_is_refused(
        self, backed_up: KeyFolder, capsys: pytest.CaptureFixture[str]
    ) -> None:
        backed_up.root_key.unlink()
        text = Path("root.backup").read_text()
        write_file("changed", text.replace('"name": "alice"', '"name": "carol"').encode())
        write_file("short", text[:-20].encode())
        for name, reason in (("changed", "cannot-open"), ("short", "backup-malformed")):
            assert error_of(capsys, lambda *o, name=name: restore(*o, backup=name))["reason"] == reason
        assert not backed_up.root_key.exists()

    def test_a_backup_of_another_kms_is_refused(
        self, backed_up: KeyFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("KMS_DATA_DIR", str(backed_up.path / "other"))
        backed_up.plant({1: b"x" * 32}, "other/root-key.json")
        assert keys_command("list") == 0
        (backed_up.path / "other" / "root-key.json").unlink()
        assert "of another KMS than this database" in error_of(capsys, restore)["detail"]
        assert not (backed_up.path / "other" / "root-key.json").exists()

    def test_whose_root_it_is_can_be_demanded(
        self, backed_up: KeyFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Who has bob's public key can make a backup for him, of a root that they know."""
        assert restore("--check", "--json") == 0
        ours = json.loads(capsys.readouterr().out)["identity"]
        monkeypatch.setenv("KMS_DATA_DIR", str(backed_up.path / "mallory"))
        backed_up.plant({1: b"known to mallory" * 2}, "mallory/root-key.json")
        assert export("--to", "bob", out="mallory.backup") == 0
        assert restore("--check", f"--identity={ours}") == 0
        forged = error_of(
            capsys, lambda *o: restore("--check", f"--identity={ours}", *o, backup="mallory.backup")
        )
        assert "of another KMS" in forged["detail"]

    def test_a_backup_of_the_other_mode_is_refused(
        self,
        backed_up: KeyFolder,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        simulated_hierarchies: Mapping[Product, AmdHierarchy],
    ) -> None:
        write_file("roots.pem", simulated_hierarchies[Product.MILAN].ark.pem)
        monkeypatch.setenv("KMS_DEVELOPMENT_ROOTS", "roots.pem")
        monkeypatch.setenv("KMS_DATA_DIR", str(backed_up.path / "development"))
        assert "of a production root" in error_of(capsys, restore)["detail"]
        assert not (backed_up.path / "development").exists()
        assert keys_command("list") == 0
        assert export("--to", "bob", out="development.backup") == 0
        monkeypatch.delenv("KMS_DEVELOPMENT_ROOTS")
        monkeypatch.setenv("KMS_DATA_DIR", str(backed_up.path / "production"))
        refused = error_of(capsys, lambda *o: restore(*o, backup="development.backup"))
        assert "of a development root" in refused["detail"]
        assert not (backed_up.path / "production").exists()

    def test_an_older_backup_is_refused_and_says_which_epochs_it_lacks(
        self, backed_up: KeyFolder, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert keys_command("rotate") == 0
        backed_up.root_key.unlink()
        error = error_of(capsys, restore)
        assert "older than epoch(s) 3," in error["detail"]
        assert "new data folder" in error["remedy"]
        assert not backed_up.root_key.exists()

    def test_a_lost_database_gets_back_which_epochs_were_retired(
        self, adopted: KeyFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Otherwise guests would get the keys of an epoch that leaked, and was retired for that."""
        assert keys_command("retire", "1", "--force") == 0
        assert keys_command("rotate", "--identity") == 0
        assert export("--all") == 0
        before, prf = listed(capsys), released()
        new = KeyFolder(adopted.path / "new")
        new.path.mkdir()
        monkeypatch.setenv("KMS_DATA_DIR", str(new.path / "data"))
        assert restore() == 0
        said = capsys.readouterr().out
        assert "those of the backup: 1 to 2, retired 1; 2 generation(s) of the identity" in said
        assert released() == prf
        after = listed(capsys)
        assert [each["state"] for each in after["epochs"]] == ["retired", "current"]
        for each, old in zip(after["epochs"], before["epochs"], strict=True):
            for name in ("made_at", "active_from", "retired_at"):
                assert (each[name] or "")[:19] == (old[name] or "")[:19]
        assert [each["identity"] for each in after["identity"]["generations"]] == [
            each["identity"] for each in before["identity"]["generations"]
        ]
        epochs, root = new.actions("keys-restore")
        assert epochs["details"] == {"epochs": [1, 2], "retired": [1], "generations": 2}
        assert (epochs["target"], root["target"]) == ("epochs", "root")
        assert keys_command("rotate", "--json") == 0
        assert json.loads(capsys.readouterr().out)["epoch"]["epoch"] == 3
        assert [each["state"] for each in listed(capsys)["epochs"]] == ["retired", "available", "current"]

    def test_an_anchor_that_was_not_lost_is_believed_and_agrees(
        self, adopted: KeyFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("KMS_LEDGER_ANCHOR", str(adopted.path / "other-disk.json"))
        assert keys_command("retire", "1", "--force") == 0
        assert export("--all") == 0
        monkeypatch.setenv("KMS_DATA_DIR", str(adopted.path / "new"))
        assert restore() == 0
        assert [each["state"] for each in listed(capsys)["epochs"]] == ["retired", "current"]

    @pytest.mark.parametrize(
        ("since", "said"),
        [
            (["rotate"], "epoch 3"),
            (["retire", "1", "--force"], "the retirement of epoch 1"),
            (["rotate", "--identity"], "generation 2 of the identity"),
        ],
        ids=["an epoch", "a retirement", "a generation"],
    )
    def test_a_backup_that_knows_less_than_the_anchor_is_refused_until_somebody_says_otherwise(
        self,
        adopted: KeyFolder,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        since: list[str],
        said: str,
    ) -> None:
        anchor = adopted.path / "other-disk.json"
        monkeypatch.setenv("KMS_LEDGER_ANCHOR", str(anchor))
        assert export("--all") == 0
        assert keys_command(*since) == 0
        monkeypatch.setenv("KMS_DATA_DIR", str(adopted.path / "new"))
        error = error_of(capsys, restore)
        assert f"does not know {said};" in error["detail"]
        assert f"`keys` from {anchor}" in error["remedy"]
        assert "newest backup" in error["remedy"]
        assert not (adopted.path / "new" / "root-key.json").exists()
        members = json.loads(anchor.read_text())
        del members["keys"]
        if members:
            anchor.write_text(json.dumps(members))
        else:
            anchor.unlink()
        assert restore() == 0
        assert [each["state"] for each in listed(capsys)["epochs"]] == ["available", "current"]

    def test_an_epoch_that_was_not_adopted_comes_back_by_a_rotation(
        self, recovery: KeyFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert export("--all") == 0
        monkeypatch.setenv("KMS_DATA_DIR", str(recovery.path / "new"))
        assert restore() == 0
        assert "does not know epoch(s) 2" in capsys.readouterr().out
        assert keys_command("rotate") == 0
        restored = json.loads((recovery.path / "new" / "root-key.json").read_text())
        assert restored["epochs"] == json.loads(recovery.root_key.read_text())["epochs"]

    @pytest.mark.parametrize("policy", [{}, {"policy": {"revision": "sha256:" + "0" * 64, "sequence": 1}}])
    def test_with_an_older_database_an_epoch_that_it_lacks_comes_back_with_its_keys(
        self,
        recovery: KeyFolder,
        capsys: pytest.CaptureFixture[str],
        policy: dict[str, object],
    ) -> None:
        """As the guide says: `keys` leaves the anchor, and the next rotation takes what the root has."""
        anchor = recovery.path / "data" / "anchor.json"
        assert keys_command("list") == 0
        older = recovery.database.read_bytes()
        assert keys_command("rotate") == 0
        root = recovery.root_key.read_bytes()
        recovery.database.write_bytes(older)
        assert error_of(capsys, keys_command, "list")["reason"] == "epochs-untrusted"
        assert error_of(capsys, keys_command, "rotate")["reason"] == "epochs-untrusted"
        if policy:
            anchor.write_text(json.dumps(policy))
        else:
            anchor.unlink()
        assert keys_command("rotate", "--json") == 0
        assert json.loads(capsys.readouterr().out)["epoch"]["epoch"] == 2
        assert recovery.root_key.read_bytes() == root

    def test_again_changes_nothing(self, backed_up: KeyFolder, capsys: pytest.CaptureFixture[str]) -> None:
        before = backed_up.root_key.read_bytes()
        assert restore() == 0
        assert "here already" in capsys.readouterr().out
        assert backed_up.root_key.read_bytes() == before
        assert [each["details"]["root_made"] for each in backed_up.actions("keys-restore")] == [False]

    @pytest.mark.parametrize(
        ("secrets", "said"),
        [({1: b"x" * 32}, "another root already"), ({1: SECRETS[1]}, "an older copy")],
        ids=["another", "an older copy"],
    )
    def test_no_root_is_overwritten(
        self,
        backed_up: KeyFolder,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        secrets: dict[int, bytes],
        said: str,
    ) -> None:
        monkeypatch.setenv("KMS_DATA_DIR", str(backed_up.path / "new"))
        backed_up.plant(secrets, "new/root-key.json")
        before = (backed_up.path / "new" / "root-key.json").read_bytes()
        error = error_of(capsys, restore)
        assert said in error["detail"]
        assert "move it away" in error["remedy"]
        assert (backed_up.path / "new" / "root-key.json").read_bytes() == before

    def test_a_damaged_root_is_not_overwritten_either(
        self, backed_up: KeyFolder, capsys: pytest.CaptureFixture[str]
    ) -> None:
        backed_up.root_key.write_bytes(b"{}")
        error = error_of(capsys, restore)
        assert str(backed_up.root_key) in error["detail"]
        assert "move it away" in error["remedy"]
        assert backed_up.root_key.read_bytes() == b"{}"

    def test_another_place_can_be_named(
        self, backed_up: KeyFolder, capsys: pytest.CaptureFixture[str]
    ) -> None:
        place = f"file:{backed_up.path}/elsewhere/root-key.json"
        assert restore("--to", place) == 0
        assert f"set KMS_ROOT_KEY to {place}" in capsys.readouterr().out
        assert (backed_up.path / "elsewhere" / "root-key.json").exists()

    def test_a_place_that_takes_no_secrets_is_said(
        self, backed_up: KeyFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As Vault's transit engine, or an HSM."""

        async def missing(*_: object) -> NoReturn:
            raise RootKeyMissing("there is none")

        async def refuses(*_: object, **__: object) -> NoReturn:
            raise NotExportable("a root key in an HSM neither leaves it nor comes from outside")

        monkeypatch.setattr(root_place, "open_provider", missing)
        monkeypatch.setattr(root_place, "restore_provider", refuses)
        error = error_of(capsys, restore)
        assert "HSM" in error["detail"]
        assert "--to file:" in error["remedy"]

    def test_what_was_interrupted_is_finished_by_the_same_command(
        self, backed_up: KeyFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def fails(*_: object, **__: object) -> NoReturn:
            raise LedgerUnavailable("the disk is full")

        backed_up.root_key.unlink()
        with monkeypatch.context() as broken:
            broken.setattr(Journal, "record", fails)
            error = error_of(capsys, restore)
        assert "the root is there" in error["detail"]
        assert "the same command" in error["remedy"]
        assert backed_up.actions("keys-restore") == []
        assert restore() == 0
        assert len(backed_up.actions("keys-restore")) == 1


class TestCheck:
    def test_it_writes_nothing(
        self, backed_up: KeyFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("KMS_DATA_DIR", str(backed_up.path / "new"))
        assert restore("--check") == 0
        said = capsys.readouterr().out
        assert "2 epoch(s); sealed to alice, bob" in said
        assert "nothing was written" in said
        assert not (backed_up.path / "new").exists()
        assert backed_up.actions("keys-restore") == []

    @pytest.mark.parametrize("options", [["--to", "file:x"], ["--config", "kms.toml"]])
    def test_it_takes_no_place_to_restore_to(
        self, backed_up: KeyFolder, capsys: pytest.CaptureFixture[str], options: list[str]
    ) -> None:
        assert error_of(capsys, lambda *o: restore("--check", *options, *o))["code"] == "wrong-use"


class TestImportedRoots:
    """Those of a dstack KMS are in the database, and in the backup."""

    @pytest.fixture
    def imported(self, adopted: KeyFolder, capsys: pytest.CaptureFixture[str]) -> KeyFolder:
        import_dstack(DSTACK)
        assert export("--to", "bob") == 0
        capsys.readouterr()
        return adopted

    def test_a_new_database_gets_them(
        self, imported: KeyFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("KMS_DATA_DIR", str(imported.path / "new"))
        assert restore() == 0
        said = capsys.readouterr().out
        assert DSTACK.ca_fingerprint.hex() in said
        assert "roots of a dstack KMS: restored" in said
        assert kept_dstack() == DSTACK

    def test_those_that_the_database_has_stay(
        self, imported: KeyFolder, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert restore() == 0
        assert "roots of a dstack KMS: here already" in capsys.readouterr().out
        import_dstack(OTHERS)
        assert restore() == 0
        assert "others are here, and stay" in capsys.readouterr().out
        assert kept_dstack() == OTHERS

    def test_those_that_can_be_used_no_more_are_replaced(self, imported: KeyFolder) -> None:
        with closing(sqlite3.connect(imported.database)) as connection:
            connection.execute("update foreign_roots set sealed = x'00'")
            connection.commit()
        assert restore() == 0
        assert kept_dstack() == DSTACK


def test_no_secret_is_anywhere_but_in_the_files_of_roots(
    adopted: KeyFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import_dstack(DSTACK)
    assert export("--all") == 0
    assert restore("--check") == restore("--check", "--json") == 0
    adopted.root_key.unlink()
    assert restore() == 0
    assert restore("--identity", "x") == restore(key="passphrase") == restore(backup="bob.key") == 2
    text = Path("root.backup").read_text()
    write_file("changed", text.replace('"mode": "production"', '"mode": "development"').encode())
    assert restore(backup="changed") == 2
    monkeypatch.setenv("KMS_DATA_DIR", str(adopted.path / "new"))
    assert restore() == 0
    private = [json.loads(Path("bob.key").read_text())["private_key"].encode(), PASSPHRASE]
    Path("bob.key").unlink()
    Path("passphrase").unlink()
    said = capsys.readouterr()
    everything = said.out.encode() + said.err.encode() + adopted.written()
    assert b"keys-restore" in everything
    for secret in (*SECRETS.values(), DSTACK.ca, DSTACK.k256):
        for form in forms(secret):
            assert form not in everything
    for form in (*private, b"CANARY"):
        assert form not in everything
