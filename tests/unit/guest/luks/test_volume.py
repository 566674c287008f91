"""Volumes opened, made and moved to newer keys by the real `cryptsetup`, but for the mapping itself."""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from kms.errors import ConfigurationError
from kms.guest.errors import AnswerRejected, Refused
from kms.guest.luks import DiskFailed, DiskRefused, read_header
from kms.guest.luks.cryptsetup import Cryptsetup
from kms.guest.luks.memory_file import MemoryFile
from kms.guest.luks.volume import Rekeyed, Unlocked, rekey_volume, unlock_volume
from kms.keys.envelope import Payload
from kms.keys.names import KeyRequest
from tests.unit.guest.luks.samples import (
    CHEAP,
    DISK,
    HEADER,
    MIB,
    Kms,
    Trial,
    add_token,
    blank,
    edited,
    key_of,
    make,
    needs_cryptsetup,
    opens,
    put,
    run,
    volume,
)

pytestmark = needs_cryptsetup


def unlock(
    disk: Path,
    kms: Kms,
    cryptsetup: Cryptsetup | None = None,
    *,
    format_blank: bool = False,
    rotate: bool = True,
    key: KeyRequest = DISK,
) -> Unlocked:
    return unlock_volume(
        volume(disk, format_blank=format_blank, rotate=rotate, key=key),
        fetch=kms.fetch,
        newest_epoch=kms.newest_epoch,
        cryptsetup=cryptsetup or Trial(),
    )


def rekey(disk: Path, kms: Kms, key: KeyRequest = DISK) -> Rekeyed:
    return rekey_volume(disk, key, fetch=kms.fetch, cryptsetup=Trial())


class TestOpening:
    def test_with_the_key_of_the_epoch_on_the_header(self, disk: Path, made: bytes) -> None:
        kms, trial = Kms(), Trial()
        done = unlock(disk, kms, trial)
        assert (done.name, done.epoch, done.formatted, done.rekeyed_from, done.warning) == (
            "data",
            1,
            False,
            None,
            None,
        )
        assert kms.asked == [[1]]
        assert list(trial.opened) == ["data"]
        assert disk.read_bytes().startswith(made)

    def test_an_open_one_is_left_as_it_is(self, disk: Path) -> None:
        kms, trial = Kms(), Trial()
        unlock(disk, kms, trial)
        assert unlock(disk, kms, trial).already_open
        assert kms.asked == [[1]]

    def test_a_name_of_another_device_s(self, disk: Path, tmp_path: Path) -> None:
        trial = Trial()
        unlock(make(tmp_path / "other"), Kms(), trial)
        with pytest.raises(DiskFailed, match="something else") as caught:
            unlock(disk, Kms(), trial)
        assert caught.value.reason == "name-taken"

    def test_a_refused_header_asks_nobody(self, disk: Path, made: bytes) -> None:
        kms, trial = Kms(), Trial()
        null = edited(made, lambda d: d["segments"]["0"].update(encryption="cipher_null-ecb"))
        with pytest.raises(DiskRefused):
            unlock(put(disk, null), kms, trial)
        assert (kms.asked, trial.opened) == ([], {})

    def test_a_mapping_with_another_cipher_is_closed_again(self, disk: Path) -> None:
        trial = Trial(cipher="cipher_null-ecb")
        with pytest.raises(DiskRefused) as caught:
            unlock(disk, Kms(), trial)
        assert (caught.value.reason, trial.opened) == ("mapping-differs", {})

    def test_the_host_changes_the_header_between_reading_and_opening(self, disk: Path, made: bytes) -> None:
        """The key comes after the header was judged: the host has all that time to put another one there."""
        kms, trial = Kms(), Trial()
        null = edited(made, lambda d: d["segments"]["0"].update(encryption="cipher_null-ecb"))

        def fetch(keys: Sequence[KeyRequest]) -> Payload:
            put(disk, null)
            return kms.fetch(keys)

        unlock_volume(volume(disk), fetch=fetch, newest_epoch=lambda: None, cryptsetup=trial)
        assert "aes-xts-plain64" in trial.opened["data"]

    def test_a_token_of_the_host_s_does_not_choose_the_key(
        self, disk: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without --token-type, cryptsetup takes what a luks2-keyring token names before it takes our key."""
        if shutil.which("keyctl") is None:
            pytest.skip("takes keyctl")
        added = subprocess.run(
            ["keyctl", "padd", "user", "attested-kms-test", "@u"],
            input=key_of(1),
            capture_output=True,
            check=False,
        )
        if added.returncode != 0:
            pytest.skip("takes a kernel with keyrings")
        try:
            run("token", "add", "--key-description", "attested-kms-test", str(disk))
            assert opens(disk, 2), "cryptsetup does not look into the keyring: this test shows nothing"
            wrong = Kms()
            monkeypatch.setattr("tests.unit.guest.luks.samples.key_of", lambda _: bytes(32))
            with pytest.raises(DiskRefused) as caught:
                unlock(disk, wrong)
            assert caught.value.reason == "key-does-not-open"
        finally:
            subprocess.run(["keyctl", "unlink", added.stdout.strip(), "@u"], check=True, capture_output=True)

    def test_another_key_does_not_open(
        self, disk: Path, monkeypatch: pytest.MonkeyPatch, made: bytes
    ) -> None:
        monkeypatch.setattr("tests.unit.guest.luks.samples.key_of", lambda _: bytes(32))
        trial = Trial()
        with pytest.raises(DiskRefused) as caught:
            unlock(disk, Kms(), trial)
        assert (caught.value.reason, trial.opened) == ("key-does-not-open", {})
        assert disk.read_bytes().startswith(made)

    def test_a_volume_made_by_hand_gets_its_epoch_written_down(self, tmp_path: Path) -> None:
        disk = make(tmp_path / "disk", epoch=None)
        kms = Kms()
        assert unlock(disk, kms).epoch == 1
        assert read_header(disk).slots == {0: 1}
        assert kms.asked == [[None]]

    def test_no_rotate_writes_nothing(self, tmp_path: Path) -> None:
        disk = make(tmp_path / "disk", epoch=None)
        before = disk.read_bytes()
        unlock(disk, Kms(), rotate=False)
        assert disk.read_bytes() == before

    def test_a_torn_copy_is_mended(self, disk: Path, made: bytes) -> None:
        area = bytearray(made)
        area[HEADER + 4100] ^= 1
        unlock(put(disk, bytes(area)), Kms())
        header = read_header(disk)
        assert header.raw == header.image

    def test_what_goes_wrong_after_opening_is_a_warning(self, disk: Path) -> None:
        kms = Kms(current=2)

        def fetch(keys: Sequence[KeyRequest]) -> Payload:
            if len(keys) > 1:
                raise AnswerRejected("an impostor", reason="identity-mismatch")
            return kms.fetch(keys)

        trial = Trial()
        done = unlock_volume(volume(disk), fetch=fetch, newest_epoch=lambda: 2, cryptsetup=trial)
        assert (done.epoch, done.warning, list(trial.opened)) == (1, "an impostor", ["data"])
        assert read_header(disk).epochs == (1,)


class TestDstack:
    """Keys of dstack's have no epochs, and its guests give cryptsetup hex digits."""

    KEY = KeyRequest.parse("dstack:disk", "instance")

    def test_opens(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        secret = key_of(1)
        monkeypatch.setattr("tests.unit.guest.luks.samples.key_of", lambda _: secret.hex().encode())
        disk = make(tmp_path / "disk", epoch=None)
        before = disk.read_bytes()
        monkeypatch.setattr("tests.unit.guest.luks.samples.key_of", lambda _: secret)
        done = unlock(disk, Kms(current=2), key=self.KEY)
        assert (done.epoch, done.rekeyed_from, done.warning) == (None, None, None)
        assert disk.read_bytes() == before

    def test_is_no_key_for_a_new_volume(self, tmp_path: Path) -> None:
        disk = blank(tmp_path / "disk")
        with pytest.raises(ConfigurationError):
            unlock(disk, Kms(), format_blank=True, key=self.KEY)
        assert not any(disk.read_bytes())

    def test_the_host_names_an_epoch_for_it(self, disk: Path, made: bytes) -> None:
        put(disk, edited(made, lambda d: d["tokens"]["0"].update(key="dstack:disk@instance")))
        for action in (unlock, rekey):
            with pytest.raises(DiskRefused, match="which has none") as caught:
                action(disk, Kms(), key=self.KEY)
            assert caught.value.reason == "token-malformed"


class Slow(Trial):
    """Makes the mapping, and is killed before it says so. `maps` is the device, if not ours."""

    def __init__(self, maps: Path | None = None, *, reason: str = "cryptsetup-timeout") -> None:
        super().__init__()
        self._maps = maps
        self._reason = reason

    @override
    def open(self, header: MemoryFile, device: Path, name: str, key: bytes) -> None:
        super().open(header, self._maps or device, name, key)
        raise DiskFailed("cryptsetup open took longer than 120 s", reason=self._reason)


class TestOpeningThatFails:
    """The next start must not take what a failure left for a volume that was opened and judged."""

    def test_what_it_had_made_is_closed(self, disk: Path) -> None:
        trial = Slow()
        with pytest.raises(DiskFailed, match="took longer"):
            unlock(disk, Kms(), trial)
        assert trial.opened == {}

    def test_what_another_device_has_is_not(self, disk: Path, tmp_path: Path) -> None:
        trial = Slow(blank(tmp_path / "other"))
        with pytest.raises(DiskFailed, match="took longer"):
            unlock(disk, Kms(), trial)
        assert list(trial.opened) == ["data"]

    def test_what_somebody_else_made_at_that_moment_is_not(self, disk: Path) -> None:
        trial = Slow(reason="disk-busy")
        with pytest.raises(DiskFailed):
            unlock(disk, Kms(), trial)
        assert list(trial.opened) == ["data"]

    def test_nor_what_was_made_while_the_kms_was_asked(self, disk: Path) -> None:
        kms, trial = Kms(), Trial()
        theirs = f"0 100 crypt aes-xts-plain64 :64:logon:x 0 {disk} 4096"

        def fetch(keys: Sequence[KeyRequest]) -> Payload:
            trial.opened["data"] = theirs
            return kms.fetch(keys)

        with pytest.raises(DiskFailed) as caught:
            unlock_volume(volume(disk), fetch=fetch, newest_epoch=lambda: None, cryptsetup=trial)
        assert (caught.value.reason, trial.opened) == ("name-taken", {"data": theirs})

    def test_cryptsetup_s_word_for_a_name_that_is_taken(self, disk: Path, tmp_path: Path) -> None:
        real = shutil.which("cryptsetup")
        body = f'[ "$1" = --version ] && exec {real} --version; echo Device data already exists. >&2; exit 5'
        nothing = tmp_path / "dmsetup"
        nothing.write_text("#!/bin/sh\necho No devices found\n")
        nothing.chmod(0o755)
        with pytest.raises(DiskFailed, match="already exists") as caught:
            unlock(disk, Kms(), Cryptsetup(_script(tmp_path, body), dmsetup=str(nothing)))
        assert caught.value.reason == "disk-busy"


class TestPrograms:
    def test_none(self, disk: Path) -> None:
        with pytest.raises(DiskFailed) as caught:
            unlock(disk, Kms(), Cryptsetup("no-such-cryptsetup"))
        assert caught.value.reason == "cryptsetup-missing"

    @pytest.mark.parametrize("said", ["cryptsetup 2.4.2", "cryptsetup 1.9.9", "what?"])
    def test_an_old_one(self, disk: Path, tmp_path: Path, said: str) -> None:
        with pytest.raises(DiskFailed) as caught:
            unlock(disk, Kms(), Cryptsetup(_script(tmp_path, f"echo {said}")))
        assert caught.value.reason == "cryptsetup-too-old"

    def test_one_that_hangs(self, disk: Path, tmp_path: Path) -> None:
        with pytest.raises(DiskFailed) as caught:
            unlock(disk, Kms(), Cryptsetup(_script(tmp_path, "exec sleep 60"), timeout=0.2))
        assert caught.value.reason == "cryptsetup-timeout"

    def test_its_own_words_short_and_plain(self, disk: Path, tmp_path: Path) -> None:
        script = _script(tmp_path, r"printf '\033[2Jno\nsecond line' >&2; exit 4")
        with pytest.raises(DiskFailed) as caught:
            unlock(disk, Kms(), Cryptsetup(script))
        assert caught.value.detail.endswith("failed with status 4: ?[2Jno")


class TestFormatting:
    def test_a_blank_disk(self, tmp_path: Path) -> None:
        disk, kms = blank(tmp_path / "disk"), Kms(current=3)
        done = unlock(disk, kms, format_blank=True)
        assert (done.epoch, done.formatted) == (3, True)
        assert kms.asked == [[None]]
        assert opens(disk, 3)
        again = unlock(disk, kms, format_blank=True)
        assert (again.epoch, again.formatted) == (3, False)
        # Its key is 256 random bits: no time is spent on deriving.
        assert b"Iterations: 1000" in run("luksDump", str(disk))

    def test_only_where_it_was_allowed(self, tmp_path: Path) -> None:
        disk, kms = blank(tmp_path / "disk"), Kms()
        with pytest.raises(DiskRefused) as caught:
            unlock(disk, kms)
        assert (caught.value.reason, kms.asked) == ("not-luks", [])
        assert not any(disk.read_bytes())

    @pytest.mark.parametrize("at", [0, 1080, 65600, MIB - 1, 19 * MIB, 20 * MIB - 1])
    def test_never_over_anything(self, tmp_path: Path, at: int) -> None:
        disk, kms = blank(tmp_path / "disk"), Kms()
        with disk.open("r+b") as file:
            file.seek(at)
            file.write(b"\1")
        before = disk.read_bytes()
        with pytest.raises(DiskRefused) as caught:
            unlock(disk, kms, format_blank=True)
        assert (caught.value.reason, kms.asked) == ("not-blank", [])
        assert disk.read_bytes() == before

    def test_never_over_a_volume_that_is_refused(self, disk: Path, made: bytes) -> None:
        put(disk, edited(made, lambda d: d["segments"]["0"].update(encryption="cipher_null-ecb")))
        before = disk.read_bytes()
        with pytest.raises(DiskRefused):
            unlock(disk, Kms(), format_blank=True)
        assert disk.read_bytes() == before

    def test_never_over_what_came_while_the_kms_was_asked(self, tmp_path: Path) -> None:
        disk, kms = blank(tmp_path / "disk"), Kms()

        def fetch(keys: Sequence[KeyRequest]) -> Payload:
            put(disk, b"a file system")
            return kms.fetch(keys)

        with pytest.raises(DiskRefused) as caught:
            unlock_volume(
                volume(disk, format_blank=True), fetch=fetch, newest_epoch=lambda: 1, cryptsetup=Trial()
            )
        assert caught.value.reason == "not-blank"
        assert disk.read_bytes().rstrip(b"\0") == b"a file system"

    def test_a_disk_that_is_too_small(self, tmp_path: Path) -> None:
        with pytest.raises(DiskRefused) as caught:
            unlock(blank(tmp_path / "disk", 16 * MIB), Kms(), format_blank=True)
        assert caught.value.reason == "device-too-small"


class TestRotation:
    def test_moves_to_the_new_key_in_one_answer(self, disk: Path) -> None:
        kms = Kms(current=2)
        done = unlock(disk, kms)
        assert (done.epoch, done.rekeyed_from, done.warning) == (2, 1, None)
        assert kms.asked == [[1], [1, None]]
        assert (opens(disk, 1), opens(disk, 2)) == (False, True)
        header = read_header(disk)
        assert (header.epochs, len(header.key_slots), len(header.tokens)) == ((2,), 1, 1)
        kms.over.add(1)
        assert unlock(disk, kms).epoch == 2

    def test_an_app_that_is_pinned_to_its_epoch_stays(self, disk: Path, made: bytes) -> None:
        """`newest_epoch` is only a hint: the KMS may give the app no newer key."""
        kms = Kms(current=1)
        done = unlock_volume(volume(disk), fetch=kms.fetch, newest_epoch=lambda: 7, cryptsetup=Trial())
        assert (done.epoch, done.rekeyed_from, done.warning) == (1, None, None)
        assert disk.read_bytes().startswith(made)

    @pytest.mark.parametrize("current", [1, 2])
    def test_an_interrupted_one_is_finished(self, disk: Path, tmp_path: Path, current: int) -> None:
        _add_epoch(disk, tmp_path, 2)
        kms = Kms(current=2, over={1} if current == 2 else set())
        assert unlock(disk, kms).epoch == 2
        assert kms.asked[0] == [2]
        assert read_header(disk).slots == {1: 2}
        assert not opens(disk, 1)

    def test_an_epoch_that_the_host_made_up(self, disk: Path, tmp_path: Path) -> None:
        """Where the KMS has no key of it, the older one is tried, and the volume moves on all the same."""
        _add_epoch(disk, tmp_path, 9, token=False)
        add_token(disk, slot=1, epoch=5)
        kms = Kms(current=2, over={5})
        done = unlock(disk, kms)
        assert kms.asked[:2] == [[5], [1]]
        assert done.epoch == 2
        assert opens(disk, 2)

    def test_no_more_than_three_epochs_are_tried(self, disk: Path, tmp_path: Path) -> None:
        for epoch in (2, 3, 4):
            _add_epoch(disk, tmp_path, epoch)
        kms = Kms(current=5, over={1, 2, 3, 4})
        with pytest.raises(Refused):
            unlock(disk, kms)
        assert kms.asked == [[4], [3], [2]]
        assert unlock(disk, Kms(current=5)).rekeyed_from == 4
        assert read_header(disk).epochs == (5,)

    def test_what_an_interrupted_move_left_is_removed_before_the_next_one(
        self, disk: Path, tmp_path: Path
    ) -> None:
        _add_epoch(disk, tmp_path, 2)

        class Full(Trial):
            @override
            def add_key(self, header: MemoryFile, key: bytes, new: bytes) -> None:
                raise DiskFailed("no room", reason="cryptsetup-failed")

        assert unlock(disk, Kms(current=3), Full()).warning == "no room"
        assert read_header(disk).epochs == (2,)

    def test_tokens_of_many_epochs_do_not_stop_a_move(self, disk: Path, made: bytes) -> None:
        def more(document: dict[str, Any]) -> None:
            slotless = {"type": "attested-kms", "keyslots": [], "key": "disk@app"}
            document["tokens"] |= {str(n): slotless | {"epoch": n + 1} for n in range(1, 12)}

        done = unlock(put(disk, edited(made, more)), Kms(current=20))
        assert (done.epoch, done.rekeyed_from, done.warning) == (20, 1, None)
        assert [token.epoch for token in read_header(disk).tokens] == [20]

    def test_slots_of_others_are_never_removed(self, disk: Path, tmp_path: Path) -> None:
        _add_epoch(disk, tmp_path, 9, token=False)  # a recovery key
        assert unlock(disk, Kms(current=2)).rekeyed_from == 1
        assert (opens(disk, 1), opens(disk, 2), opens(disk, 9)) == (False, True, True)

    def test_all_slots_taken_keeps_the_old_key(self, tmp_path: Path) -> None:
        disk = make(tmp_path / "disk", "--luks2-keyslots-size", "512k")  # room for one more
        _add_epoch(disk, tmp_path, 9, token=False)
        done = unlock(disk, Kms(current=2))
        assert done.epoch == 1
        assert done.warning is not None
        assert "luksAddKey failed" in done.warning
        assert opens(disk, 1)

    def test_an_unreachable_server_is_no_rotation(self, disk: Path) -> None:
        kms = Kms(current=2)
        done = unlock_volume(volume(disk), fetch=kms.fetch, newest_epoch=lambda: None, cryptsetup=Trial())
        assert (done.epoch, done.warning) == (1, None)

    def test_the_only_epoch_is_over(self, disk: Path) -> None:
        with pytest.raises(Refused):
            unlock(disk, Kms(current=2, over={1}))


class TestRekey:
    def test_moves(self, disk: Path) -> None:
        assert rekey(disk, Kms(current=2)) == Rekeyed(device=disk, epoch=2, rekeyed_from=1)
        assert (opens(disk, 1), opens(disk, 2)) == (False, True)

    def test_nothing_to_do(self, disk: Path, made: bytes) -> None:
        assert rekey(disk, Kms()) == Rekeyed(device=disk, epoch=1, rekeyed_from=None)
        assert disk.read_bytes().startswith(made)

    def test_a_volume_made_by_hand(self, tmp_path: Path) -> None:
        disk = make(tmp_path / "disk", epoch=None)
        with pytest.raises(ConfigurationError):
            rekey(disk, Kms(current=2))
        assert rekey(disk, Kms(current=2), replace(DISK, epoch=1)).rekeyed_from == 1
        assert read_header(disk).epochs == (2,)
        assert not opens(disk, 1)


def _add_epoch(disk: Path, folder: Path, epoch: int, *, token: bool = True) -> None:
    (folder / "new").write_bytes(key_of(epoch))
    new = str(folder / "new")
    run("luksAddKey", *CHEAP, "--batch-mode", "--key-file", "-", str(disk), new, key=key_of(1))
    if token:
        add_token(disk, slot=max(read_header(disk).key_slots), epoch=epoch)


def _script(folder: Path, body: str) -> str:
    script = folder / "cryptsetup"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    return str(script)
