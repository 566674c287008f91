import asyncio
from collections.abc import Mapping
from dataclasses import replace

import httpx2
import pytest
from structlog.testing import capture_logs

from kms.errors import CollateralUnavailable, CollateralUnknown, LedgerUnavailable, NobodyToAsk
from kms.kds.breaker import State
from kms.simulator.authorities import Role as AuthorityRole
from kms.simulator.hierarchy import AmdHierarchy, _subordinate
from kms.snp.kds_paths import ChainOf
from kms.snp.product import Product
from tests.unit.kds.scene import MILAN, OTHER_URL, START, URL, Scene, invented, report_of, wanted_of
from tests.unit.kds.virtual_time import in_virtual_time, now

Hierarchies = Mapping[Product, AmdHierarchy]
GUEST = "192.0.2.1"


@in_virtual_time
async def test_a_certificate_is_fetched_verified_stored_and_then_there(
    simulated_hierarchies: Hierarchies,
) -> None:
    scene = Scene(simulated_hierarchies)
    chip = scene.chips[0]
    async with scene.service(URL) as service:
        assert await service.leaves(report_of(chip)) == ()
        with capture_logs() as logs:
            await service.fetch(wanted_of(chip), GUEST)
        [leaf] = await service.leaves(report_of(chip))
        assert leaf.der == chip.certificates()[0]
        assert {each.der for each in await service.authorities()} == set(chip.certificates()[1:])
        await service.fetch(wanted_of(chip), GUEST)
    assert [path for _, _, path in scene.kds.asked] == [ChainOf(MILAN).path, wanted_of(chip).path]
    [stored] = scene.store.leaves()
    assert (stored.chip_id, stored.tcb, stored.source) == (chip.chip_id, chip.reported_tcb, "kds")
    assert len(scene.store.certificates) == 3
    assert scene.store.claims == {}
    said = [line["event"] for line in logs]
    assert said == ["collateral-fetched"] * 2
    assert chip.chip_id.hex() not in str(logs)


@pytest.mark.parametrize("product", list(Product))
def test_every_product(simulated_hierarchies: Hierarchies, product: Product) -> None:
    @in_virtual_time
    async def fetch() -> None:
        scene = Scene(simulated_hierarchies)
        chip = scene.chip(7, product)
        scene.kds.chips[chip.chip_id] = chip
        async with scene.service(URL) as service:
            await service.fetch(wanted_of(chip), GUEST)
            assert len(await service.leaves(report_of(chip))) == 1

    fetch()


@in_virtual_time
async def test_a_hundred_callers_are_one_request(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies)
    async with scene.service(URL) as service:
        wanted = wanted_of(scene.chips[0])
        await asyncio.gather(*(service.fetch(wanted, f"192.0.2.{number}") for number in range(100)))
    assert len(scene.kds.asked_for(wanted)) == 1
    assert len(scene.kds.asked_for(ChainOf(MILAN))) == 1


@in_virtual_time
async def test_a_caller_whose_time_is_up_does_not_end_the_fetch(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies)
    scene.kds.latency = 7.0
    wanted = wanted_of(scene.chips[0])
    async with scene.service(URL) as service:
        began = now()
        impatient = asyncio.create_task(service.fetch(wanted, GUEST))
        with pytest.raises(CollateralUnavailable) as told:
            await service.fetch(wanted, GUEST)
        assert now() - began == pytest.approx(5.0, abs=0.01)
        assert 1 <= told.value.retry_after <= 10
        with pytest.raises(CollateralUnavailable):
            await impatient
        await asyncio.sleep(10)
        await service.fetch(wanted, GUEST)
        assert len(await service.leaves(report_of(scene.chips[0]))) == 1
    assert len(scene.kds.asked_for(wanted)) == 1


@in_virtual_time
async def test_a_caller_who_is_cancelled_does_not_end_the_fetch(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies)
    wanted = wanted_of(scene.chips[0])
    async with scene.service(URL) as service:
        caller = asyncio.create_task(service.fetch(wanted, GUEST))
        await asyncio.sleep(0.01)
        caller.cancel()
        await asyncio.sleep(1)
        assert len(scene.store.leaves()) == 1


@in_virtual_time
async def test_two_servers_on_one_database_are_one_request(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies)
    scene.kds.latency = 2.0
    wanted = wanted_of(scene.chips[0])
    async with scene.service(URL) as one, scene.service(URL) as other:
        await asyncio.gather(one.fetch(wanted, GUEST), other.fetch(wanted, GUEST))
        assert len(await other.leaves(report_of(scene.chips[0]))) == 1
    assert len(scene.kds.asked) == 2  # the chain, the certificate
    assert scene.store.claims == {}


@in_virtual_time
async def test_what_a_server_that_died_had_claimed_is_fetched_by_another(
    simulated_hierarchies: Hierarchies,
) -> None:
    scene = Scene(simulated_hierarchies)
    wanted = wanted_of(scene.chips[0])
    assert await scene.store.claim(wanted.path, "the dead one", 12)
    async with scene.service(URL) as service:
        with pytest.raises(CollateralUnavailable):
            await service.fetch(wanted, GUEST)
        assert scene.kds.vceks_asked() == []
        await asyncio.sleep(8)
        assert len(await service.leaves(report_of(scene.chips[0]))) == 1
        # Waiting for a claim costs nothing of the budget.
        [status] = service.status().services
        assert status.budget_left == pytest.approx(100)


@in_virtual_time
async def test_what_another_process_or_an_import_stored_is_found(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies)
    chip = scene.chips[0]
    async with scene.service(start=True) as service, scene.service(URL) as other:
        with pytest.raises(NobodyToAsk):
            await service.fetch(wanted_of(chip), GUEST)
        assert await service.authorities() == ()
        await other.fetch(wanted_of(chip), GUEST)
        await service.fetch(wanted_of(chip), GUEST)
        await service.fetch(ChainOf(MILAN), GUEST)
        assert len(await service.leaves(report_of(chip))) == 1
        await asyncio.sleep(6)
        assert len(await service.authorities()) == 2


@in_virtual_time
async def test_only_certificates_of_the_reported_tcb_are_given(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies)
    chip = scene.chips[0]
    async with scene.service(URL) as service:
        await service.fetch(wanted_of(chip), GUEST)
        before = replace(chip, reported_tcb=replace(chip.reported_tcb, snp=20))
        assert await service.leaves(report_of(before)) == ()
        await service.fetch(wanted_of(before), GUEST)
        assert await service.leaves(report_of(before)) != await service.leaves(report_of(chip))


@in_virtual_time
async def test_404_of_every_service_is_an_answer_and_is_remembered(
    simulated_hierarchies: Hierarchies,
) -> None:
    scene = Scene(simulated_hierarchies)
    async with scene.service(URL, OTHER_URL) as service:
        with capture_logs() as logs, pytest.raises(CollateralUnknown):
            await service.fetch(invented(1), GUEST)
        assert [host for _, host, _ in scene.kds.vceks_asked()] == ["kds.test", "mirror.test"]
        assert "collateral-unknown" in [line["event"] for line in logs]
        for _ in range(3):
            began = now()
            with pytest.raises(CollateralUnknown):
                await service.fetch(invented(1), GUEST)
            assert now() == began
        assert len(scene.kds.vceks_asked()) == 2
        await asyncio.sleep(61)
        with pytest.raises(CollateralUnknown):
            await service.fetch(invented(1), GUEST)
        assert len(scene.kds.vceks_asked()) == 4
        assert [each.breaker for each in service.status().services] == [State.CLOSED] * 2


@in_virtual_time
async def test_404_of_one_service_and_no_answer_of_another_is_no_answer(
    simulated_hierarchies: Hierarchies,
) -> None:
    scene = Scene(simulated_hierarchies)

    async def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.host == "mirror.test" and "SPL=" in str(request.url):
            return httpx2.Response(500)
        return await scene.kds.genuine(request)

    scene.kds.answer = answer
    async with scene.service(URL, OTHER_URL) as service:
        for number in range(4):  # in the end the breaker of one is open: skipped is no answer either
            with pytest.raises(CollateralUnavailable):
                await service.fetch(invented(number), GUEST)
        assert [each.breaker for each in service.status().services] == [State.CLOSED, State.OPEN]


@in_virtual_time
async def test_a_service_on_hold_is_waited_for_before_404_counts(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies)
    held: list[float] = []

    async def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.host == "mirror.test" and not held:
            held.append(now())
            return httpx2.Response(429, headers={"Retry-After": "3"})
        return await scene.kds.genuine(request)

    scene.kds.answer = answer
    async with scene.service(URL, OTHER_URL) as service:
        with pytest.raises(CollateralUnknown):
            await service.fetch(invented(1), GUEST)
        assert scene.kds.asked[-1][0] - held[0] >= 3


@in_virtual_time
async def test_the_next_service_is_asked_at_once_when_one_fails(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies)

    async def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(502) if request.url.host == "kds.test" else await scene.kds.genuine(request)

    scene.kds.answer = answer
    async with scene.service(URL, OTHER_URL) as service:
        began = now()
        await service.fetch(wanted_of(scene.chips[0]), GUEST)
        assert now() - began < 0.5
    assert scene.kds.asked[-1][2] == "/amd" + wanted_of(scene.chips[0]).path


@in_virtual_time
async def test_a_fetch_tries_each_service_twice_and_says_when_to_come_again(
    simulated_hierarchies: Hierarchies,
) -> None:
    scene = Scene(simulated_hierarchies)
    async with scene.service(URL, OTHER_URL) as service:
        await service.fetch(ChainOf(MILAN), GUEST)
        scene.kds.asked.clear()

        async def broken(_: httpx2.Request) -> httpx2.Response:
            return httpx2.Response(500)

        scene.kds.answer = broken
        with capture_logs() as logs, pytest.raises(CollateralUnavailable) as told:
            await service.fetch(wanted_of(scene.chips[0]), GUEST)
        assert 2 <= told.value.retry_after <= 10
        times = [at for at, _, _ in scene.kds.asked]
        assert [host for _, host, _ in scene.kds.asked] == ["kds.test", "mirror.test"] * 2
        assert 0.2 <= times[2] - times[0] <= 0.7
        # One broken chip does not open a breaker by itself.
        assert [each.breaker for each in service.status().services] == [State.CLOSED] * 2
        [said] = {(line["event"], line["failure"]) for line in logs}
        assert said == ("collateral-failed", "status-500")


@in_virtual_time
async def test_an_open_breaker_lets_nothing_pass_then_one_probe(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies, chips=8)

    async def broken(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(500)

    async with scene.service(URL) as service:
        await service.fetch(ChainOf(MILAN), GUEST)
        scene.kds.answer = broken
        for chip in scene.chips[:3]:
            with pytest.raises(CollateralUnavailable):
                await service.fetch(wanted_of(chip), GUEST)
        opened = scene.kds.asked[-1][0]
        assert len(scene.kds.vceks_asked()) == 5
        with pytest.raises(CollateralUnavailable) as told:
            await service.fetch(wanted_of(scene.chips[3]), GUEST)
        assert 60 <= told.value.retry_after <= 72
        assert len(scene.kds.vceks_asked()) == 5
        await asyncio.sleep(opened + 60.1 - now())
        # One probe for all, and when it is answered everybody else goes on.
        scene.kds.answer = None
        scene.kds.latency = 1.0
        scene.kds.most_in_flight = 0
        fetches = [asyncio.create_task(service.fetch(wanted_of(chip), GUEST)) for chip in scene.chips]
        await asyncio.sleep(0.9)
        assert len(scene.kds.vceks_asked()) == 6
        await asyncio.gather(*fetches)
        assert len(scene.kds.vceks_asked()) == 5 + 8
        assert service.status().services[0].breaker is State.CLOSED


@in_virtual_time
async def test_a_probe_that_fails_sends_everybody_away(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies, chips=6)

    async def broken(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(500)

    async with scene.service(URL) as service:
        await service.fetch(ChainOf(MILAN), GUEST)
        scene.kds.answer = broken
        for chip in scene.chips[:3]:
            with pytest.raises(CollateralUnavailable):
                await service.fetch(wanted_of(chip), GUEST)
        await asyncio.sleep(60)
        with capture_logs() as logs:
            outcomes = await asyncio.gather(
                *(service.fetch(wanted_of(chip), GUEST) for chip in scene.chips), return_exceptions=True
            )
        assert [type(each) for each in outcomes] == [CollateralUnavailable] * 6
        assert len(scene.kds.vceks_asked()) == 6
        assert [line["event"] for line in logs].count("kds-breaker-opened") == 1


@in_virtual_time
async def test_the_chain_is_renewed_when_amd_has_a_new_ask(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies)
    old = simulated_hierarchies[Product.MILAN]
    new_ask = _subordinate(Product.MILAN, AuthorityRole.ASK, old.ark, START, 2048)
    new = AmdHierarchy(Product.MILAN, ark=old.ark, ask=new_ask, asvk=None)
    async with scene.service(URL) as service:
        if service._kds is None:
            raise AssertionError("it was given a URL")
        await service.fetch(ChainOf(MILAN), GUEST)
        await asyncio.sleep(4_000)
        scene.kds.hierarchies = {**simulated_hierarchies, Product.MILAN: new}
        scene.hierarchies = scene.kds.hierarchies
        chip = scene.chip(1)
        scene.kds.chips[chip.chip_id] = chip
        service._kds.endpoints[0].hold(2.0)  # after which requests go out one by one
        await service.fetch(wanted_of(chip), GUEST)
        assert len(await service.leaves(report_of(chip))) == 1
        assert len(await service.authorities()) == 3
    assert len(scene.kds.asked_for(ChainOf(MILAN))) == 2
    assert len(scene.kds.asked_for(wanted_of(chip))) == 1


@in_virtual_time
async def test_a_database_that_is_gone_is_no_answer_and_loses_nothing(
    simulated_hierarchies: Hierarchies,
) -> None:
    scene = Scene(simulated_hierarchies)
    chip = scene.chips[0]
    async with scene.service(URL, start=True) as service:
        scene.store.broken = True
        with pytest.raises(LedgerUnavailable):
            await service.authorities()
        scene.store.broken = False
        await service.authorities()
        scene.store.broken = True
        with pytest.raises(CollateralUnavailable):
            await service.fetch(wanted_of(chip), GUEST)
        assert scene.kds.asked == []
        scene.store.broken = False
        await service.fetch(ChainOf(MILAN), GUEST)

        async def answer(request: httpx2.Request) -> httpx2.Response:
            scene.store.broken = True
            return await scene.kds.genuine(request)

        scene.kds.answer = answer
        await service.fetch(wanted_of(chip), GUEST)
        # What was hard to get is known all the same, and stored when that is possible.
        assert len(await service.leaves(report_of(chip))) == 1
        assert scene.store.leaves() == []


@in_virtual_time
async def test_a_defect_in_a_fetch_leaves_nobody_waiting(
    simulated_hierarchies: Hierarchies, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(simulated_hierarchies)

    def accept(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("kms.kds.worker.accept_chain", accept)
    async with scene.service(URL) as service:
        with capture_logs() as logs, pytest.raises(CollateralUnavailable):
            await service.fetch(wanted_of(scene.chips[0]), GUEST)
        assert "background-failed" in [line["event"] for line in logs]
        assert service.status().fetching == 0
        assert service.status().services[0].in_flight == 0


@in_virtual_time
async def test_stopping_ends_what_goes_on(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies)
    scene.kds.latency = 8
    async with scene.service(URL, start=True) as service:
        assert service.alive
        caller = asyncio.create_task(service.fetch(wanted_of(scene.chips[0]), GUEST))
        await asyncio.sleep(1)
        await service.stop()
        with pytest.raises(CollateralUnavailable):
            await caller
        assert not service.alive
    assert scene.store.claims == {}


@in_virtual_time
async def test_a_refresh_that_fails_is_said_and_the_next_one_comes(
    simulated_hierarchies: Hierarchies,
) -> None:
    scene = Scene(simulated_hierarchies)
    async with scene.service(URL, start=True) as service, scene.service(URL) as other:
        assert await service.authorities() == ()
        scene.store.broken = True
        with capture_logs() as logs:
            await asyncio.sleep(6)
        assert [(line["event"], line["what"]) for line in logs] == [("collateral-store-failed", "refresh")]
        scene.store.broken = False
        await other.fetch(ChainOf(MILAN), GUEST)
        await asyncio.sleep(6)
        assert len(await service.authorities()) == 2
        assert service.alive


@in_virtual_time
async def test_the_404s_remembered_are_bounded(
    simulated_hierarchies: Hierarchies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kms.kds.fetching._MOST_UNKNOWN", 2)
    scene = Scene(simulated_hierarchies)
    async with scene.service(URL) as service:
        for number in (0, 1, 2, 2, 1, 0):
            with pytest.raises(CollateralUnknown):
                await service.fetch(invented(number), GUEST)
    assert len(scene.kds.vceks_asked()) == 4


@in_virtual_time
async def test_a_chain_that_cannot_be_had_is_why_a_certificate_cannot(
    simulated_hierarchies: Hierarchies,
) -> None:
    scene = Scene(simulated_hierarchies)

    async def answer(request: httpx2.Request) -> httpx2.Response:
        if "cert_chain" in request.url.path:
            return httpx2.Response(404)
        return await scene.kds.genuine(request)

    scene.kds.answer = answer
    async with scene.service(URL) as service:
        # Not "unknown": that a service has no chain proves nothing against a chip.
        with pytest.raises(CollateralUnavailable):
            await service.fetch(wanted_of(scene.chips[0]), GUEST)
    assert scene.kds.vceks_asked() == []


@in_virtual_time
async def test_who_waits_for_another_server_takes_no_place_of_those_who_can_ask(
    simulated_hierarchies: Hierarchies,
) -> None:
    scene = Scene(simulated_hierarchies, chips=9)
    *claimed, free = map(wanted_of, scene.chips)
    async with scene.service(URL) as service:
        await service.fetch(ChainOf(MILAN), GUEST)
        for wanted in claimed:
            assert await scene.store.claim(wanted.path, "another", 3_600)
        waiting = [asyncio.create_task(service.fetch(wanted, GUEST)) for wanted in claimed]
        await asyncio.sleep(0.1)
        began = now()
        await service.fetch(free, GUEST)
        assert now() - began < 0.1
        assert {type(each) for each in await asyncio.gather(*waiting, return_exceptions=True)} == {
            CollateralUnavailable
        }


@in_virtual_time
async def test_what_was_stored_just_before_our_claim_is_not_asked_for(
    simulated_hierarchies: Hierarchies, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(simulated_hierarchies)
    wanted = wanted_of(scene.chips[0])
    async with scene.service(URL) as service, scene.service(URL) as other:
        await service.fetch(ChainOf(MILAN), GUEST)
        claim = scene.store.claim

        async def claim_after_another(what: str, owner: str, seconds: float) -> bool:
            monkeypatch.setattr(scene.store, "claim", claim)
            await other.fetch(wanted, GUEST)
            return await claim(what, owner, seconds)

        monkeypatch.setattr(scene.store, "claim", claim_after_another)
        await service.fetch(wanted, GUEST)
    assert len(scene.kds.asked_for(wanted)) == 1
