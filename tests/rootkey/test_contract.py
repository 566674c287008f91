"""One contract for all root key providers, held against real files, Vault and SoftHSM.

What each promises beyond the protocol is in its ground's `Guarantees` (`tests.rootkey.grounds`):

============= ====== ========== ====
provider      marked exportable held
============= ====== ========== ====
file          yes    yes        yes
vault-kv      yes    yes        yes
vault-transit no     no         no
pkcs11        no     no         no
============= ====== ========== ====
"""

import asyncio
import base64
import hmac
import os
import secrets
import traceback
from collections.abc import AsyncIterator, Awaitable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from multiprocessing import get_context

import pytest

from kms.errors import ConfigurationError, KmsError, RootKeyUnavailable
from kms.identifiers import AppId
from kms.keys.check_value import check_value
from kms.keys.root_messages import (
    Mode,
    app_message,
    apps_ca_message,
    challenge_message,
    check_message,
    foreign_message,
    identity_message,
    rows_message,
)
from kms.rootkey import (
    CheckedRoot,
    NotExportable,
    RootAccess,
    RootKeyMissing,
    RootProvider,
    check_uri,
    open_checked_root,
    open_provider,
    restore_provider,
)
from kms.rootkey.vault_access import TokenFile
from tests.rootkey.grounds import NOW, Ground, create_root, open_root
from tests.roots import StoredValues

pytestmark = [pytest.mark.enable_socket, pytest.mark.xdist_group("vault")]

MESSAGES = (b"", b"\x00", b"a", b"b", bytes(range(256)) * 4)
OURS = (
    app_message(AppId(b"a" * 20)),
    identity_message(1),
    challenge_message(),
    rows_message(),
    apps_ca_message(),
    foreign_message(),
)
EPOCHS_IN_A_RACE = range(2, 7)


@pytest.fixture
async def closing() -> AsyncIterator[AsyncExitStack]:
    """Whatever a test opens is closed in the end."""
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
async def uri(ground: Ground) -> str:
    """A root that was just made."""
    uri = ground.fresh_uri()
    await (await create_root(ground, uri)).close()
    return uri


@pytest.fixture
async def root(ground: Ground, uri: str) -> AsyncIterator[RootProvider]:
    """That root, opened."""
    async with _opened(ground, uri) as root:
        yield root


@asynccontextmanager
async def _opened(ground: Ground, uri: str, mode: Mode = Mode.PRODUCTION) -> AsyncIterator[RootProvider]:
    root = await open_root(ground, uri, mode)
    root.start()
    try:
        yield root
    finally:
        await root.close()


async def _reason(root: RootProvider | CheckedRoot, epoch: int = 1) -> str:
    with pytest.raises(RootKeyUnavailable) as caught:
        await (root.prf(epoch, b"a") if isinstance(root, CheckedRoot) else root.outputs(epoch, [b"a"]))
    return caught.value.reason


class TestOutputs:
    async def test_are_hmac_sha_512_under_the_root(self, ground: Ground) -> None:
        secret, uri = secrets.token_bytes(ground.guarantees.secret_length), ground.fresh_uri()
        await ground.place(uri, secret)
        async with _opened(ground, uri) as root:
            together = await root.outputs(1, MESSAGES)
            assert together == tuple(hmac.digest(secret, each, "sha512") for each in MESSAGES)
            assert together == await root.outputs(1, MESSAGES)
            assert together == tuple([(await root.outputs(1, [each]))[0] for each in MESSAGES])
            assert await root.versions() == (1,)

    async def test_of_epochs_and_messages_are_independent(self, root: RootProvider) -> None:
        await root.ensure(2, os.urandom)
        answers = [*await root.outputs(1, MESSAGES), *await root.outputs(2, MESSAGES)]
        assert len(set(answers)) == 2 * len(MESSAGES)
        assert {len(each) for each in answers} == {64}

    async def test_of_two_roots_are_independent(self, ground: Ground, root: RootProvider) -> None:
        other = await create_root(ground, ground.fresh_uri())
        assert set(await other.outputs(1, MESSAGES)).isdisjoint(await root.outputs(1, MESSAGES))
        await other.close()

    async def test_at_once_are_each_their_own(self, root: RootProvider) -> None:
        wanted = dict(zip(MESSAGES, await root.outputs(1, MESSAGES), strict=True))
        asked = [MESSAGES[number % len(MESSAGES)] for number in range(60)]
        answers = await asyncio.gather(*(root.outputs(1, [each]) for each in asked))
        assert [each for (each,) in answers] == [wanted[each] for each in asked]

    @pytest.mark.parametrize("epoch", [-1, 0, 2, 2**31, 2**53])
    async def test_of_an_epoch_that_is_not_there_are_refused(self, root: RootProvider, epoch: int) -> None:
        assert await _reason(root, epoch) == "root-epoch-missing"
        assert await root.outputs(1, [b"a"])


class TestMaking:
    async def test_begins_with_epoch_1_and_never_replaces(self, ground: Ground) -> None:
        uri = ground.fresh_uri()
        check_uri(uri, ground.access())
        made = await create_root(ground, uri)
        assert await made.versions() == (1,)
        before = await made.outputs(1, MESSAGES)
        with pytest.raises(ConfigurationError) as caught:
            await create_root(ground, uri)
        assert not isinstance(caught.value, RootKeyMissing)
        assert await made.outputs(1, MESSAGES) == before
        await made.close()
        async with _opened(ground, uri) as again:
            assert await again.versions() == (1,)
            assert await again.outputs(1, MESSAGES) == before

    async def test_is_not_what_opening_does(self, ground: Ground) -> None:
        uri = ground.fresh_uri()
        for _ in range(2):
            with pytest.raises(RootKeyMissing):
                await open_root(ground, uri)

    async def test_by_two_servers_at_once_gives_one_root(self, ground: Ground) -> None:
        uri = ground.fresh_uri()
        made = await asyncio.gather(*(create_root(ground, uri) for _ in range(2)), return_exceptions=True)
        roots = [each for each in made if not isinstance(each, BaseException)]
        assert all(isinstance(each, ConfigurationError) for each in made if isinstance(each, BaseException))
        assert roots
        async with _opened(ground, uri) as opened:
            answers = {await each.outputs(1, MESSAGES) for each in (*roots, opened)}
        assert len(answers) == 1
        for each in roots:
            await each.close()


class TestRotation:
    async def test_is_durable_and_seen_by_servers_that_run(
        self, ground: Ground, uri: str, root: RootProvider
    ) -> None:
        async with _opened(ground, uri) as other:
            assert await _reason(other, 2) == "root-epoch-missing"
            await root.ensure(2, os.urandom)
            made = await root.outputs(2, MESSAGES)
            assert await other.outputs(2, MESSAGES) == made
            assert await other.versions() == await root.versions() == (1, 2)
        async with _opened(ground, uri) as later:
            assert await later.versions() == (1, 2)
            assert await later.outputs(2, MESSAGES) == made

    async def test_to_an_epoch_that_is_there_changes_nothing(self, root: RootProvider) -> None:
        await root.ensure(2, os.urandom)
        before = await root.outputs(1, MESSAGES), await root.outputs(2, MESSAGES)
        for epoch in (1, 2, 2, 1):
            await root.ensure(epoch, os.urandom)
        assert (await root.outputs(1, MESSAGES), await root.outputs(2, MESSAGES)) == before
        assert await root.versions() == (1, 2)

    @pytest.mark.parametrize("epoch", [-1, 0, 3])
    async def test_to_an_epoch_that_is_not_the_next_one_is_refused(
        self, root: RootProvider, epoch: int
    ) -> None:
        with pytest.raises(ConfigurationError):
            await root.ensure(epoch, os.urandom)
        assert await root.versions() == (1,)

    async def test_by_two_servers_at_once_gives_one_epoch(
        self, ground: Ground, uri: str, root: RootProvider
    ) -> None:
        async with _opened(ground, uri) as other:
            for epoch in EPOCHS_IN_A_RACE:
                await asyncio.gather(*(each.ensure(epoch, os.urandom) for each in (root, other)))
                assert await root.outputs(epoch, MESSAGES) == await other.outputs(epoch, MESSAGES)

    async def test_by_two_processes_at_once_gives_one_epoch(
        self, ground: Ground, uri: str, elsewhere: ProcessPoolExecutor
    ) -> None:
        loop = asyncio.get_running_loop()
        one, other = await asyncio.gather(
            *(loop.run_in_executor(elsewhere, _rotate, uri, ground.access()) for _ in range(2))
        )
        assert one == other
        async with _opened(ground, uri) as root:
            assert [await root.outputs(epoch, MESSAGES) for epoch in EPOCHS_IN_A_RACE] == one

    async def test_never_makes_a_root_that_was_lost(
        self, ground: Ground, uri: str, root: RootProvider
    ) -> None:
        await ground.destroy(uri)
        for epoch in (1, 2):
            with pytest.raises(RootKeyUnavailable) as caught:
                await root.ensure(epoch, os.urandom)
            assert caught.value.reason == "root-key-missing"
        with pytest.raises(RootKeyMissing):
            await open_root(ground, uri)


class TestBackup:
    async def test_gives_the_secrets_or_says_that_it_cannot(self, ground: Ground, root: RootProvider) -> None:
        await root.ensure(2, os.urandom)
        if not ground.guarantees.exportable:
            with pytest.raises(NotExportable):
                await root.secrets()
            return
        exported = await root.secrets()
        assert sorted(exported) == [1, 2]
        for epoch, secret in exported.items():
            assert len(secret) == ground.guarantees.secret_length
            assert await root.outputs(epoch, [b"a"]) == (hmac.digest(secret, b"a", "sha512"),)

    async def test_is_restored_where_nothing_is_or_not_at_all(self, ground: Ground, uri: str) -> None:
        backup, place = {1: os.urandom(32), 2: os.urandom(32)}, ground.fresh_uri()
        if not ground.guarantees.exportable:
            with pytest.raises(NotExportable):
                await restore_provider(place, ground.access(), backup, now=NOW)
            with pytest.raises(RootKeyMissing):
                await open_root(ground, place)
            return
        restored = await restore_provider(place, ground.access(), backup, now=NOW)
        assert await restored.versions() == (1, 2)
        assert await restored.secrets() == backup
        await restored.close()
        async with _opened(ground, uri) as root:
            before = await root.secrets()
            with pytest.raises(ConfigurationError):
                await restore_provider(uri, ground.access(), backup, now=NOW)
            assert await root.secrets() == before


class TestModes:
    async def test_of_a_root_that_is_marked_are_not_mixed(
        self, ground: Ground, uri: str, root: RootProvider
    ) -> None:
        assert root.marked is ground.guarantees.marked
        if not ground.guarantees.marked:
            return
        with pytest.raises(ConfigurationError) as caught:
            await open_root(ground, uri, Mode.DEVELOPMENT)
        assert not isinstance(caught.value, RootKeyMissing)

    async def test_never_derive_the_same(self, ground: Ground, uri: str) -> None:
        production = await _checked(ground, uri, StoredValues())
        developed = StoredValues()
        try:
            development = await _checked(ground, uri, developed, Mode.DEVELOPMENT)
        except ConfigurationError:
            assert ground.guarantees.marked
        else:
            assert not ground.guarantees.marked
            questions = (*OURS, *(check_message(mode, 1) for mode in Mode))
            ours = {await production.prf(1, each) for each in questions}
            assert len(ours) == len(questions)
            assert ours.isdisjoint([await development.prf(1, each) for each in questions])
            assert developed.values[1] not in {check_value(each) for each in ours}
            await development.close()
        await production.close()


class TestAReplacedRoot:
    """A root that was lost or replaced while a server ran: the right keys leave, or none."""

    async def test_derives_nothing(self, ground: Ground, uri: str) -> None:
        stored = StoredValues()
        checked = await _checked(ground, uri, stored)
        before = [await checked.prf(1, each) for each in OURS]
        await ground.replace(uri)
        if ground.guarantees.held:
            assert [await checked.prf(1, each) for each in OURS] == before
            with pytest.raises(RootKeyUnavailable):
                await checked.versions()
            with pytest.raises(RootKeyUnavailable):
                await checked.ensure(2)
        else:
            for _ in range(2):
                assert await _reason(checked) == "root-key-changed"
            with pytest.raises(RootKeyUnavailable) as caught:
                await checked.check(1)
            assert caught.value.reason == "root-key-changed"
        await checked.close()
        with pytest.raises(ConfigurationError, match="not the one of this database"):
            await _checked(ground, uri, stored)

    async def test_gets_no_epoch_and_none_of_it_is_adopted(self, ground: Ground, uri: str) -> None:
        stored = StoredValues()
        checked = await _checked(ground, uri, stored)
        await ground.replace(uri)
        for _ in range(2):
            with pytest.raises(RootKeyUnavailable) as caught:
                await checked.ensure(2)
            assert caught.value.reason == ground.guarantees.replaced
        await checked.close()
        assert list(stored.values) == [1]
        async with _opened(ground, uri) as replacement:
            assert await replacement.versions() == (1,)

    async def test_that_is_gone_is_missing_and_never_made_again(self, ground: Ground, uri: str) -> None:
        stored = StoredValues()
        checked = await _checked(ground, uri, stored)
        before = await checked.prf(1, OURS[0])
        await ground.destroy(uri)
        if ground.guarantees.held:
            assert await checked.prf(1, OURS[0]) == before
        else:
            assert await _reason(checked) == "root-key-missing"
        with pytest.raises(RootKeyUnavailable) as caught:
            await checked.versions()
        assert caught.value.reason == "root-key-missing"
        await checked.close()
        with pytest.raises(ConfigurationError, match="lost"):
            await _checked(ground, uri, stored)
        with pytest.raises(RootKeyMissing):
            await open_root(ground, uri)

    async def test_is_made_where_nothing_ever_was(self, ground: Ground) -> None:
        uri, stored = ground.fresh_uri(), StoredValues()
        checked = await _checked(ground, uri, stored)
        first = await checked.prf(1, OURS[0])
        await checked.close()
        assert list(stored.values) == [1]
        again = await _checked(ground, uri, stored)
        assert await again.prf(1, OURS[0]) == first
        await again.close()


class TestClosing:
    async def test_ends_every_use_without_a_crash(self, ground: Ground, uri: str) -> None:
        root = await open_root(ground, uri)
        root.start()
        await root.outputs(1, [b"a"])
        await root.close()
        await root.close()
        await _reason(root)
        for use in (root.versions(), root.ensure(2, os.urandom)):
            with pytest.raises(RootKeyUnavailable):
                await use
        async with _opened(ground, uri) as again:
            assert await again.versions() == (1,)


class TestSecrets:
    async def test_are_in_no_repr_error_or_log(
        self, ground: Ground, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        canary, uri = secrets.token_bytes(ground.guarantees.secret_length), ground.fresh_uri()
        await ground.place(uri, canary)
        access = ground.access()
        said = []
        root = await open_root(ground, uri)
        checked = CheckedRoot(root, StoredValues(), mode=Mode.PRODUCTION, random=os.urandom)
        output = (await root.outputs(1, [b"a"]))[0]
        for wrong in (
            root.outputs(7, [b"a"]),
            root.ensure(7, os.urandom),
            checked.prf(1, b"a"),
            create_root(ground, uri),
            open_provider(uri, RootAccess(mode=Mode.DEVELOPMENT, vault=access.vault)),
        ):
            said += await _what_is_said(wrong)
        await ground.replace(uri)
        said += await _what_is_said(root.versions())
        said += await _what_is_said(root.ensure(2, os.urandom))
        await ground.destroy(uri)
        said += await _what_is_said(root.versions())
        said += [repr(root), str(root), repr(checked), repr(access)]
        await root.close()
        said += [*await _what_is_said(root.versions()), repr(root), *capfd.readouterr(), caplog.text]
        text = "\n".join(said)
        assert "Traceback" in text
        for secret in (canary, output, *_secrets_of(access)):
            for form in _forms(secret):
                assert form not in text


@pytest.fixture(scope="session")
def elsewhere() -> Iterator[ProcessPoolExecutor]:
    """Two other processes."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as processes:
        yield processes


def _rotate(uri: str, access: RootAccess) -> list[tuple[bytes, ...]]:
    """Rotate some times, and give the outputs of each epoch: in another process."""

    async def rotate() -> list[tuple[bytes, ...]]:
        root = await open_provider(uri, access)
        outputs = []
        for epoch in EPOCHS_IN_A_RACE:
            await root.ensure(epoch, os.urandom)
            outputs.append(await root.outputs(epoch, MESSAGES))
        await root.close()
        return outputs

    return asyncio.run(rotate())


async def _checked(
    ground: Ground, uri: str, stored: StoredValues, mode: Mode = Mode.PRODUCTION
) -> CheckedRoot:
    return await open_checked_root(
        uri,
        stored,
        ground.access(mode),
        now=NOW,
        random=os.urandom,
        may_be_made=not await stored.check_values(),
    )


async def _what_is_said(work: Awaitable[object]) -> list[str]:
    """Do what may fail, and give all that its error says."""
    try:
        done = await work
    except KmsError as error:
        return [
            "".join(traceback.format_exception(error)),
            error.detail,
            getattr(error, "remedy", ""),
            repr(error),
        ]
    return [repr(done)]


def _secrets_of(access: RootAccess) -> list[bytes]:
    if access.vault is None:
        return [b"pin-canary"]
    assert isinstance(access.vault.login, TokenFile)
    return [access.vault.login.path.read_bytes()]


def _forms(secret: bytes) -> list[str]:
    encoded = base64.b64encode(secret).decode().rstrip("=")
    url_safe = base64.urlsafe_b64encode(secret).decode().rstrip("=")
    return [secret.hex(), secret.hex().upper(), encoded, url_safe, repr(secret), secret.decode("latin-1")]
