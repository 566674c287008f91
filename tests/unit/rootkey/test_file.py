"""The ``file:`` provider: memory answers, the file is watched, epochs are only ever added."""

# ruff: noqa: ASYNC240 -- nobody waits for these files

import asyncio
import hmac
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kms.errors import ConfigurationError, RootKeyUnavailable
from kms.keys import passphrase_document
from kms.keys.root_messages import Mode
from kms.rootkey.file import OPENER, FileRootKey, reseal
from kms.rootkey.provider import RootAccess, RootProvider
from kms.rootkey.root_document import RootDocument, write
from kms.rootkey.root_file import RootFile
from tests.unit.faults import fault_at

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SECRET = bytes(range(1, 33))
SECOND = bytes(range(33, 65))
ACCESS = RootAccess(mode=Mode.PRODUCTION)
PASSPHRASE = b"correct horse battery"


def fixed(length: int) -> bytes:
    return SECRET[:length]


def second(length: int) -> bytes:
    return SECOND[:length]


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less memory than any file has, so that a derivation takes no time."""
    monkeypatch.setattr(passphrase_document, "_MEMORY", 64)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "root.key"
    RootFile(file, Mode.PRODUCTION).make(RootDocument(Mode.PRODUCTION, NOW, {1: SECRET}))
    return file


async def opened(path: Path, access: RootAccess = ACCESS) -> RootProvider:
    return await OPENER.open(str(path), access)


async def output(root: RootProvider, epoch: int) -> bytes:
    (only,) = await root.outputs(epoch, [b"message"])
    return only


def expected(secret: bytes) -> bytes:
    return hmac.digest(secret, b"message", "sha512")


async def refused(work: object) -> str:
    with pytest.raises(RootKeyUnavailable) as caught:
        await work  # type: ignore[misc] # any coroutine
    assert SECRET.hex() not in caught.value.detail
    return caught.value.reason


async def test_what_is_created_opens_and_computes_the_prf(tmp_path: Path) -> None:
    made = await OPENER.create(f"{tmp_path}/new/root.key", ACCESS, now=NOW, random=fixed)
    again = await opened(tmp_path / "new" / "root.key")
    for root in (made, again):
        assert await root.versions() == (1,)
        assert root.marked
        assert await root.outputs(1, [b"a", b"b"]) == (
            hmac.digest(SECRET, b"a", "sha512"),
            hmac.digest(SECRET, b"b", "sha512"),
        )
        assert await root.secrets() == {1: SECRET}


async def test_bad_randomness_makes_no_root(tmp_path: Path) -> None:
    for random in (bytes, lambda n: b"\1" * (n - 1)):
        with pytest.raises(ValueError, match="32 bytes"):
            await OPENER.create(f"{tmp_path}/root.key", ACCESS, now=NOW, random=random)
    with pytest.raises(ValueError, match="zone"):
        await OPENER.create(f"{tmp_path}/root.key", ACCESS, now=NOW.replace(tzinfo=None), random=fixed)
    assert list(tmp_path.iterdir()) == []


async def test_a_backup_is_restored_to_what_it_was_and_never_over_a_file(tmp_path: Path) -> None:
    uri = f"{tmp_path}/root.key"
    root = await OPENER.restore(uri, ACCESS, {2: SECOND, 1: SECRET}, now=NOW)
    assert await root.versions() == (1, 2)
    assert await output(root, 2) == expected(SECOND)
    before = (tmp_path / "root.key").read_bytes()
    with pytest.raises(ConfigurationError, match="already there"):
        await OPENER.restore(uri, ACCESS, {1: SECOND}, now=NOW)
    assert (tmp_path / "root.key").read_bytes() == before
    for secrets in ({}, {2: SECOND}, {1: SECRET[1:]}):
        with pytest.raises(ValueError, match="epoch"):
            await OPENER.restore(f"{tmp_path}/another.key", ACCESS, secrets, now=NOW)


async def test_an_epoch_that_does_not_exist_is_unavailable(path: Path) -> None:
    root = await opened(path)
    for epoch in (0, 2, -1):
        assert await refused(root.outputs(epoch, [b""])) == "root-epoch-missing"


class TestRotation:
    async def test_the_next_epoch_is_made_and_the_old_one_stays(self, path: Path) -> None:
        root = await opened(path)
        await root.ensure(2, second)
        await root.ensure(2, fixed)  # there already: nothing is made
        await root.ensure(1, second)
        again = await opened(path)
        for each in (root, again):
            assert await each.versions() == (1, 2)
            assert await output(each, 1) == expected(SECRET)
            assert await output(each, 2) == expected(SECOND)

    async def test_an_epoch_that_is_not_the_next_one_is_refused(self, path: Path) -> None:
        root = await opened(path)
        for epoch in (0, 3):
            with pytest.raises(ConfigurationError, match="it has 1 to 1"):
                await root.ensure(epoch, second)
        assert await root.versions() == (1,)

    async def test_another_process_finds_the_new_epoch_when_it_is_asked_for_it(self, path: Path) -> None:
        asked, told = await opened(path), await opened(path)
        await (await opened(path)).ensure(2, second)
        assert await output(asked, 2) == expected(SECOND)
        assert await told.versions() == (1, 2)

    async def test_two_that_ensure_at_once_have_one_secret(self, path: Path) -> None:
        roots = [await opened(path) for _ in range(4)]
        await asyncio.gather(*(root.ensure(2, os.urandom) for root in roots))
        assert len({await output(root, 2) for root in roots}) == 1

    async def test_a_full_disk_makes_no_epoch_and_the_old_ones_go_on(self, path: Path) -> None:
        root = await opened(path)
        before = path.read_bytes()
        with pytest.raises(ConfigurationError, match="No space left"):  # noqa: PT012
            with fault_at(4, dead=False) as faults:
                await root.ensure(2, second)
            assert "fsync" not in faults.done
        assert path.read_bytes() == before
        assert await root.versions() == (1,)
        assert await output(root, 1) == expected(SECRET)
        await root.ensure(2, second)
        assert await output(root, 2) == expected(SECOND)

    async def test_a_root_in_memory_grows_in_memory(self) -> None:
        root = FileRootKey.of({1: SECRET})
        await root.ensure(1, second)
        await root.ensure(2, second)
        for epoch in (0, 4):
            with pytest.raises(ConfigurationError, match="not the next one"):
                await root.ensure(epoch, second)
        assert await root.versions() == (1, 2)
        assert await root.secrets() == {1: SECRET, 2: SECOND}
        assert await refused(root.outputs(3, [b""])) == "root-epoch-missing"


def ensure_each(path: Path, epochs: list[int]) -> list[bytes]:
    async def work() -> list[bytes]:
        root = await opened(path)
        for epoch in epochs:
            await root.ensure(epoch, os.urandom)
        return [await output(root, epoch) for epoch in epochs]

    return asyncio.run(work())


def test_of_processes_that_ensure_at_once_none_has_a_secret_of_its_own(path: Path) -> None:
    epochs = list(range(2, 30))
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawned) as processes:
        one, other = (processes.submit(ensure_each, path, epochs) for _ in range(2))
        assert one.result() == other.result() == ensure_each(path, epochs)


class TestWatching:
    async def test_a_file_that_is_gone_is_said_and_guests_still_get_their_keys(self, path: Path) -> None:
        root = await opened(path)
        path.unlink()
        for work in (root.versions(), root.secrets(), root.ensure(2, second), root.outputs(2, [b""])):
            assert await refused(work) == "root-key-missing"
        assert await output(root, 1) == expected(SECRET)
        assert not path.exists()

    @pytest.mark.parametrize(
        "damage",
        [
            lambda path: path.write_bytes(path.read_bytes()[:-5]),
            lambda path: path.write_bytes(b""),
            lambda path: path.chmod(0o644),
            lambda path: path.write_bytes(write(RootDocument(Mode.PRODUCTION, NOW, {1: SECOND}))),
            lambda path: path.write_bytes(write(RootDocument(Mode.PRODUCTION, NOW, {1: SECOND, 2: SECOND}))),
            lambda path: path.write_bytes(write(RootDocument(Mode.DEVELOPMENT, NOW, {1: SECRET}))),
            lambda path: reseal(path, Mode.PRODUCTION, None, lambda: PASSPHRASE),
        ],
        ids=["short", "empty", "open", "another root", "another and longer", "other mode", "encrypted"],
    )
    async def test_a_file_that_went_bad_is_said_until_it_is_repaired(
        self, path: Path, damage: object
    ) -> None:
        assert callable(damage)
        root = await opened(path)
        good = path.read_bytes()
        damage(path)
        bad = path.read_bytes()
        for work in (root.versions, root.versions, root.secrets):
            assert await refused(work()) == "root-key-damaged"
        assert await refused(root.ensure(2, second)) == "root-key-damaged"
        assert await refused(root.outputs(2, [b""])) == "root-key-damaged"
        assert await output(root, 1) == expected(SECRET)
        assert path.read_bytes() == bad
        path.write_bytes(good)
        path.chmod(0o600)
        assert await root.versions() == (1,)

    async def test_a_file_that_was_put_back_to_before_a_rotation_is_noticed(self, path: Path) -> None:
        root = await opened(path)
        before = path.read_bytes()
        await root.ensure(2, second)
        path.write_bytes(before)
        assert await refused(root.versions()) == "root-key-damaged"
        assert await refused(root.ensure(2, fixed)) == "root-key-damaged"
        assert await output(root, 2) == expected(SECOND)
        assert path.read_bytes() == before

    async def test_a_file_that_changes_just_before_the_lock_is_not_added_to(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        root = await opened(path)
        another = write(RootDocument(Mode.PRODUCTION, NOW, {1: SECOND}))
        locked = RootFile._alone

        def late(self: RootFile) -> AbstractContextManager[None]:
            path.write_bytes(another)
            return locked(self)

        monkeypatch.setattr(RootFile, "_alone", late)
        assert await refused(root.ensure(2, second)) == "root-key-damaged"
        assert path.read_bytes() == another

    async def test_a_look_that_began_before_a_rotation_is_no_alarm(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        root = await opened(path)
        path.write_bytes(path.read_bytes() + b"\n")  # another text, so that it is read
        older = RootFile.content
        reading, rotated = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        def slow(self: RootFile) -> bytearray:
            content = older(self)
            monkeypatch.setattr(RootFile, "content", older)
            loop.call_soon_threadsafe(reading.set)
            asyncio.run_coroutine_threadsafe(rotated.wait(), loop).result(5)
            return content

        monkeypatch.setattr(RootFile, "content", slow)
        look = asyncio.create_task(root.versions())
        await reading.wait()
        before = path.read_bytes()
        await root.ensure(2, second)
        rotated.set()
        assert await look == (1, 2)
        path.write_bytes(before)
        assert await refused(root.versions()) == "root-key-damaged"

    async def test_a_key_is_derived_once_for_a_file_that_does_not_change(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = []

        def passphrase() -> bytes:
            asked.append(1)
            return PASSPHRASE

        reseal(path, Mode.PRODUCTION, None, passphrase)
        asked.clear()
        root = await opened(path, RootAccess(mode=Mode.PRODUCTION, passphrase=passphrase))
        for _ in range(3):
            assert await root.versions() == (1,)
        assert len(asked) == 1

    async def test_another_passphrase_is_taken_while_the_server_runs(self, path: Path) -> None:
        now = [PASSPHRASE]
        reseal(path, Mode.PRODUCTION, None, lambda: PASSPHRASE)
        root = await opened(path, RootAccess(mode=Mode.PRODUCTION, passphrase=lambda: now[0]))
        reseal(path, Mode.PRODUCTION, lambda: PASSPHRASE, lambda: b"another " + PASSPHRASE)
        assert await refused(root.versions()) == "root-key-damaged"
        now[0] = b"another " + PASSPHRASE
        assert await root.versions() == (1,)
        await root.ensure(2, second)
        assert await output(
            await opened(path, RootAccess(mode=Mode.PRODUCTION, passphrase=lambda: now[0])), 2
        )


class TestClosing:
    async def test_closing_overwrites_the_secrets(self, path: Path) -> None:
        root = await opened(path)
        assert isinstance(root, FileRootKey)
        held = list(root._secrets.values())
        root.start()
        await root.close()
        assert [bytes(secret) for secret in held] == [bytes(32)]
        for work in (root.outputs(1, [b""]), root.versions(), root.secrets(), root.ensure(2, second)):
            assert await refused(work) == "root-key-unavailable"

    @pytest.mark.parametrize("changed", [False, True])
    async def test_a_look_that_ends_after_closing_brings_nothing_back(
        self, path: Path, *, changed: bool
    ) -> None:
        root = await opened(path)
        assert isinstance(root, FileRootKey)
        if changed:
            path.write_bytes(path.read_bytes() + b"\n")
        looks = [asyncio.create_task(each) for each in (root.versions(), root.ensure(2, second))]
        await asyncio.sleep(0)
        await root.close()
        assert [await refused(look) for look in looks] == ["root-key-unavailable"] * 2
        assert root._secrets == {}

    async def test_a_root_in_memory_closes_too(self) -> None:
        root = FileRootKey.of({1: SECRET})
        await root.close()
        assert await refused(root.outputs(1, [b""])) == "root-key-unavailable"


async def test_the_repr_holds_no_secret(path: Path) -> None:
    assert repr(await opened(path)) == "FileRootKey(epochs=1)"
