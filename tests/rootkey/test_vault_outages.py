"""A real Vault that is sealed, slow, hanging or gone: everybody is answered in time, and it heals."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kms.errors import RootKeyUnavailable
from kms.keys.root_messages import Mode
from kms.rootkey import RootAccess, RootProvider, open_provider
from tests.certificates import Authority, pem
from tests.rootkey.vault_roots import QUESTION, make, new_root, opened, reason
from tests.servers.vault import SlowProxy, VaultServer

pytestmark = [pytest.mark.enable_socket, pytest.mark.xdist_group("vault")]

_HEALED_WITHIN = 2.5  # seconds


@pytest.fixture
async def root(vault: VaultServer) -> AsyncIterator[RootProvider]:
    """A root whose calls have one second each."""
    access = RootAccess(mode=Mode.PRODUCTION, vault=vault.vault_access(timeout=timedelta(seconds=1)))
    async with new_root(vault, access=access) as new:
        yield new


async def _healed(root: RootProvider, before: tuple[bytes, ...]) -> None:
    """Ask as guests that come again do, until it answers: with the same key."""
    end = time.monotonic() + _HEALED_WITHIN
    while True:
        try:
            assert await root.outputs(1, QUESTION) == before
        except RootKeyUnavailable:
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.1)
        else:
            return


async def test_sealed_and_unsealed(vault: VaultServer, root: RootProvider) -> None:
    before = await root.outputs(1, QUESTION)
    vault.seal()
    try:
        assert {await reason(root) for _ in range(5)} == {"root-key-sealed"}
        with pytest.raises(RootKeyUnavailable) as caught:
            await root.versions()
        assert caught.value.retry_after > 0
    finally:
        vault.unseal()
    await _healed(root, before)


async def test_stopped_and_started_again(vault: VaultServer, root: RootProvider) -> None:
    before = await root.outputs(1, QUESTION)
    vault.stop()
    try:
        assert {await reason(root) for _ in range(5)} == {"root-key-unreachable"}
    finally:
        vault.start()
    try:
        await asyncio.sleep(1.1)
        assert await reason(root) == "root-key-sealed"
    finally:
        vault.unseal()
    await _healed(root, before)


async def test_slow_and_fast_again(vault: VaultServer, root: RootProvider) -> None:
    uri = vault.fresh_uri("vault-transit")
    await make(uri, vault.access(Mode.PRODUCTION))
    with SlowProxy(vault.port) as proxy:
        access = vault.vault_access(address=proxy.address, timeout=timedelta(seconds=1))
        async with opened(uri, RootAccess(mode=Mode.PRODUCTION, vault=access)) as slow:
            before = await slow.outputs(1, QUESTION)
            proxy.delay = 5.0
            started = time.monotonic()
            assert await reason(slow) == "root-key-slow"
            assert time.monotonic() - started < 4.5
            proxy.delay = 0.0
            await _healed(slow, before)


async def test_two_hundred_releases_before_a_vault_that_hangs(vault: VaultServer, root: RootProvider) -> None:
    before = await root.outputs(1, QUESTION)
    with vault.paused():
        started = time.monotonic()
        reasons = await asyncio.gather(*(reason(root) for _ in range(200)))
        assert set(reasons) == {"root-key-slow"}
        assert time.monotonic() - started < 20

        # From now on nobody waits but the one who looks.
        asked = [asyncio.create_task(reason(root)) for _ in range(20)]
        done, _ = await asyncio.wait(asked, timeout=0.2)
        assert len(done) >= 19
        assert {await each for each in asked} == {"root-key-slow"}
    await _healed(root, before)
    answers = await asyncio.gather(*(root.outputs(1, QUESTION) for _ in range(200)))
    assert set(answers) == {before}


async def test_a_key_deleted_in_the_middle_of_two_hundred_releases(
    vault: VaultServer, root: RootProvider
) -> None:
    before = await root.outputs(1, QUESTION)
    name = root._location.name  # type: ignore[attr-defined]

    async def release(delay: float) -> tuple[bytes, ...] | str:
        await asyncio.sleep(delay)
        try:
            return await root.outputs(1, QUESTION)
        except RootKeyUnavailable as error:
            return error.reason

    releases = [asyncio.create_task(release(each / 200)) for each in range(200)]
    await asyncio.sleep(0.5)
    await asyncio.to_thread(vault.delete_key, name)
    assert set(await asyncio.gather(*releases)) == {before, "root-key-missing"}


async def test_a_server_under_another_ca_gets_nothing(vault: VaultServer, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    other.write_text(pem(Authority("Other CA", now=datetime.now(UTC)).certificate))
    access = RootAccess(mode=Mode.PRODUCTION, vault=vault.vault_access(ca=other))
    with pytest.raises(RootKeyUnavailable, match="certificate") as caught:
        await open_provider(vault.fresh_uri("vault-transit"), access)
    assert caught.value.reason == "root-key-unreachable"


async def test_the_systems_cas_do_not_know_it_either(vault: VaultServer) -> None:
    access = RootAccess(mode=Mode.PRODUCTION, vault=vault.vault_access(ca=None))
    with pytest.raises(RootKeyUnavailable, match="certificate"):
        await open_provider(vault.fresh_uri("vault-transit"), access)
