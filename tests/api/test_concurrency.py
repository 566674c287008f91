"""Many requests at once: one winner for each challenge, and no key by a policy that moved on."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from kms.desk import ReleaseDesk
from kms.keys.epochs import EpochTable
from kms.ledger.entries import DecisionEntry
from kms.policy.revision import Revision
from kms.ports import Decisions
from kms.request import report_data
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.product import Product
from tests.changer import put
from tests.world import World, open_world

Hierarchies = Mapping[Product, AmdHierarchy]


async def test_lesson_36_one_of_fifty_requests_wins_a_challenge(world: World) -> None:
    challenge = await world.challenge()
    requests = [await world.request(challenge=challenge) for _ in range(50)]
    answers = await asyncio.gather(
        *(world.post(each, world.machine.evidence(report_data(each))) for each in requests)
    )
    assert Counter((each.status, each.code) for each in answers) == {
        (200, None): 1,
        (409, "challenge-used"): 49,
    }
    [record] = await world.records()
    [won] = [each for each in answers if each.status == 200]
    assert record.entry["release_id"] == won.body["release_id"]


async def test_lesson_36_the_same_request_fifty_times_has_one_answer(world: World) -> None:
    request = await world.request()
    evidence = world.machine.evidence(report_data(request))
    answers = await asyncio.gather(*(world.post(request, evidence) for _ in range(50)))
    assert Counter(each.status for each in answers) == {200: 1, 409: 49}
    assert len(await world.records()) == 1


async def test_lesson_36_a_refusal_and_a_release_cannot_both_have_a_challenge(world: World) -> None:
    challenge = await world.challenge()
    keys = [[{"name": name, "scope": "app"}] for name in ("disk", "custom:forbidden")] * 10
    requests = [await world.request(challenge=challenge, keys=each) for each in keys]
    answers = await asyncio.gather(
        *(world.post(each, world.machine.evidence(report_data(each))) for each in requests)
    )
    assert Counter(each.status for each in answers)[409] == 19
    assert len(await world.records()) == 1
    assert await world.spent() == 1


async def test_releases_during_a_hundred_policy_changes(world: World) -> None:
    """Each release names a revision that allows it, and has exactly one record, which names it too."""
    allowing, denying = {}, {}
    for number in range(4):
        digest = await world.apply_changed(app={"name": f"allowing-{number}"})
        allowing[digest] = await world.changer.history.load(digest)
        digest = await world.apply_changed(app={"name": f"denying-{number}", "keys": ["env"]})
        denying[digest] = await world.changer.history.load(digest)
    revisions: list[Revision] = [
        each for pair in zip(allowing.values(), denying.values(), strict=True) for each in pair if each
    ]
    answers = []
    done = asyncio.Event()

    async def switch() -> None:
        for number in range(100):
            await put(world.changer, revisions[number % len(revisions)])
            await asyncio.sleep(0)
            if number % 25 == 0:
                # A rest, in turn under a revision that allows and one that denies.
                await world.followed.refresh()
                answers.append(await world.ask())
        done.set()

    async def guest() -> None:
        while not done.is_set():
            answers.append(await world.ask())

    await asyncio.gather(switch(), *(guest() for _ in range(4)))
    statuses = Counter((each.status, each.code) for each in answers)
    assert set(statuses) <= {
        (200, None),
        (403, "policy-denied"),
        (503, "ledger-unavailable"),
    }
    assert statuses[200, None]
    assert statuses[403, "policy-denied"]
    by_id: dict[str, list[dict[str, object]]] = {}
    for record in await world.records():
        by_id.setdefault(record.entry["release_id"], []).append(record.entry)
    for answer in answers:
        if answer.status == 503:
            assert answer.reasons == ["policy-moving"]
            assert answer.body["request_id"] not in by_id
            continue
        [entry] = by_id.pop(answer.body["release_id" if answer.status == 200 else "request_id"])
        assert entry["outcome"] == ("released" if answer.status == 200 else "refused")
        if answer.status == 200:
            assert answer.body["policy_revision"] == entry["policy_revision"]
            assert answer.body["policy_revision"] in allowing
        else:
            assert entry["policy_revision"] in denying
    assert by_id == {}


class Interrupted:
    """Decisions that let something happen between the judgement and its record."""

    def __init__(self, inner: Decisions) -> None:
        self._inner = inner
        self.before_record: Callable[[], Awaitable[None]] | None = None
        self.judged: list[tuple[str, str | None]] = []

    async def is_spent(self, challenge: bytes) -> bool:
        return await self._inner.is_spent(challenge)

    async def record(
        self,
        entry: DecisionEntry,
        challenge_expires_at: datetime | None,
        judged_by: EpochTable | None = None,
    ) -> None:
        self.judged.append((entry.outcome, entry.policy_revision))
        if self.before_record is not None:
            await self.before_record()
        await self._inner.record(entry, challenge_expires_at, judged_by)


class TestAPolicyThatMovesBetweenJudgementAndRecord:
    @staticmethod
    def interrupted(desk: ReleaseDesk) -> ReleaseDesk:
        return replace(desk, decisions=Interrupted(desk.decisions))

    async def test_the_request_is_judged_again(
        self, tmp_path: Path, simulated_hierarchies: Hierarchies
    ) -> None:
        async with open_world(
            tmp_path, simulated_hierarchies[Product.MILAN], change_desk=self.interrupted
        ) as world:
            decisions = world.desk.decisions
            assert isinstance(decisions, Interrupted)
            allowing = await world.in_force()
            denying = await world.apply_changed(app={"keys": []})
            denied = await world.changer.history.load(denying)
            await world.apply(*world.default_policy())
            assert denied is not None

            async def switch() -> None:
                decisions.before_record = None
                await put(world.changer, denied)

            decisions.before_record = switch
            answer = await world.ask()
            answer.check_refused(403, "policy-denied", "key-not-allowed")
            assert decisions.judged == [("released", allowing), ("refused", denying)]
            [record] = await world.records()
            assert record.entry["policy_revision"] == denying
            assert "sealed" not in answer.body

    async def test_a_refusal_is_judged_again_too(
        self, tmp_path: Path, simulated_hierarchies: Hierarchies
    ) -> None:
        async with open_world(
            tmp_path, simulated_hierarchies[Product.MILAN], change_desk=self.interrupted
        ) as world:
            decisions = world.desk.decisions
            assert isinstance(decisions, Interrupted)
            allowing = await world.changer.history.load((await world.in_force()) or "")
            await world.apply_changed(app={"keys": []})
            assert allowing is not None

            async def switch() -> None:
                decisions.before_record = None
                await put(world.changer, allowing)

            decisions.before_record = switch
            assert (await world.ask()).status == 200
            assert [outcome for outcome, _ in decisions.judged] == ["refused", "released"]
            assert len(await world.records()) == 1

    async def test_a_policy_that_never_rests_is_a_503_and_no_key(
        self, tmp_path: Path, simulated_hierarchies: Hierarchies
    ) -> None:
        async with open_world(
            tmp_path, simulated_hierarchies[Product.MILAN], change_desk=self.interrupted
        ) as world:
            decisions = world.desk.decisions
            assert isinstance(decisions, Interrupted)
            digests = [await world.apply_changed(app={"name": name}) for name in ("one", "two")]
            stored = [await world.changer.history.load(digest) for digest in digests]
            turn = 0

            async def switch() -> None:
                nonlocal turn
                turn += 1
                revision = stored[turn % 2]
                assert revision is not None
                await put(world.changer, revision)

            decisions.before_record = switch
            answer = await world.ask()
            while answer.status == 200:  # pragma: no cover -- the first switch may name what is in force
                answer = await world.ask()
            answer.check_refused(503, "ledger-unavailable", "policy-moving")
            assert "sealed" not in answer.body
