"""What anybody may ask of an app's keys and of the KMS: the public halves, signed, and nothing more."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from typing_extensions import override

from kms.desk import ReleaseDesk
from kms.encoding import b64url, from_base64
from kms.errors import RootKeyUnavailable
from kms.http import shared_work
from kms.identifiers import AppId
from kms.keys.env_key import read_env_key
from kms.keys.env_sealing import SealedEnv
from kms.keys.hand_over import follow
from kms.keys.identity import Identity
from kms.keys.root_messages import FOUNDING_EPOCH
from kms.keys.signed import Signed
from kms.labels import ENV_KEY, SIGNING_STATEMENT
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.product import Product
from kms.strict_json import Fields
from tests.roots import ROOT_SECRET, FixedEpochs, FixedIdentities, MemoryRoot
from tests.world import APP_ID, NOW, Answer, World, app_document, open_world

Hierarchies = Mapping[Product, AmdHierarchy]
KINDS = ["env", "signing"]
LABELS = {"env": ENV_KEY, "signing": SIGNING_STATEMENT}
SECRET = b"s" * 32


@dataclass(slots=True)
class CountingRoot(MemoryRoot):
    """Counts what is asked of it."""

    asked: list[int] = field(default_factory=list)
    gone: bool = False
    answering: asyncio.Event = field(default_factory=asyncio.Event)

    @override
    async def prf(self, epoch: int, message: bytes) -> bytes:
        self.asked.append(epoch)
        await self.answering.wait()
        if self.gone:
            raise RootKeyUnavailable("gone", reason="root-key-unreachable")
        return await MemoryRoot.prf(self, epoch, message)


class NoPolicy:
    """Implements `kms.ports.Policies`: none is in force yet."""

    async def active(self) -> None:
        return None

    async def refresh(self) -> None:
        return None


async def get(world: World, kind: str, query: str = "", *, app: str = APP_ID) -> Answer:
    return Answer(await world.client.get(f"/v1/apps/{app}/{kind}-key{query}"))


async def published(world: World, kind: str, query: str = "") -> dict[str, Any]:
    """Give what is published, with its signature checked."""
    answer = await get(world, kind, query)
    assert answer.status == 200, answer.body
    assert answer.response.headers["cache-control"] == "no-store"
    signed = Signed.read(Fields(answer.body, "answer"))
    assert signed.identity == world.desk.identity.public_key
    signed.verify(LABELS[kind])
    payload: dict[str, Any] = json.loads(signed.payload)
    return payload


@pytest.fixture
def root() -> CountingRoot:
    root = CountingRoot({FOUNDING_EPOCH: ROOT_SECRET, 2: SECRET})
    root.answering.set()
    return root


@pytest.fixture
async def rotated(
    tmp_path: Path, simulated_hierarchies: Hierarchies, root: CountingRoot
) -> AsyncIterator[World]:
    """A world of two epochs; `root` counts from its start on."""

    def two_epochs(desk: ReleaseDesk) -> ReleaseDesk:
        return replace(desk, root_key=root, epochs=FixedEpochs(2))

    async with open_world(tmp_path, simulated_hierarchies[Product.MILAN], change_desk=two_epochs) as world:
        yield world


class TestWhatIsPublished:
    async def test_the_env_key_is_the_one_that_guests_get(self, world: World) -> None:
        payload = await published(world, "env")
        assert list(payload) == ["app_id", "epoch", "algorithm", "public_key", "issued_at"]
        assert (payload["app_id"], payload["algorithm"]) == (APP_ID, "x25519")
        assert datetime.fromisoformat(payload["issued_at"]) == NOW
        [key] = (await world.fetch(keys=[{"name": "env", "scope": "app"}])).keys
        assert (payload["epoch"], from_base64(payload["public_key"])) == (key.epoch, key.public_key)

    async def test_the_signing_key_is_the_statement_that_guests_get(self, world: World) -> None:
        [key] = (await world.fetch(keys=[{"name": "signing", "scope": "app"}])).keys
        assert key.statement is not None
        assert (await get(world, "signing")).body == key.statement.to_json()

    async def test_an_owner_seals_and_the_guest_opens(self, world: World) -> None:
        signed = Signed.read(Fields((await get(world, "env")).body, "answer"))
        app_id = AppId.from_hex(APP_ID)
        sealed = SealedEnv.seal(b"A=1\n", read_env_key(signed, app_id=app_id, epoch=None, now=NOW))
        [key] = (await world.fetch(keys=[{"name": "env", "scope": "app", "epoch": sealed.epoch}])).keys
        assert key.value is not None
        assert sealed.open(key.value, app_id=app_id, epoch=key.epoch) == b"A=1\n"

    async def test_each_answer_has_its_own_date(self, world: World) -> None:
        before = await published(world, "env")
        world.now[0] += timedelta(hours=1)
        after = await published(world, "env")
        assert before["issued_at"] != after["issued_at"]
        assert before["public_key"] == after["public_key"]

    async def test_nothing_of_it_is_secret_or_recorded(self, world: World) -> None:
        answer = await get(world, "env")
        payload = json.loads(from_base64(answer.body["payload"]))
        [key] = (await world.fetch(keys=[{"name": "env", "scope": "app"}])).keys
        assert key.value is not None
        assert b64url(key.value) not in answer.response.text
        own = X25519PrivateKey.from_private_bytes(key.value).public_key().public_bytes_raw()
        assert payload["public_key"] == b64url(own)
        assert len(await world.records()) == 1  # the release


@pytest.mark.parametrize("kind", KINDS)
class TestWhoIsPublished:
    async def test_an_app_that_nobody_listed(self, world: World, kind: str) -> None:
        (await get(world, kind, app="77" * 20)).check_refused(404, "not-found")

    @pytest.mark.parametrize("app", ["zz", "00" * 20, "11" * 19, APP_ID.upper(), "%00", "a" * 5000])
    async def test_an_id_that_is_none(self, world: World, kind: str, app: str) -> None:
        (await get(world, kind, app=app)).check_refused(404, "not-found")

    async def test_an_app_that_may_not_have_the_key(self, world: World, kind: str) -> None:
        await world.apply_changed(app={"keys": ["disk", *(set(KINDS) - {kind})]})
        (await get(world, kind)).check_refused(404, "not-found")
        await world.apply_changed(app={"keys": [kind]})
        assert (await get(world, kind)).status == 200

    async def test_a_revoked_app(self, world: World, kind: str) -> None:
        """What is sealed to it from now on would wait for whoever takes it over."""
        await world.apply_changed(revoked={"apps": [APP_ID]})
        (await get(world, kind)).check_refused(404, "not-found")

    async def test_an_expired_app(self, world: World, kind: str) -> None:
        await world.apply_changed(app={"expires_at": "2026-11-21T12:30:00Z"})
        assert (await get(world, kind)).status == 200
        world.now[0] += timedelta(hours=1)
        (await get(world, kind)).check_refused(404, "not-found")

    async def test_while_there_is_no_policy(
        self, tmp_path: Path, simulated_hierarchies: Hierarchies, kind: str
    ) -> None:
        def without(desk: ReleaseDesk) -> ReleaseDesk:
            return replace(desk, policies=NoPolicy())

        async with open_world(tmp_path, simulated_hierarchies[Product.MILAN], change_desk=without) as world:
            (await get(world, kind)).check_refused(404, "not-found")

    @pytest.mark.parametrize(
        "query",
        [f"?epoch={text}" for text in (0, -1, "1.0", "", "%D9%A1", 10**16, "1&epoch=2", "1&more=1")],
    )
    async def test_a_query_that_is_none(self, world: World, kind: str, query: str) -> None:
        (await get(world, kind, query)).check_refused(400, "malformed-request")


class TestEpochs:
    async def test_as_asked_else_pinned_else_current(self, rotated: World) -> None:
        current, first = await published(rotated, "env"), await published(rotated, "env", "?epoch=1")
        assert (current["epoch"], first["epoch"]) == (2, 1)
        assert current["public_key"] != first["public_key"]
        await rotated.apply_changed(app={"epoch": 1})
        pinned = await published(rotated, "env")
        assert (pinned["epoch"], pinned["public_key"]) == (1, first["public_key"])
        assert (await published(rotated, "env", "?epoch=2"))["epoch"] == 2

    @pytest.mark.parametrize("kind", KINDS)
    async def test_one_that_is_given_to_nobody(self, world: World, kind: str) -> None:
        answer = await get(world, kind, "?epoch=2")
        answer.check_refused(404, "not-found", "epoch-unavailable")
        await world.apply_changed(app={"epoch": 2})
        (await get(world, kind)).check_refused(404, "not-found", "epoch-unavailable")

    async def test_nothing_is_sealed_to_a_retired_epoch(
        self, tmp_path: Path, simulated_hierarchies: Hierarchies, root: CountingRoot
    ) -> None:
        def retired(desk: ReleaseDesk) -> ReleaseDesk:
            return replace(desk, root_key=root, epochs=FixedEpochs(2, frozenset({1})))

        async with open_world(tmp_path, simulated_hierarchies[Product.MILAN], change_desk=retired) as world:
            (await get(world, "env", "?epoch=1")).check_refused(404, "not-found", "epoch-unavailable")
            assert (await published(world, "env"))["epoch"] == 2
            body = (await world.client.get("/v1/identity")).json()
            assert body["epochs"] == [2]


class TestTheRoot:
    async def test_strangers_cannot_make_it_work_without_end(
        self, rotated: World, root: CountingRoot
    ) -> None:
        other = "ab" * 32
        await rotated.apply(*rotated.default_policy(), app_document(rotated.chip, id=other, name="other"))
        root.asked.clear()
        for _ in range(5):
            for kind in KINDS:
                for app in (APP_ID, other):
                    assert (await get(rotated, kind, app=app)).status == 200
                    assert (await get(rotated, kind, "?epoch=1", app=app)).status == 200
            await get(rotated, "env", app="77" * 20)
            await get(rotated, "env", "?epoch=3")
        assert sorted(root.asked) == [1, 1, 2, 2]

    async def test_while_it_is_gone_what_is_known_is_published_and_the_rest_is_503(
        self, rotated: World, root: CountingRoot, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shared_work, "FAILURE_LASTS", 0.1)
        before = await published(rotated, "env")
        root.gone = True
        assert await published(rotated, "env") == before
        answer = await get(rotated, "env", "?epoch=1")
        answer.check_refused(503, "root-key-unavailable", "root-key-unreachable")
        root.gone = False
        await asyncio.sleep(0.5)
        assert (await published(rotated, "env", "?epoch=1"))["epoch"] == 1

    async def test_only_so_many_strangers_wait_for_it(self, rotated: World, root: CountingRoot) -> None:
        root.answering.clear()
        waiting = [asyncio.create_task(get(rotated, "env")) for _ in range(80)]
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result().check_refused(503, "server-busy")
        root.answering.set()
        statuses = [(await task).status for task in waiting]
        assert (statuses.count(200), statuses.count(503)) == (64, 16)
        assert root.asked == [2]

    async def test_while_it_is_gone_strangers_do_not_ask_it_one_by_one(
        self, rotated: World, root: CountingRoot, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shared_work, "FAILURE_LASTS", 60.0)  # longer than this takes
        root.gone = True
        for answer in await asyncio.gather(*(get(rotated, kind) for kind in KINDS * 30)):
            answer.check_refused(503, "root-key-unavailable", "root-key-unreachable")
        (await get(rotated, "signing")).check_refused(503, "root-key-unavailable", "root-key-unreachable")
        assert root.asked == [2]

    async def test_a_revocation_wins_over_what_is_known(self, world: World) -> None:
        await published(world, "env")
        await world.apply_changed(revoked={"apps": [APP_ID]})
        (await get(world, "env")).check_refused(404, "not-found")


class TestIdentity:
    async def test_a_kms_of_one_identity(self, world: World) -> None:
        body = (await world.client.get("/v1/identity")).json()
        assert (body["previous"], body["epochs"]) == ([], [1])

    async def test_hand_overs_are_published_oldest_first(
        self, tmp_path: Path, simulated_hierarchies: Hierarchies
    ) -> None:
        generations = tuple(Identity.from_prf(bytes([number]) * 64) for number in (1, 2, 3))

        def rotated(desk: ReleaseDesk) -> ReleaseDesk:
            return replace(
                desk, identity=generations[-1], identities=FixedIdentities(generations, made_at=NOW)
            )

        async with open_world(tmp_path, simulated_hierarchies[Product.MILAN], change_desk=rotated) as world:
            body = (await world.client.get("/v1/identity")).json()
            chain = [Signed.read(Fields(each, "hand-over")) for each in body["previous"]]
            follow(generations[0].public_key, chain, from_base64(body["identity"]))
            assert len(chain) == 2
