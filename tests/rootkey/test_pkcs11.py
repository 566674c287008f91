"""The ``pkcs11:`` provider alone, against SoftHSM: what only an HSM can do to a server."""

import asyncio
import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pkcs11 import SecretKey, Session, Token, TokenFlag
from pkcs11.exceptions import FunctionFailed
from structlog.testing import capture_logs

from kms.errors import ConfigurationError, RootKeyUnavailable
from kms.keys.root_messages import Mode
from kms.rootkey import (
    RootAccess,
    RootKeyMissing,
    RootProvider,
    check_uri,
    create_provider,
    open_provider,
    pkcs11_keys,
    pkcs11_library,
    pkcs11_session,
)
from kms.rootkey import pkcs11 as provider_module
from kms.rootkey.pkcs11 import Pkcs11RootKey
from kms.rootkey.pkcs11_library import Library
from kms.rootkey.pkcs11_uri import Pkcs11Uri
from tests.servers.softhsm import SoftHsm

NOW = datetime(2026, 1, 2, tzinfo=UTC)
ACCESS = RootAccess(mode=Mode.PRODUCTION)
GOOD = "pkcs11:token=kms;object=root?module-path=/usr/lib/x.so&pin-source=file:/etc/kms/pin"


async def _create(uri: str) -> RootProvider:
    return await create_provider(uri, ACCESS, now=NOW, random=os.urandom)


async def _reason(root: RootProvider, epoch: int = 1) -> str:
    with pytest.raises(RootKeyUnavailable) as caught:
        await root.outputs(epoch, [b"x"])
    return caught.value.reason


class TestUri:
    def test_is_read_as_rfc_7512_says(self) -> None:
        read = Pkcs11Uri.parse(
            "serial=0a%201;slot-id=7;token=Die%20K%C3%BCche;object=a%3Bb?pin-source=/p%26q&module-path=/m.so"
        )
        assert (read.token, read.serial, read.slot, read.object) == ("Die Küche", "0a 1", 7, "a;b")
        assert (read.module, read.pin_file) == (Path("/m.so"), Path("/p&q"))

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("token=kms;", ""),
            ("object=root", "object="),
            (";object=root", ""),
            ("token=kms", "token=kms;token=kms"),
            ("token=kms", "slot-id=x"),
            ("token=kms", "slot-id=007"),
            ("token=kms", "id=%01;token=kms"),
            ("token=kms", "token=km%zz"),
            ("token=kms", "token=k ms"),
            ("token=kms", "token=%FF"),
            ("token=kms", "token=k%00ms"),
            ("object=root", "object=ro%0Aot"),
            ("module-path=/usr/lib/x.so&", ""),
            ("module-path=/usr/lib/x.so", "module-path=x.so"),
            ("module-path=/usr/lib/x.so", "module-name=x"),
            ("&pin-source=file:/etc/kms/pin", ""),
            ("pin-source=file:/etc/kms/pin", "pin-source=file:pin"),
            ("pin-source=file:/etc/kms/pin", "pin-source=|prompt"),
            ("pin-source=file:/etc/kms/pin", "pin-value=canary&pin-source=/etc/kms/pin"),
            ("pin-source=file:/etc/kms/pin", "canary"),
            ("pin-source=file:/etc/kms/pin", "x-vendor=canary&pin-source=/etc/kms/pin"),
            ("?", "?&"),
            ("?", "?a=b?"),
        ],
    )
    def test_of_anything_else_is_refused_without_echo(self, old: str, new: str) -> None:
        assert old in GOOD
        with pytest.raises(ConfigurationError) as caught:
            check_uri(GOOD.replace(old, new), ACCESS)
        assert "canary" not in caught.value.detail + caught.value.remedy
        assert caught.value.remedy

    def test_that_is_good_passes_untouched(self) -> None:
        check_uri(GOOD, ACCESS)


class TestWithoutThePackage:
    def test_it_is_said_how_to_install_it(self) -> None:
        code = (
            "import sys; sys.modules['pkcs11'] = None\n"
            "from kms.errors import ConfigurationError\n"
            "from kms.keys.root_messages import Mode\n"
            "from kms.rootkey import RootAccess, check_uri\n"
            "try: check_uri('pkcs11:', RootAccess(mode=Mode.PRODUCTION))\n"
            "except ConfigurationError as error: print(error.detail, error.remedy)\n"
        )
        told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
        assert "attested-kms[pkcs11]" in told


class TestKeys:
    @pytest.mark.parametrize(
        ("attribute", "value"),
        [("EXTRACTABLE", True), ("SENSITIVE", False), ("PRIVATE", False), ("SIGN", False), ("DERIVE", True)],
    )
    async def test_that_could_leave_or_be_used_otherwise_are_refused(
        self, softhsm: SoftHsm, attribute: str, value: bool
    ) -> None:
        uri = softhsm.fresh_uri()
        softhsm.put(uri, 1, attributes={attribute: value})
        with pytest.raises(ConfigurationError, match=f"CKA_{attribute} is not {not value}"):
            await open_provider(uri, ACCESS)

    async def test_of_one_epoch_twice_are_ambiguous(self, softhsm: SoftHsm) -> None:
        uri = softhsm.fresh_uri()
        root = await _create(uri)
        softhsm.put(uri, 1)
        with pytest.raises(ConfigurationError, match="two keys of one epoch"):
            await open_provider(uri, ACCESS)
        with pytest.raises(RootKeyUnavailable, match="two keys of one epoch") as caught:
            await root.versions()
        assert caught.value.reason == "root-key-failing"
        softhsm.destroy(uri, 1)
        assert await _reason(root) == "root-key-missing"
        await root.close()

    async def test_with_a_gap_are_refused(self, softhsm: SoftHsm) -> None:
        uri = softhsm.fresh_uri()
        softhsm.put(uri, 2)
        with pytest.raises(ConfigurationError, match="without a gap"):
            await open_provider(uri, ACCESS)

    async def test_are_made_so_that_they_never_leave(self, softhsm: SoftHsm) -> None:
        uri = softhsm.fresh_uri()
        await (await _create(uri)).close()
        proper = {
            "ALWAYS_SENSITIVE": True,
            "NEVER_EXTRACTABLE": True,
            "LOCAL": True,
            "MODIFIABLE": False,
            "PRIVATE": True,
            "DERIVE": False,
            "VALUE_LEN": 64,
        }
        assert softhsm.show(uri, 1, *proper) == [proper]

    async def test_are_not_made_beside_the_claim_of_somebody_else(
        self, softhsm: SoftHsm, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(provider_module, "_PAUSE", 0.001)
        uri = softhsm.fresh_uri()
        claim = _claims_of(uri)
        softhsm.put(claim, 1)
        with pytest.raises(ConfigurationError, match="somebody else is making") as caught:
            await _create(uri)
        assert f"{_object(uri)} (being made)" in caught.value.remedy
        with pytest.raises(RootKeyMissing):
            await open_provider(uri, ACCESS)
        softhsm.destroy(claim, 1)
        root = await _create(uri)
        assert await root.versions() == (1,)
        assert softhsm.count(claim) == 0
        await root.close()

    # See `TestTokens`.
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    @pytest.mark.parametrize("lost_after", ["claim", "key"])
    async def test_that_were_made_when_the_session_was_lost_are_made_once_and_leave_no_claim(
        self, softhsm: SoftHsm, monkeypatch: pytest.MonkeyPatch, lost_after: str
    ) -> None:
        made: list[str] = []
        generate = pkcs11_keys._generate

        def losing(session: Session, label: str, key_id: bytes) -> None:
            generate(session, label, key_id)
            made.append("claim" if "being made" in label else "key")
            if made.count(lost_after) == 1 and made[-1] == lost_after:
                session.close()

        uri = softhsm.fresh_uri()
        root = await _create(uri)
        monkeypatch.setattr(pkcs11_keys, "_generate", losing)
        await root.ensure(2, os.urandom)
        assert await root.versions() == (1, 2)
        assert made.count("key") == 1
        assert softhsm.count(_claims_of(uri)) == 0
        await root.ensure(3, os.urandom)
        await root.close()

    async def test_that_are_made_stay_where_the_claim_cannot_be_taken_back(
        self, softhsm: SoftHsm, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(provider_module, "_PAUSE", 0.001)

        def fail(_: object) -> None:
            raise FunctionFailed

        uri = softhsm.fresh_uri()
        with monkeypatch.context() as broken:
            broken.setattr(SecretKey, "destroy", fail)
            with capture_logs() as logs:
                root = await _create(uri)
        assert "root-key-claim-left" in [entry["event"] for entry in logs]
        assert await root.versions() == (1,)
        with pytest.raises(ConfigurationError, match="was killed at it") as caught:
            await root.ensure(2, os.urandom)
        assert f"{_object(uri)} (being made)" in caught.value.remedy
        await root.close()

    async def test_are_not_made_while_another_process_makes_some(
        self, softhsm: SoftHsm, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(provider_module, "_PAUSE", 0.001)
        root = await _create(softhsm.fresh_uri())
        with softhsm.common.pin_file.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with pytest.raises(ConfigurationError, match="somebody else is making"):
                await root.ensure(2, os.urandom)
            assert await root.outputs(1, [b"x"])
        await root.ensure(2, os.urandom)
        assert await root.versions() == (1, 2)
        await root.close()


class TestPin:
    async def test_that_was_refused_is_never_tried_again_and_another_is(
        self, softhsm: SoftHsm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tried: list[str] = []
        log_in = pkcs11_session._log_in

        def counting(token: Token, pin: str) -> Session:
            tried.append(pin)
            return log_in(token, pin)

        monkeypatch.setattr(pkcs11_session, "_log_in", counting)
        token = softhsm.fresh_token()
        pin_file = _pin_file(tmp_path, "canary-wrong")
        uri = softhsm.uri(token, pin_file)
        for _ in range(3):
            with pytest.raises(RootKeyUnavailable) as caught:
                await open_provider(uri, ACCESS)
            assert caught.value.reason == "root-key-pin-refused"
            assert "canary" not in f"{caught.value!r} {caught.value.detail}"
        assert tried == ["canary-wrong"]
        pin_file.write_text(token.pin)
        with pytest.raises(RootKeyMissing):
            await open_provider(uri, ACCESS)
        assert tried == ["canary-wrong", token.pin]

    async def test_lost_under_a_running_server_is_refused_when_the_session_is_lost_and_heals(
        self, softhsm: SoftHsm, tmp_path: Path
    ) -> None:
        token = softhsm.fresh_token()
        pin_file = _pin_file(tmp_path, token.pin)
        root = await _create(softhsm.uri(token, pin_file))
        before = await root.outputs(1, [b"x"])
        pin_file.write_text("canary-wrong")
        assert await root.outputs(1, [b"x"]) == before  # the session goes on
        await _lose_session(root)
        assert await _reason(root) == "root-key-pin-refused"
        pin_file.write_text("")
        assert await _reason(root) == "root-key-pin-refused"
        pin_file.write_text(token.pin)
        pin_file.chmod(0o644)
        assert await _reason(root) == "root-key-pin-refused"
        pin_file.unlink()
        assert await _reason(root) == "root-key-pin-refused"
        _pin_file(tmp_path, token.pin)
        assert await root.outputs(1, [b"x"]) == before
        await root.close()

    async def test_is_never_the_last_try_of_a_token(
        self, softhsm: SoftHsm, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # SoftHSM never counts wrong PINs, so the token is made up.
        class LastTry:
            serial = b"0001"
            flags = TokenFlag.USER_PIN_FINAL_TRY | TokenFlag.USER_PIN_COUNT_LOW

            def open(self, **_: object) -> None:
                pytest.fail("tried")

        monkeypatch.setattr(Library, "find_token", lambda *_: LastTry())
        with pytest.raises(RootKeyUnavailable, match="would lock the token") as caught:
            await open_provider(softhsm.fresh_uri(), ACCESS)
        assert caught.value.reason == "root-key-pin-refused"

    async def test_file_that_others_can_read_is_refused(self, softhsm: SoftHsm, tmp_path: Path) -> None:
        pin_file = _pin_file(tmp_path, softhsm.common.pin)
        pin_file.chmod(0o640)
        with pytest.raises(ConfigurationError, match="others can use it") as caught:
            await open_provider(softhsm.uri(softhsm.common, pin_file), ACCESS)
        assert caught.value.remedy

    async def test_file_may_be_a_link_as_mounted_secrets_are(self, softhsm: SoftHsm, tmp_path: Path) -> None:
        link = tmp_path / "link"
        link.symlink_to(_pin_file(tmp_path, softhsm.common.pin))
        root = await _create(softhsm.uri(softhsm.common, link))
        await root.ensure(2, os.urandom)
        assert await root.versions() == (1, 2)
        link.unlink()
        with pytest.raises(ConfigurationError, match="cannot be locked"):
            await root.ensure(3, os.urandom)
        await root.close()

    async def test_is_nowhere_in_what_is_said(
        self, softhsm: SoftHsm, capfd: pytest.CaptureFixture[str]
    ) -> None:
        root = await _create(softhsm.fresh_uri())
        await _lose_session(root)
        await root.versions()
        await root.close()
        said = "".join(capfd.readouterr())
        assert "root-key-session-lost" in said
        assert "canary" not in said + repr(root)


class TestSessions:
    async def test_of_two_roots_on_one_token_survive_each_other(self, softhsm: SoftHsm) -> None:
        first, second = await _create(softhsm.fresh_uri()), await _create(softhsm.fresh_uri())
        kept = await second.outputs(1, [b"x"])
        assert await first.outputs(1, [b"x"]) != kept
        await first.close()  # logs out the whole process
        assert await second.versions() == (1,)
        assert await second.outputs(1, [b"x"]) == kept
        await second.close()

    @pytest.mark.parametrize("work", ["outputs", "versions", "ensure"])
    async def test_that_are_lost_are_opened_again(self, softhsm: SoftHsm, work: str) -> None:
        root = await _create(softhsm.fresh_uri())
        before = await root.outputs(1, [b"x"])
        await _lose_session(root)
        if work == "ensure":
            await root.ensure(2, os.urandom)
            assert await root.versions() == (1, 2)
        elif work == "versions":
            assert await root.versions() == (1,)
        assert await root.outputs(1, [b"x"]) == before
        await root.close()

    async def test_of_two_libraries_do_not_wait_for_each_other(self, tmp_path: Path) -> None:
        assert Library.of(tmp_path / "a.so") is not Library.of(tmp_path / "b.so")
        (tmp_path / "c.so").symlink_to(tmp_path / "a.so")
        assert Library.of(tmp_path / "c.so") is Library.of(tmp_path / "a.so")

    async def test_need_a_library(self, softhsm: SoftHsm, tmp_path: Path) -> None:
        (tmp_path / "no.so").write_text("no library")
        for name in ("no.so", "missing.so"):
            uri = softhsm.fresh_uri().replace(str(softhsm.library), f"{tmp_path}/{name}")
            with pytest.raises(ConfigurationError, match="cannot be loaded") as caught:
                await open_provider(uri, ACCESS)
            assert caught.value.remedy


# python-pkcs11 0.10 ends a search that could not begin once more when it is collected, and that fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
class TestTokens:
    async def test_that_are_nowhere_are_awaited(self, softhsm: SoftHsm) -> None:
        uri = softhsm.fresh_uri().replace("token=common", "token=elsewhere")
        with pytest.raises(RootKeyUnavailable) as caught:
            await open_provider(uri, ACCESS)
        assert caught.value.reason == "root-key-token-gone"

    async def test_that_go_away_and_come_back_heal_without_a_restart(
        self, softhsm: SoftHsm, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pkcs11_library, "_ANEW_EVERY", 0.0)
        token = softhsm.fresh_token()
        uri = softhsm.uri(token)
        root, other = await _create(uri), await _create(softhsm.fresh_uri())
        before, others = await root.outputs(1, [b"x"]), await other.outputs(1, [b"x"])
        away = token.folder.parent.with_name("away")
        token.folder.rename(away)
        assert await _reason(root) == "root-key-token-gone"
        with pytest.raises(RootKeyUnavailable):
            await root.versions()
        with pytest.raises(RootKeyUnavailable):
            await open_provider(uri, ACCESS)
        # The library was initialised anew meanwhile, and numbers sessions and keys from the beginning.
        assert await other.outputs(1, [b"x"]) == others
        away.rename(token.folder)
        assert await root.outputs(1, [b"x"]) == before
        assert await other.outputs(1, [b"x"]) == others
        await root.close()
        assert await other.outputs(1, [b"x"]) == others
        await other.close()

    async def test_are_looked_for_in_a_library_that_is_initialised_anew_only_now_and_then(
        self, softhsm: SoftHsm, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pkcs11_library, "_ANEW_EVERY", 3600.0)
        library = Library.of(softhsm.library)
        monkeypatch.setattr(library, "_anew_at", time.monotonic())
        generation = library.generation
        uri = softhsm.fresh_uri().replace("token=common", "token=elsewhere")
        for _ in range(3):
            with pytest.raises(RootKeyUnavailable):
                await open_provider(uri, ACCESS)
        assert library.generation == generation


class TestHungHsm:
    async def test_is_slow_and_the_event_loop_goes_on(
        self, softhsm: SoftHsm, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(provider_module, "_ANSWER_WITHIN", 0.2)
        root = await _create(softhsm.fresh_uri())
        before = await root.outputs(1, [b"x"])
        async with _hung(softhsm):
            turns = 0

            async def count() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0.01)

            counting = asyncio.create_task(count())
            assert set(await asyncio.gather(*(_reason(root) for _ in range(20)))) == {"root-key-slow"}
            counting.cancel()
            assert turns > 5
        assert await root.outputs(1, [b"x"]) == before
        await root.close()

    async def test_lets_only_so_many_wait(self, softhsm: SoftHsm, monkeypatch: pytest.MonkeyPatch) -> None:
        root = await _create(softhsm.fresh_uri())
        monkeypatch.setattr(provider_module, "_ANSWER_WITHIN", 1.0)
        async with _hung(softhsm):
            waiting = [asyncio.create_task(_reason(root)) for _ in range(pkcs11_library._WAITING)]
            await asyncio.sleep(0)
            assert await _reason(root) == "root-key-slow"
            assert not all(task.done() for task in waiting)  # it was told before those who wait
            assert set(await asyncio.gather(*waiting)) == {"root-key-slow"}
        for _ in range(60):
            with suppress(RootKeyUnavailable):  # those that were given up stand before it for a moment
                assert await root.versions() == (1,)
                break
            await asyncio.sleep(0.5)
        else:
            pytest.fail("it does not heal")
        await root.close()

    async def test_can_be_left(self, softhsm: SoftHsm, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(provider_module, "_ANSWER_WITHIN", 0.1)
        root = await _create(softhsm.fresh_uri())
        async with _hung(softhsm):
            await root.close()
            with pytest.raises(RootKeyUnavailable):
                await root.versions()


def _claims_of(uri: str) -> str:
    return uri.replace("?", "%20(being%20made)?")


def _object(uri: str) -> str:
    return Pkcs11Uri.parse(uri.removeprefix("pkcs11:")).object


def _pin_file(folder: Path, pin: str) -> Path:
    path = folder / "pin"
    path.touch(mode=0o600)
    path.write_text(pin)
    return path


async def _lose_session(root: RootProvider) -> None:
    """Close the session behind the provider's back: to it, the token has forgotten it."""
    assert isinstance(root, Pkcs11RootKey)
    opened = root._keys._token._open
    assert opened is not None
    await root._library.call(opened.session.close, within=5)


@asynccontextmanager
async def _hung(softhsm: SoftHsm) -> AsyncIterator[None]:
    """Let the thread that calls the library not come back, as from an HSM that does not answer."""
    library, back, hangs = Library.of(softhsm.library), threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def hang() -> None:
        loop.call_soon_threadsafe(hangs.set)
        back.wait()

    hanging = asyncio.create_task(library.call(hang, within=30))
    await hangs.wait()
    try:
        yield
    finally:
        back.set()
        await hanging
