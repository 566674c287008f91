"""Revocation lists: fetched, renewed before their time, and never replaced by older ones."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

import httpx2
import pytest
from structlog.testing import capture_logs

from kms.errors import CollateralUnavailable, CollateralUnknown, NobodyToAsk
from kms.ports import StoredRevocationList
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.endorsement import load_der
from kms.snp.flags import Signer
from kms.snp.kds_paths import ChainOf, Line, RevocationListOf
from kms.snp.product import Product
from kms.snp.revocation_list import load_revocation_list
from tests.unit.kds.scene import MILAN, OTHER_URL, START, URL, Scene
from tests.unit.kds.virtual_time import in_virtual_time, now

Hierarchies = Mapping[Product, AmdHierarchy]
GUEST = "192.0.2.1"
LIST = RevocationListOf(MILAN)
DAY = 24 * 3600


def stored(scene: Scene, body: bytes, line: Line = MILAN) -> StoredRevocationList:
    ark = load_der(scene.hierarchies[line.product].ark.certificate)
    return StoredRevocationList(
        list=load_revocation_list(body, line=line), line=line, ark=ark.public_key_sha256, source="import"
    )


async def known_numbers(scene: Scene) -> list[int | None]:
    async with scene.service() as service:
        return [each.number for each in await service.revocation_lists()]


@pytest.mark.parametrize("signer", list(Signer))
def test_a_list_is_fetched_with_its_chain_and_stored(
    simulated_hierarchies: Hierarchies, signer: Signer
) -> None:
    @in_virtual_time
    async def check() -> None:
        scene = Scene(simulated_hierarchies)
        line = Line(signer, Product.MILAN)
        body = scene.publish(7, line=line)
        async with scene.service(URL) as service:
            await service.fetch(RevocationListOf(line), GUEST)
            [known] = await service.revocation_lists()
            assert (known.der, known.line, known.serials) == (body, line, frozenset({7}))
            assert [each.line for each in scene.store.lists.values()] == [line]
            await service.fetch(RevocationListOf(line), GUEST)
        assert [path for _, _, path in scene.kds.asked] == [ChainOf(line).path, RevocationListOf(line).path]

    check()


@in_virtual_time
async def test_a_stored_list_that_is_current_is_not_asked_for(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies)
    await scene.store.keep(stored(scene, scene.publish(7)))
    async with scene.service(URL) as service:
        await service.fetch(LIST, GUEST)
        assert scene.kds.asked == []


@in_virtual_time
async def test_a_list_past_its_next_update_is_asked_for(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies)
    await scene.store.keep(stored(scene, scene.publish(7, made=START - timedelta(days=40))))
    scene.publish(7, 8, number=2)
    async with scene.service(URL) as service:
        await service.fetch(LIST, GUEST)
        assert [each.number for each in await service.revocation_lists()] == [2]


@in_virtual_time
async def test_a_failed_attempt_is_remembered_for_a_minute(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies)
    scene.publish(7)

    async def broken(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(500) if "crl" in request.url.path else await scene.kds.genuine(request)

    scene.kds.answer = broken
    async with scene.service(URL) as service:
        with pytest.raises(CollateralUnavailable):
            await service.fetch(LIST, GUEST)
        asked = len(scene.kds.asked)
        failed_at = now()
        for _ in range(3):
            with pytest.raises(CollateralUnavailable) as told:
                await service.fetch(LIST, GUEST)
            assert now() == failed_at
            assert 55 <= told.value.retry_after <= 60
        assert len(scene.kds.asked) == asked
        scene.kds.answer = None
        await asyncio.sleep(61)
        await service.fetch(LIST, GUEST)


@in_virtual_time
async def test_a_service_without_the_list_says_so(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies)
    async with scene.service(URL) as service:
        with pytest.raises(CollateralUnknown):
            await service.fetch(LIST, GUEST)


@in_virtual_time
async def test_a_service_with_nothing_newer_is_not_asked_by_every_guest(
    simulated_hierarchies: Hierarchies,
) -> None:
    scene = Scene(simulated_hierarchies)
    old = scene.publish(7, made=START - timedelta(days=40))
    await scene.store.keep(stored(scene, old))
    async with scene.service(URL) as service:
        for _ in range(5):
            await service.fetch(LIST, GUEST)
        assert len(scene.kds.asked_for(LIST)) == 1
        await asyncio.sleep(61)
        await service.fetch(LIST, GUEST)
        assert len(scene.kds.asked_for(LIST)) == 2


@pytest.mark.parametrize(
    ("what", "failure"),
    [
        ("older", "older-list"),
        ("another root", "unverified"),
        ("another line", "wrong-list"),
        ("future", "from-the-future"),
        ("changed", "unverified"),
        ("garbage", "unreadable"),
        ("certificate", "unreadable"),
    ],
)
def test_lists_that_are_not_kept(simulated_hierarchies: Hierarchies, what: str, failure: str) -> None:
    @in_virtual_time
    async def check() -> None:
        scene = Scene(simulated_hierarchies)
        milan, genoa = simulated_hierarchies[Product.MILAN], simulated_hierarchies[Product.GENOA]
        for hierarchy in (milan, genoa):
            line = Line(Signer.VCEK, hierarchy.product)
            async with scene.service(URL) as service:
                await service.fetch(ChainOf(line), GUEST)
        ours = stored(scene, scene.publish(7, number=5, made=START - timedelta(days=40)))
        await scene.store.keep(ours)
        until = START + timedelta(days=30)
        stranger = AmdHierarchy.generate(Product.MILAN, now=START, rsa_bits=2048)
        good = milan.revocation_list((), number=6, this_update=START, next_update=until)
        bodies = {
            "older": milan.revocation_list((), number=4, this_update=START, next_update=until),
            "another root": milan.revocation_list(
                (), number=6, this_update=START, next_update=until, signer=stranger.ark
            ),
            "another line": genoa.revocation_list((), number=6, this_update=START, next_update=until),
            "future": milan.revocation_list((), number=6, this_update=until, next_update=until),
            "changed": good[:-1] + bytes([good[-1] ^ 1]),
            "garbage": b"x" * 1_000,
            "certificate": milan.ark.certificate,
        }
        scene.kds.lists[MILAN] = bodies[what]
        async with scene.service(URL) as service:
            with capture_logs() as logs, pytest.raises(CollateralUnavailable):
                await service.fetch(LIST, GUEST)
            assert {line["failure"] for line in logs if line["event"] == "collateral-failed"} == {failure}
            assert await service.revocation_lists() == (ours.list,)
        assert list(scene.store.lists.values()) == [ours]

    check()


@in_virtual_time
async def test_an_older_list_of_one_service_leads_to_the_next(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies)
    old = scene.publish(number=1, made=START - timedelta(days=90))
    await scene.store.keep(stored(scene, scene.publish(7, number=2, made=START - timedelta(days=40))))
    new = scene.publish(7, 8, number=3)

    async def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.path == LIST.path and request.url.host == "kds.test":
            return httpx2.Response(200, content=old)
        return await scene.kds.genuine(request)

    scene.kds.answer = answer
    async with scene.service(URL, OTHER_URL) as service:
        await service.fetch(LIST, GUEST)
        assert [each.der for each in await service.revocation_lists()] == [new]


@pytest.fixture
def seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look into the store seldom: virtual days have many seconds."""
    monkeypatch.setattr("kms.kds.service._REFRESH_EVERY", 300.0)


@pytest.mark.usefixtures("seldom")
@in_virtual_time
async def test_lists_are_renewed_daily_without_anybody_asking(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies)
    scene.publish(7, days=365)
    async with scene.service(URL, start=True) as service:
        await service.fetch(LIST, GUEST)
        began = scene.kds.asked[-1][0]
        await asyncio.sleep(3.2 * DAY)
        times = [(at - began) / DAY for at in scene.kds.asked_for(LIST)]
        assert times == pytest.approx([0, 0.95, 1.9, 2.85], abs=0.01)
        scene.publish(7, 8, number=2, days=365)
        await asyncio.sleep(DAY)
        [known] = await service.revocation_lists()
        assert known.serials == {7, 8}


@in_virtual_time
async def test_lists_are_renewed_before_their_next_update(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies)
    await scene.store.keep(stored(scene, scene.publish(7, days=0.25)))  # five hours are left
    async with scene.service(URL, start=True) as service:
        await asyncio.sleep(400)  # soon after the start, in any case
        assert len(scene.kds.asked_for(LIST)) == 1
        await asyncio.sleep(3.5 * 3600)
        assert len(scene.kds.asked_for(LIST)) == 1
        scene.publish(7, 8, number=2, made=scene.clock())
        await asyncio.sleep(1.3 * 3600)
        assert len(scene.kds.asked_for(LIST)) == 2
        assert [each.number for each in await service.revocation_lists()] == [2]
        assert now() < 1_000 + 5 * 3600 + 1_000


@in_virtual_time
async def test_a_list_that_cannot_be_renewed_is_asked_for_gently(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies)
    await scene.store.keep(stored(scene, scene.publish(7, made=START - timedelta(days=40))))
    async with scene.service(URL, start=True):
        await asyncio.sleep(3600)
        assert 30 <= len(scene.kds.asked_for(LIST)) <= 60


@pytest.mark.usefixtures("seldom")
@in_virtual_time
async def test_lists_are_not_renewed_where_nobody_wants_them(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies)
    await scene.store.keep(stored(scene, scene.publish(7)))
    async with scene.service(URL, start=True, renew_lists=False):
        await asyncio.sleep(3 * DAY)
        assert scene.kds.asked == []


@in_virtual_time
async def test_of_two_servers_one_renews(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies)
    scene.kds.latency = 1.0
    scene.publish(7)
    async with scene.service(URL) as one, scene.service(URL) as other:
        await asyncio.gather(one.fetch(LIST, GUEST), other.fetch(LIST, GUEST))
        assert len(await other.revocation_lists()) == 1
    assert len(scene.kds.asked_for(LIST)) == 1


@in_virtual_time
async def test_without_a_service_only_what_is_stored_counts(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies)
    async with scene.service(start=True) as service:
        with pytest.raises(NobodyToAsk):
            await service.fetch(LIST, GUEST)
        await scene.store.keep(stored(scene, scene.publish(7)))
        await asyncio.sleep(1)
        await service.fetch(LIST, GUEST)
        assert len(await service.revocation_lists()) == 1
        newer = stored(scene, scene.publish(7, 8, number=2))
        await scene.store.keep(replace(newer, source="kds"))
        await asyncio.sleep(6)
        assert [each.number for each in await service.revocation_lists()] == [2]
    assert await known_numbers(scene) == [2]


@in_virtual_time
async def test_only_the_first_guests_wait_for_a_list_that_a_service_holds_back(
    simulated_hierarchies: Hierarchies,
) -> None:
    scene = Scene(simulated_hierarchies)
    scene.publish(7)
    held = True

    async def holding(request: httpx2.Request) -> httpx2.Response:
        if held and request.url.path == LIST.path:
            return httpx2.Response(429, headers={"Retry-After": "3600"})
        return await scene.kds.genuine(request)

    async def waited(pause: float) -> float:
        await asyncio.sleep(pause)
        began = now()
        with pytest.raises(CollateralUnavailable) as told:
            await service.fetch(LIST, GUEST)
        assert 1 <= told.value.retry_after <= 100
        return now() - began

    scene.kds.answer = holding
    async with scene.service(URL, start=True) as service:
        at_once = await asyncio.gather(waited(0), waited(2), waited(3.1))
        assert at_once == pytest.approx([3, 1, 0], abs=0.01)
        later = [await waited(60) for _ in range(50)]
        assert later == pytest.approx([0] * 50, abs=0.01)
        assert len(scene.kds.asked_for(LIST)) == 1
        # It goes on for all that, and has the list as soon as it may.
        held = False
        await asyncio.sleep(700)
        assert len(await service.revocation_lists()) == 1


@in_virtual_time
async def test_a_list_that_comes_in_time_is_waited_for(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies)
    scene.kds.latency = 1.4  # its chain and itself
    scene.publish(7)
    async with scene.service(URL) as service:
        await service.fetch(LIST, GUEST)
        assert len(await service.revocation_lists()) == 1


@in_virtual_time
async def test_lesson_10_a_stale_list_is_said_every_hour(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies)
    await scene.store.keep(stored(scene, scene.publish(days=1)))
    with capture_logs() as logs:
        async with scene.service(start=True):
            await asyncio.sleep(0.9 * DAY)
            assert logs == []
            await asyncio.sleep(0.1 * DAY + 3600)
    said = [each for each in logs if each["event"] == "revocation-list-stale"]
    assert {each["line"] for each in said} == {MILAN.folder}
    assert len(said) in {1, 2, 3}
