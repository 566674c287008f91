"""The files of recovery keys: who may write the list, and what a private one is."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kms.errors import ConfigurationError
from kms.keys import passphrase_document
from kms.keys.recovery_key import RecoveryKey, RecoveryRecipient
from kms.recovery_keys import read_recipients, read_recovery_key, recipient_line, write_recovery_key

ALICE, BOB = RecoveryKey(b"\x01" * 96), RecoveryKey(b"\x02" * 96)
ALICE_LINE = recipient_line(RecoveryRecipient("alice", ALICE.public_key))
BOB_LINE = recipient_line(RecoveryRecipient("bob", BOB.public_key))
PASSPHRASE = b"correct horse battery"
FILE = Path("alice.key")


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passphrase_document, "_MEMORY", 64)


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    return written(tmp_path / "recovery-keys.toml", f"# two\n{ALICE_LINE}  # SHA-256 …\n{BOB_LINE}\n")


def written(path: Path, text: str, mode: int = 0o644) -> Path:
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return path


def refusal(path: Path | None) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as refused:
        read_recipients(path)
    return refused.value


class TestTheList:
    def test_it_names_who_may_get_backups(self, listed: Path) -> None:
        recipients = read_recipients(listed)
        assert {name: each.public_key for name, each in recipients.items()} == {
            "alice": ALICE.public_key,
            "bob": BOB.public_key,
        }

    def test_without_one_nobody_may(self) -> None:
        error = refusal(None)
        assert "nobody may get a backup" in error.detail
        assert "kms keys recovery-key" in error.remedy

    @pytest.mark.parametrize("mode", [0o666, 0o664, 0o646])
    def test_nobody_else_can_add_themselves(self, listed: Path, mode: int) -> None:
        listed.chmod(mode)
        assert "others can use it" in refusal(listed).detail

    def test_another_users_list_is_not_ours(self, listed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("os.geteuid", lambda: listed.stat().st_uid + 1)
        if listed.stat().st_uid == 0:  # root may own it
            read_recipients(listed)
        else:
            assert "belongs to another user" in refusal(listed).detail

    def test_a_link_is_not_followed(self, listed: Path, tmp_path: Path) -> None:
        link = tmp_path / "link.toml"
        link.symlink_to(listed)
        assert "not a link" in refusal(link).remedy

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("", "must name 1 to 64"),
            ("alice", "not TOML"),
            (f"{ALICE_LINE}\n{ALICE_LINE}\n", "not TOML"),
            (f"{ALICE_LINE}\n{ALICE_LINE.replace('alice', 'bob')}\n", "one key under two names"),
            (ALICE_LINE.replace("mlkem768x25519:", "ed25519:"), "`alice`: not"),
            (ALICE_LINE.replace("mlkem768x25519:", ""), "`alice`: not"),
            (f'{ALICE_LINE[:-3]}"', "`alice`: "),
            ("alice = 1", "`alice`: not"),
            ('[alice]\nkey = "x"', "`alice`: not"),
            (f'"a b"{ALICE_LINE[5:]}', "`a b`: a recipient's name"),
            ("\n".join(ALICE_LINE.replace("alice", f"a{each}") for each in range(65)), "must name 1 to 64"),
        ],
    )
    def test_what_makes_no_sense_is_said(self, tmp_path: Path, text: str, why: str) -> None:
        assert why in refusal(written(tmp_path / "list.toml", text)).detail

    def test_bytes_that_are_no_text_and_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        assert "cannot be read" in refusal(tmp_path / "none").detail
        (tmp_path / "list.toml").write_bytes(b"\xff\xfe")
        assert "not TOML" in refusal(tmp_path / "list.toml").detail


class TestAPrivateKey:
    @pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
    def test_it_is_read_as_it_was_written(self, passphrase: bytes | None) -> None:
        text = write_recovery_key(ALICE, passphrase)
        read = read_recovery_key(FILE, text, None if passphrase is None else lambda: passphrase)
        assert read.private_bytes() == ALICE.private_bytes()

    def test_under_a_passphrase_nothing_of_it_can_be_read(self) -> None:
        text = write_recovery_key(ALICE, PASSPHRASE)
        assert json.loads(text)["format"] == "attested-kms/recovery-key-encrypted"
        assert b"private_key" not in text

    def test_a_root_keys_document_is_none(self) -> None:
        plain = write_recovery_key(ALICE, None)
        text = passphrase_document.encrypt(
            plain, PASSPHRASE, "attested-kms/root-key-encrypted", random=os.urandom
        )
        assert refused(text, PASSPHRASE).startswith("alice.key is no recovery key")

    def test_a_short_passphrase_protects_nothing(self) -> None:
        with pytest.raises(ConfigurationError, match="fewer than 12"):
            write_recovery_key(ALICE, b"x" * 11)

    def test_a_passphrase_that_is_missing_or_another_is_said(self) -> None:
        text = write_recovery_key(ALICE, PASSPHRASE)
        assert "is encrypted" in refused(text)
        assert "does not open it" in refused(text, b"another passphrase")

    @pytest.mark.parametrize(
        "edit",
        [
            lambda d: d.update(format="attested-kms/root-key"),
            lambda d: d.update(version=2),
            lambda d: d.update(suite="x25519-sealedbox"),
            lambda d: d.update(public_key=d["public_key"][:-8]),
            lambda d: d.update(public_key="B" + d["public_key"][1:]),
            lambda d: d.update(private_key=d["private_key"][:-4]),
            lambda d: d.update(private_key="B" + d["private_key"][1:]),
            lambda d: d.pop("private_key"),
            lambda d: d.update(canary=1),
        ],
    )
    def test_what_was_damaged_is_refused_and_not_repeated(
        self, edit: Callable[[dict[str, Any]], Any]
    ) -> None:
        body = json.loads(write_recovery_key(ALICE, None))
        edit(body)
        said = refused(json.dumps(body).encode())
        assert said.startswith("alice.key is no recovery key")
        assert "canary" not in said
        assert body.get("private_key", "none")[:8] not in said

    @pytest.mark.parametrize("text", [b"", b"canary", b"[]", b"\xff", b"{}"])
    def test_other_files_are_none(self, text: bytes) -> None:
        assert "canary" not in refused(text)


def refused(text: bytes, passphrase: bytes | None = None) -> str:
    with pytest.raises(ConfigurationError) as refusal:
        read_recovery_key(FILE, text, None if passphrase is None else lambda: passphrase)
    return refusal.value.detail
