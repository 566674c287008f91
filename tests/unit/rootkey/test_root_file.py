"""The root key file: private, never overwritten, whole after any failure, and under a passphrase or not."""

import base64
import json
import os
import socket
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import pytest

from kms.errors import ConfigurationError
from kms.keys import passphrase_document
from kms.keys.root_messages import MAX_EPOCHS, Mode
from kms.rootkey.file import reseal
from kms.rootkey.provider import RootKeyMissing
from kms.rootkey.root_document import RootDocument, write
from kms.rootkey.root_file import RootFile
from tests.unit.faults import Crash, fault_at, recorded

NOW = datetime(2026, 1, 2, 3, 4, 5, 999_999, tzinfo=UTC)
SECRET = bytes(range(1, 33))
SECOND = bytes(range(33, 65))
DOCUMENT = RootDocument(Mode.PRODUCTION, NOW, {1: SECRET})
PASSPHRASE, ANOTHER = b"correct horse battery", b"staple correct horse"


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less memory than any file has, so that a derivation takes no time."""
    monkeypatch.setattr(passphrase_document, "_MEMORY", 64)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "root.key"
    RootFile(file, Mode.PRODUCTION).make(DOCUMENT)
    return file


def said(passphrase: bytes) -> Callable[[], bytes]:
    return lambda: passphrase


def secrets_of(path: Path, passphrase: bytes | None = None) -> dict[int, bytes]:
    giving = None if passphrase is None else said(passphrase)
    return RootFile(path, Mode.PRODUCTION, giving).load().secrets


def second(length: int) -> bytes:
    return SECOND[:length]


def add_second(path: Path, passphrase: bytes | None = None) -> RootDocument:
    giving = None if passphrase is None else said(passphrase)
    return RootFile(path, Mode.PRODUCTION, giving).add_epoch(2, second, lambda _: None)


def refused(
    path: Path, mode: Mode = Mode.PRODUCTION, passphrase: Callable[[], bytes] | None = None
) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        RootFile(path, mode, passphrase).load()
    text = caught.value.detail + caught.value.remedy
    assert SECRET.hex() not in text
    assert base64.b64encode(SECRET).decode()[:12] not in text
    assert PASSPHRASE.decode() not in text
    assert caught.value.remedy
    return caught.value


class TestMaking:
    def test_the_file_is_as_documented(self, path: Path) -> None:
        assert path.stat().st_mode & 0o7777 == 0o600
        document = json.loads(path.read_text())
        assert list(document) == ["format", "version", "mode", "created_at", "epochs", "checksum"]
        assert document["format"] == "attested-kms/root-key"
        assert document["version"] == 1
        assert document["mode"] == "production"
        assert document["created_at"] == "2026-01-02T03:04:05Z"
        assert document["epochs"] == [
            {"epoch": 1, "secret": base64.urlsafe_b64encode(SECRET).decode().rstrip("=")}
        ]
        assert len(bytes.fromhex(document["checksum"])) == 32

    def test_nothing_else_is_left_in_the_folder(self, path: Path) -> None:
        assert list(path.parent.iterdir()) == [path]

    def test_a_umask_cannot_open_the_file(self, tmp_path: Path) -> None:
        before = os.umask(0)
        try:
            RootFile(tmp_path / "new" / "root.key", Mode.PRODUCTION).make(DOCUMENT)
        finally:
            os.umask(before)
        assert (tmp_path / "new" / "root.key").stat().st_mode & 0o7777 == 0o600
        assert (tmp_path / "new").stat().st_mode & 0o7777 == 0o700

    def test_lesson_30_an_existing_file_is_never_replaced(self, path: Path) -> None:
        before = path.read_bytes()
        with pytest.raises(ConfigurationError, match="already there"):
            RootFile(path, Mode.PRODUCTION).make(RootDocument(Mode.PRODUCTION, NOW, {1: SECOND}))
        assert path.read_bytes() == before
        assert list(path.parent.iterdir()) == [path]

    def test_a_dangling_link_is_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "root.key").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ConfigurationError, match="already there"):
            RootFile(tmp_path / "root.key", Mode.PRODUCTION).make(DOCUMENT)
        assert not (tmp_path / "elsewhere").exists()

    def test_of_servers_that_start_at_once_one_makes_the_root(self, tmp_path: Path) -> None:
        outcomes: list[str] = []
        barrier = threading.Barrier(8)
        file = RootFile(tmp_path / "new" / "root.key", Mode.PRODUCTION)

        def start() -> None:
            barrier.wait()
            try:
                file.make(DOCUMENT)
                outcomes.append("made")
            except ConfigurationError:
                outcomes.append("refused")

        threads = [threading.Thread(target=start) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == ["made"] + ["refused"] * 7
        file.load()

    def test_a_full_disk_leaves_nothing(self, tmp_path: Path) -> None:
        with fault_at(2, dead=False), pytest.raises(ConfigurationError, match="No space left"):
            RootFile(tmp_path / "root.key", Mode.PRODUCTION).make(DOCUMENT)
        assert list(tmp_path.iterdir()) == []


class TestReading:
    def test_a_missing_file_is_said_to_be_missing(self, tmp_path: Path) -> None:
        with pytest.raises(RootKeyMissing, match="no root key file"):
            RootFile(tmp_path / "none" / "root.key", Mode.PRODUCTION).load()

    @pytest.mark.parametrize("made", Mode)
    def test_the_other_mode_is_refused_both_ways(self, tmp_path: Path, made: Mode) -> None:
        (other,) = set(Mode) - {made}
        RootFile(tmp_path / "root.key", made).make(RootDocument(made, NOW, {1: SECRET}))
        assert f"made for {made} mode" in refused(tmp_path / "root.key", other).detail

    @pytest.mark.parametrize("bits", [0o640, 0o604, 0o660, 0o610, 0o601, 0o644, 0o777])
    def test_lesson_31_a_file_that_others_can_use_is_refused(self, path: Path, bits: int) -> None:
        path.chmod(bits)
        error = refused(path)
        assert f"mode {bits:04o}" in error.detail
        assert "chmod 0600" in error.remedy

    def test_a_read_only_file_is_fine(self, path: Path) -> None:
        path.chmod(0o400)
        assert secrets_of(path) == {1: SECRET}

    def test_a_file_of_another_user_is_refused(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
        assert "another user" in refused(path).detail

    def test_links_folders_fifos_and_sockets_are_refused(self, path: Path, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(path)
        (tmp_path / "folder").mkdir(mode=0o700)
        os.mkfifo(tmp_path / "fifo", 0o600)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(tmp_path / "s"))
            for name in ("link", "folder", "fifo", "s"):
                assert not isinstance(refused(tmp_path / name), RootKeyMissing)

    def test_a_huge_file_is_refused(self, path: Path) -> None:
        path.write_bytes(path.read_bytes() + b" " * (1 << 20))
        assert "longer" in refused(path).detail

    @pytest.mark.parametrize("keep", [0, 1, 50, 200, -3])
    @pytest.mark.parametrize("passphrase", [None, PASSPHRASE], ids=["bare", "encrypted"])
    def test_a_short_file_is_refused(self, path: Path, keep: int, passphrase: bytes | None) -> None:
        giving = None if passphrase is None else said(passphrase)
        reseal(path, Mode.PRODUCTION, None, giving)
        path.write_bytes(path.read_bytes()[:keep])
        error = refused(path, passphrase=giving)
        assert "damaged" in error.detail
        assert "backup" in error.remedy

    def test_what_was_read_is_overwritten(self, path: Path) -> None:
        file = RootFile(path, Mode.PRODUCTION)
        content = file.content()
        length = len(content)
        file.parse(content)
        assert content == bytearray(length)
        content = bytearray(b"damaged")
        with pytest.raises(ConfigurationError):
            file.parse(content)
        assert content == bytearray(7)

    def test_the_decrypted_text_is_overwritten(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        reseal(path, Mode.PRODUCTION, None, said(PASSPHRASE))
        decrypted = []
        decrypt = passphrase_document.decrypt

        def kept(content: bytes, passphrase: bytes, form: str) -> bytearray:
            decrypted.append(decrypt(content, passphrase, form))
            assert b"epochs" in decrypted[0]
            return decrypted[0]

        monkeypatch.setattr(passphrase_document, "decrypt", kept)
        secrets_of(path, PASSPHRASE)
        assert not any(decrypted[0])


class TestAddingAnEpoch:
    @pytest.mark.parametrize("passphrase", [None, PASSPHRASE], ids=["bare", "encrypted"])
    def test_the_next_epoch_is_added_and_all_else_is_kept(self, path: Path, passphrase: bytes | None) -> None:
        reseal(path, Mode.PRODUCTION, None, None if passphrase is None else said(passphrase))
        added = add_second(path, passphrase)
        assert added.secrets == secrets_of(path, passphrase) == {1: SECRET, 2: SECOND}
        assert added.created_at == NOW.replace(microsecond=0)
        assert path.stat().st_mode & 0o7777 == 0o600
        assert (b"epochs" in path.read_bytes()) == (passphrase is None)

    def test_an_epoch_that_is_there_is_never_made_again(self, path: Path) -> None:
        before = path.read_bytes()
        found = RootFile(path, Mode.PRODUCTION).add_epoch(1, second, lambda _: None)
        assert found.secrets == {1: SECRET}
        assert path.read_bytes() == before

    def test_an_epoch_that_another_process_put_there_is_on_disk_before_it_is_used(self, path: Path) -> None:
        # That process may have died between the rename and the sync of the folder.
        add_second(path)
        with recorded() as steps:
            add_second(path)
        assert steps[-1] == "fsync"
        assert "replace" not in steps

    @pytest.mark.parametrize("epoch", [-1, 0, 3, 4, 1 << 60])
    def test_only_the_next_epoch_can_be_made(self, path: Path, epoch: int) -> None:
        before = path.read_bytes()
        with pytest.raises(ConfigurationError, match="it has 1 to 1"):
            RootFile(path, Mode.PRODUCTION).add_epoch(epoch, second, lambda _: None)
        assert path.read_bytes() == before

    def test_no_more_epochs_are_made_than_can_be_read(self, tmp_path: Path) -> None:
        file = RootFile(tmp_path / "root.key", Mode.PRODUCTION, said(PASSPHRASE))
        most = {epoch: epoch.to_bytes(32, "big") for epoch in range(1, MAX_EPOCHS + 1)}
        file.make(RootDocument(Mode.PRODUCTION, NOW, most))
        assert file.load().secrets == most
        with pytest.raises(ConfigurationError, match=f"up to {MAX_EPOCHS}|it has 1 to {MAX_EPOCHS}"):
            file.add_epoch(MAX_EPOCHS + 1, second, lambda _: None)
        assert file.load().secrets == most

    def test_bad_randomness_changes_nothing(self, path: Path) -> None:
        for random in (bytes, lambda n: b"\1" * (n - 1)):
            with pytest.raises(ValueError, match="32 bytes"):
                RootFile(path, Mode.PRODUCTION).add_epoch(2, random, lambda _: None)
        assert secrets_of(path) == {1: SECRET}

    def test_what_the_caller_objects_to_is_not_added_to(self, path: Path) -> None:
        def object_to(document: RootDocument) -> None:
            assert document.secrets == {1: SECRET}
            raise LookupError

        with pytest.raises(LookupError):
            RootFile(path, Mode.PRODUCTION).add_epoch(2, second, object_to)
        assert secrets_of(path) == {1: SECRET}

    @pytest.mark.parametrize("dead", [False, True], ids=["full disk", "crash"])
    def test_whatever_fails_the_file_is_whole_and_the_next_try_succeeds(
        self, path: Path, *, dead: bool
    ) -> None:
        old = path.read_bytes()
        seen = set()
        for step in count():
            path.write_bytes(old)
            with fault_at(step, dead=dead) as faults:
                try:
                    add_second(path)
                except (ConfigurationError, Crash):
                    assert faults.reached
            secrets = secrets_of(path)
            assert secrets in ({1: SECRET}, {1: SECRET, 2: SECOND})
            seen.add(len(secrets))
            assert add_second(path).secrets == {1: SECRET, 2: SECOND}
            if not faults.reached:
                break
        assert seen == {1, 2}
        assert {each.name for each in path.parent.iterdir()} == {"root.key", "root.key.lock"}


class TestPassphrase:
    def test_a_new_file_is_encrypted_from_the_first_byte_on(self, tmp_path: Path) -> None:
        path = tmp_path / "root.key"
        RootFile(path, Mode.PRODUCTION, said(PASSPHRASE)).make(DOCUMENT)
        assert json.loads(path.read_bytes())["format"] == "attested-kms/root-key-encrypted"
        assert secrets_of(path, PASSPHRASE) == {1: SECRET}

    def test_a_short_passphrase_makes_nothing(self, tmp_path: Path, path: Path) -> None:
        with pytest.raises(ConfigurationError, match="fewer than 12 bytes"):
            RootFile(tmp_path / "a" / "root.key", Mode.PRODUCTION, said(b"x" * 11)).make(DOCUMENT)
        assert not (tmp_path / "a").exists()
        with pytest.raises(ConfigurationError, match="fewer than 12 bytes"):
            reseal(path, Mode.PRODUCTION, None, said(b"x" * 11))
        assert secrets_of(path) == {1: SECRET}

    def test_a_file_goes_from_bare_to_one_passphrase_to_another_and_back(self, path: Path) -> None:
        add_second(path)
        bare = path.read_bytes()
        for old, new in ((None, PASSPHRASE), (PASSPHRASE, ANOTHER), (ANOTHER, None)):
            reseal(
                path,
                Mode.PRODUCTION,
                None if old is None else said(old),
                None if new is None else said(new),
            )
            assert secrets_of(path, new) == {1: SECRET, 2: SECOND}
            assert (b"epochs" in path.read_bytes()) == (new is None)
            assert path.stat().st_mode & 0o7777 == 0o600
        assert path.read_bytes() == bare

    def test_what_is_missing_or_too_much_is_said_with_its_remedy(self, path: Path) -> None:
        error = refused(path, passphrase=said(PASSPHRASE))
        assert "not encrypted" in error.detail
        assert "kms keys passphrase" in error.remedy
        reseal(path, Mode.PRODUCTION, None, said(PASSPHRASE))
        error = refused(path)
        assert "is encrypted" in error.detail
        assert "KMS_ROOT_KEY_PASSPHRASE_FILE" in error.remedy
        error = refused(path, passphrase=said(ANOTHER))
        assert "the passphrase does not open it, or the file is damaged" in error.detail

    @pytest.mark.parametrize("old", [None, ANOTHER])
    def test_without_the_old_passphrase_nothing_is_changed(self, path: Path, old: bytes | None) -> None:
        reseal(path, Mode.PRODUCTION, None, said(PASSPHRASE))
        before = path.read_bytes()
        with pytest.raises(ConfigurationError, match="encrypted"):
            reseal(path, Mode.PRODUCTION, None if old is None else said(old), None)
        with pytest.raises(ConfigurationError, match="made for production mode"):
            reseal(path, Mode.DEVELOPMENT, said(PASSPHRASE), None)
        assert path.read_bytes() == before

    def test_a_missing_file_has_no_passphrase(self, tmp_path: Path) -> None:
        with pytest.raises(RootKeyMissing):
            reseal(tmp_path / "root.key", Mode.PRODUCTION, None, said(PASSPHRASE))

    def test_the_mode_is_under_the_passphrase_too(self, tmp_path: Path) -> None:
        path = tmp_path / "root.key"
        RootFile(path, Mode.DEVELOPMENT, said(PASSPHRASE)).make(
            RootDocument(Mode.DEVELOPMENT, NOW, {1: SECRET})
        )
        assert "made for development mode" in refused(path, passphrase=said(PASSPHRASE)).detail

    def test_encrypting_leaves_nothing_bare_that_a_crash_left_before(self, path: Path) -> None:
        leftover = path.with_name(f".root.key.{'0' * 16}")
        leftover.write_bytes(write(DOCUMENT))
        reseal(path, Mode.PRODUCTION, None, said(PASSPHRASE))
        assert {each.name for each in path.parent.iterdir()} == {"root.key", "root.key.lock"}

    @pytest.mark.parametrize("dead", [False, True], ids=["full disk", "crash"])
    def test_whatever_fails_one_of_the_passphrases_opens_it(self, path: Path, *, dead: bool) -> None:
        reseal(path, Mode.PRODUCTION, None, said(PASSPHRASE))
        old = path.read_bytes()
        for step in count():
            path.write_bytes(old)
            with fault_at(step, dead=dead) as faults:
                try:
                    reseal(path, Mode.PRODUCTION, said(PASSPHRASE), said(ANOTHER))
                except (ConfigurationError, Crash):
                    assert faults.reached
            assert secrets_of(path, PASSPHRASE if path.read_bytes() == old else ANOTHER) == {1: SECRET}
            if not faults.reached:
                break

    def test_the_repr_holds_no_passphrase(self, path: Path) -> None:
        assert "passphrase" not in repr(RootFile(path, Mode.PRODUCTION, said(PASSPHRASE)))
