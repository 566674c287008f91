"""The root is proven before and after an epoch is made: by a provider whose key is exchanged at will."""

import asyncio
import os
from collections.abc import Callable, Sequence

import pytest

from kms.errors import RootKeyUnavailable
from kms.keys.root_messages import Mode
from kms.rootkey import CheckedRoot
from kms.rootkey.file import FileRootKey
from tests.roots import StoredValues


class Exchangeable(FileRootKey):
    """A root in memory; `when_making` is called in the middle of making an epoch."""

    when_making: Callable[[], None] = staticmethod(lambda: None)
    asked: int = 0

    async def outputs(self, epoch: int, messages: Sequence[bytes]) -> tuple[bytes, ...]:
        self.asked += 1
        return await super().outputs(epoch, messages)

    async def ensure(self, epoch: int, random: Callable[[int], bytes]) -> None:
        await super().ensure(epoch, random)
        self.when_making()

    def exchange(self, *epochs: int) -> None:
        for epoch in epochs:
            self._secrets[epoch] = bytearray(os.urandom(32))


@pytest.fixture
def provider() -> Exchangeable:
    return Exchangeable.of({1: bytes([1]) * 32, 2: bytes([2]) * 32})


@pytest.fixture
def stored() -> StoredValues:
    return StoredValues()


@pytest.fixture
async def root(provider: Exchangeable, stored: StoredValues) -> CheckedRoot:
    root = CheckedRoot(provider, stored, mode=Mode.PRODUCTION, random=os.urandom)
    await root.verify_all()
    stored.values[2] = await root.ensure(2)
    return root


async def _refused(root: CheckedRoot, epoch: int) -> str:
    with pytest.raises(RootKeyUnavailable) as caught:
        await root.ensure(epoch)
    return caught.value.reason


async def test_of_a_root_that_is_right_the_next_epoch_is_made(
    root: CheckedRoot, provider: Exchangeable, stored: StoredValues
) -> None:
    value = await root.ensure(3)
    assert await root.ensure(3) == value
    assert 3 not in stored.values  # it is adopted by whoever asked
    stored.values[3] = value
    assert len(await root.prf(3, b"question")) == 64


@pytest.mark.parametrize("exchanged", [(1,), (2,), (1, 2)])
async def test_of_another_root_nothing_is_made(
    root: CheckedRoot, provider: Exchangeable, exchanged: tuple[int, ...]
) -> None:
    provider.exchange(*exchanged)
    assert await _refused(root, 3) == "root-key-changed"
    assert await provider.versions() == (1, 2)


@pytest.mark.parametrize("exchanged", [(1,), (2,), (1, 2, 3)])
async def test_of_a_root_that_is_exchanged_meanwhile_nothing_is_shown(
    root: CheckedRoot, provider: Exchangeable, exchanged: tuple[int, ...]
) -> None:
    provider.when_making = lambda: provider.exchange(*exchanged)
    assert await _refused(root, 3) == "root-key-changed"


async def test_what_another_server_adopted_meanwhile_counts(
    root: CheckedRoot, provider: Exchangeable, stored: StoredValues
) -> None:
    stored.values[3] = b"of another root".ljust(32, b"\0")
    provider._secrets[3] = bytearray(os.urandom(32))
    assert await _refused(root, 4) == "root-key-changed"
    assert await provider.versions() == (1, 2, 3)


async def test_without_a_value_nothing_can_be_proven(root: CheckedRoot, stored: StoredValues) -> None:
    stored.values.clear()
    assert await _refused(root, 3) == "root-epoch-missing"


async def test_a_question_is_one_round_trip(root: CheckedRoot, provider: Exchangeable) -> None:
    provider.asked = 0
    await root.prf(1, b"question")
    assert provider.asked == 1


class TestCheck:
    async def test_who_asks_at_once_shares_one_look(self, root: CheckedRoot, provider: Exchangeable) -> None:
        asked = provider.asked
        await asyncio.gather(*(root.check(2) for _ in range(50)))
        await root.check(2)
        assert provider.asked == asked + 2  # the first epoch, and the one that was asked for

    async def test_a_failure_is_shared_too(self, root: CheckedRoot, provider: Exchangeable) -> None:
        provider.exchange(2)
        asked = provider.asked
        found = await asyncio.gather(*(root.check(2) for _ in range(50)), return_exceptions=True)
        assert {error.reason for error in found if isinstance(error, RootKeyUnavailable)} == {
            "root-key-changed"
        }
        assert len(found) == 50
        assert provider.asked == asked + 2

    async def test_it_looks_again_after_a_moment(
        self, root: CheckedRoot, provider: Exchangeable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await root.check(2)
        provider.exchange(2)
        monkeypatch.setattr("kms.rootkey.checked._LOOK_EVERY", -1.0)
        root._look_again_at = 0.0
        with pytest.raises(RootKeyUnavailable):
            await root.check(2)

    async def test_the_epoch_in_use_is_looked_at_and_not_only_the_first(
        self, root: CheckedRoot, stored: StoredValues
    ) -> None:
        await root.check(1)
        with pytest.raises(RootKeyUnavailable) as caught:
            await root.check(3)
        assert caught.value.reason == "root-epoch-missing"

    async def test_a_caller_that_leaves_does_not_end_the_look(self, root: CheckedRoot) -> None:
        first = asyncio.create_task(root.check(2))
        await asyncio.sleep(0)
        second = asyncio.create_task(root.check(2))
        await asyncio.sleep(0)
        first.cancel()
        await second
