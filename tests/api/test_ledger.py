"""The ledger over HTTP: what anybody gets, what auditors get, and that the two fit together."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import UpdateBase, delete, update

from kms.database.engine import writing
from kms.database.schema import entries as entries_table
from kms.database.schema import ledger_checkpoints, ledger_tiles
from kms.encoding import from_base64
from kms.errors import Forbidden, NotFound
from kms.http import ledger_schemas as shapes
from kms.keys.signed import Signed
from kms.ledger.ledger_key import LedgerKey
from kms.ledger.tiles import tile_names
from kms.operators import Actor, Proof, Role
from kms.remote_office import open_remote
from kms.strict_json import Fields
from tests import ledger_verifier
from tests.ledgers import ADMIN, checkpoint_key, record_actions, sequencer
from tests.world import World

AUDITOR = Actor(name="eve", role=Role.AUDITOR, proof=Proof.COMMAND_LINE)
OPERATOR = Actor(name="oscar", role=Role.OPERATOR, proof=Proof.COMMAND_LINE)
UNKNOWN = "f" * 32
IMMUTABLE = "public, max-age=31536000, immutable"


def check_problem(response: httpx2.Response, status: int, code: str, *reasons: str) -> None:
    body = response.json()
    assert (response.status_code, body["code"], body.get("reasons", [])) == (status, code, [*reasons]), body
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["cache-control"] == "no-store"


async def get(world: World, path: str) -> httpx2.Response:
    return await world.client.get(path)


async def all_entries(world: World, page: int = 500) -> list[dict[str, Any]]:
    found: list[Any] = []
    start: int | None = 0
    while start is not None:
        answer: dict[str, Any] = await world.office.ledger.entries(
            AUDITOR, start=start, limit=page, kind=None
        )
        found += answer["entries"]
        start = answer["next"]
    return found


async def test_a_promised_release_is_proven_from_the_next_checkpoint_on(world: World, tmp_path: Path) -> None:
    answer = (await world.ask()).body
    path = f"/v1/ledger/proofs/{answer['release_id']}"
    check_problem(await get(world, path), 404, "not-found", "not-in-a-checkpoint-yet")
    check_problem(await get(world, "/ledger/checkpoint"), 404, "not-found", "not-in-a-checkpoint-yet")
    await sequencer(world, tmp_path).round()
    response = await get(world, path)
    proof = shapes.ProofAnswer(**response.json()).model_dump()
    assert response.headers["cache-control"] == "no-cache"
    # By the independent verifier alone, from the key to the receipt.
    key = (await get(world, "/v1/ledger")).json()["key"]
    _, size, root = ledger_verifier.open_checkpoint(proof["checkpoint"], key)
    assert size == proof["size"]
    promised = json.loads(from_base64(answer["receipt"]["payload"]))
    assert promised["entry_sha256"] == proof["entry_sha256"]
    ledger_verifier.check_inclusion(
        bytes.fromhex(proof["entry_sha256"]),
        proof["index"],
        size,
        [from_base64(each) for each in proof["inclusion"]],
        root,
    )


@pytest.mark.parametrize("release_id", ["x", "f" * 31, "F" * 32, "f" * 33, f"{UNKNOWN}%0a", "..%2f..", ""])
async def test_an_id_that_can_be_none_is_not_there(world: World, release_id: str) -> None:
    check_problem(await get(world, f"/v1/ledger/proofs/{release_id}"), 404, "not-found")


async def test_of_an_unknown_release_there_is_no_promise(world: World, tmp_path: Path) -> None:
    await sequencer(world, tmp_path).round()
    check_problem(await get(world, f"/v1/ledger/proofs/{UNKNOWN}"), 404, "not-found")


async def test_the_identity_vouches_for_the_key(world: World, tmp_path: Path) -> None:
    before = (await get(world, "/v1/ledger")).json()
    assert before["size"] == 0
    await record_actions(world.engine, 3)
    await sequencer(world, tmp_path).round()
    body = shapes.LedgerAnswer(**(await get(world, "/v1/ledger")).json()).model_dump()
    assert body["size"] >= 3
    signed = Signed.read(Fields({name: body[name] for name in ("payload", "signature", "identity")}, "it"))
    assert LedgerKey.verify(signed) == LedgerKey(origin=body["origin"], key=body["key"])
    assert signed.identity == world.desk.identity.public_key
    note = (await get(world, "/ledger/checkpoint")).text
    assert ledger_verifier.open_checkpoint(note, body["key"])[0] == body["origin"]


async def test_an_independent_verifier_follows_everything(world: World, tmp_path: Path) -> None:
    """More than one full tile; entries as an auditor gets them, tiles and checkpoint as anybody does."""
    await world.ask()
    await record_actions(world.engine, 600)
    await sequencer(world, tmp_path).round()
    note = await get(world, "/ledger/checkpoint")
    assert note.headers["content-type"] == "text/plain; charset=utf-8"
    assert note.headers["cache-control"] == "no-cache"
    key = checkpoint_key(world).verifier_key
    _, size, _ = ledger_verifier.open_checkpoint(note.text, key)
    items = await all_entries(world, 250)
    assert [each["index"] for each in items] == [*range(len(items))]
    tiles = {}
    for name in tile_names(size):
        response = await get(world, f"/ledger/{name.path()}")
        assert response.headers["content-type"] == "application/octet-stream"
        assert (response.headers["cache-control"] == IMMUTABLE) == (name.width == 256)
        tiles[name.path()] = response.content
    entries = [(from_base64(each["salt"]), from_base64(each["entry"])) for each in items[:size]]
    assert ledger_verifier.verify_ledger(note.text, key, entries, lambda path: tiles[path]) == size


async def test_the_beginning_of_a_tile_stays_to_be_had(world: World, tmp_path: Path) -> None:
    """A client that saw a checkpoint a moment ago asks for the tile as wide as it was then."""
    await record_actions(world.engine, 300)
    await sequencer(world, tmp_path).round()
    full = (await get(world, "/ledger/tile/0/000")).content
    for width in (1, 17, 255):
        assert (await get(world, f"/ledger/tile/0/000.p/{width}")).content == full[: 32 * width]
        bundle = (await get(world, f"/ledger/tile/entries/000.p/{width}")).content
        assert len(bundle) == 34 * width


@pytest.mark.parametrize(
    "path",
    [
        "tile/0/0", "tile/0/0000", "tile/00/000", "tile/-1/000", "tile/64/000", "tile/0/x000/000",
        "tile/0/000/", "tile/0/000.p/0", "tile/0/000.p/256", "tile/0/000.p/01", "tile/0/000.p/",
        "tile/0/000.p", "tile/0/%30%30%30", "tile/0/000%2ep/1", "tile%2f0/000", "tile/data/000",
        "tile/entries/", "tile//0/000", "tile/0/../0/000", "tile/0/000%0a", "tile/0/999", "tile/1/001",
        "tile/5/000", "tile/0/000.p/255", "tile/0/x999/x999/x999/999",
        "tile/0/x999/x999/x999/x999/x999/x999/999", "tile/\u0660/000", "checkpoint/", "", "x",
    ],
)  # fmt: skip
async def test_a_tile_has_one_path(world: World, tmp_path: Path, path: str) -> None:
    await record_actions(world.engine, 3)
    await sequencer(world, tmp_path).round()
    assert (await get(world, "/ledger/tile/0/000.p/3")).status_code == 200
    check_problem(await get(world, f"/ledger/{path}"), 404, "not-found")


@pytest.mark.parametrize(
    "path", ["/ledger/checkpoint", "/ledger/tile/0/000.p/1", "/v1/ledger", f"/v1/ledger/proofs/{UNKNOWN}"]
)
async def test_a_query_would_only_fill_caches(world: World, tmp_path: Path, path: str) -> None:
    await record_actions(world.engine, 3)
    await sequencer(world, tmp_path).round()
    check_problem(await get(world, f"{path}?x=1"), 400, "malformed-request")


async def test_an_entry_changed_afterwards_does_not_change_what_is_proven(
    world: World, tmp_path: Path
) -> None:
    answer = (await world.ask()).body
    await sequencer(world, tmp_path).round()
    path = f"/v1/ledger/proofs/{answer['release_id']}"
    before = (await get(world, path)).json()
    async with writing(world.engine) as connection:
        row = update(entries_table).where(entries_table.c.id == answer["release_id"])
        await connection.execute(row.values(entry=b'{"kind":"decision"}'))
    assert (await get(world, path)).json() == before


@pytest.mark.parametrize(
    "spoil",
    [
        delete(ledger_tiles),
        update(ledger_tiles).values(hashes=b""),
        update(ledger_checkpoints).values(note="nothing"),
    ],
    ids=["tiles-gone", "tiles-empty", "checkpoint-forged"],
)
async def test_what_is_damaged_proves_nothing(world: World, tmp_path: Path, spoil: UpdateBase) -> None:
    answer = (await world.ask()).body
    await sequencer(world, tmp_path).round()
    async with writing(world.engine) as connection:
        await connection.execute(spoil)
    response = await get(world, f"/v1/ledger/proofs/{answer['release_id']}")
    check_problem(response, 503, "ledger-unavailable", "ledger-untrusted")


class TestAuditors:
    """What `Permission.READ_LEDGER` gives."""

    async def test_entries_are_what_the_receipt_promised(self, world: World, tmp_path: Path) -> None:
        answer = (await world.ask()).body
        receipt = json.loads(from_base64(answer["receipt"]["payload"]))
        waiting: dict[str, Any] = await world.office.ledger.entry(AUDITOR, answer["release_id"])
        assert waiting["index"] is None
        await sequencer(world, tmp_path).round()
        item: dict[str, Any] = await world.office.ledger.entry(AUDITOR, answer["release_id"])
        assert item == await world.office.ledger.entry(AUDITOR, item["index"])
        assert item == {**waiting, "index": item["index"]}
        shapes.LedgerEntryAnswer(**item)
        assert item["salt"] == receipt["salt"]
        assert json.loads(from_base64(item["entry"]))["release_id"] == answer["release_id"]

    async def test_a_look_is_recorded(self, world: World, tmp_path: Path) -> None:
        await record_actions(world.engine, 3)
        await sequencer(world, tmp_path).round()
        await world.office.ledger.entry(AUDITOR, 1)
        await world.office.ledger.entries(AUDITOR, start=0, limit=2, kind=None)
        actions: Any = (await world.office.operators.actions(ADMIN, before=None, limit=500))["actions"]
        looks = [action for action in actions if action["operator"] == "eve"]
        one, page = sorted(looks, key=lambda action: action["target"] is None)
        assert (one["action"], one["operator"], one["target"]) == ("ledger-read", "eve", "1")
        assert page["details"] == {"from": 0, "count": 2}

    async def test_other_roles_may_not_and_that_is_recorded(self, world: World) -> None:
        for asked in (
            world.office.ledger.entries(OPERATOR, start=0, limit=1, kind=None),
            world.office.ledger.entry(OPERATOR, 0),
        ):
            with pytest.raises(Forbidden) as refused:
                await asked
            assert refused.value.reason == "role-may-not-read-ledger"
        actions: Any = (await world.office.operators.actions(ADMIN, before=None, limit=2))["actions"]
        assert {each["outcome"] for each in actions} == {"forbidden"}

    async def test_one_kind_alone(self, world: World, tmp_path: Path) -> None:
        answer = (await world.ask()).body
        await record_actions(world.engine, 3)
        await sequencer(world, tmp_path).round()
        found: Any = await world.office.ledger.entries(AUDITOR, start=0, limit=500, kind="decision")
        assert [each["id"] for each in found["entries"]] == [answer["release_id"]]
        found = await world.office.ledger.entries(AUDITOR, start=0, limit=500, kind="action")
        assert {each["kind"] for each in found["entries"]} == {"action"}

    async def test_one_that_is_gone_is_not_overlooked(self, world: World, tmp_path: Path) -> None:
        answer = (await world.ask()).body
        await sequencer(world, tmp_path).round()
        item: dict[str, Any] = await world.office.ledger.entry(AUDITOR, answer["release_id"])
        async with writing(world.engine) as connection:
            gone = delete(entries_table).where(entries_table.c.id == answer["release_id"])
            await connection.execute(gone)
        nothing = {**dict.fromkeys(item), "index": item["index"], "place": item["place"]}
        assert await world.office.ledger.entry(AUDITOR, item["index"]) == nothing
        page: Any = await world.office.ledger.entries(AUDITOR, start=item["index"], limit=1, kind="action")
        assert page["entries"] == [nothing]
        shapes.LedgerEntriesAnswer(**page)

    @pytest.mark.parametrize("which", [10**6, UNKNOWN])
    async def test_what_is_not_there(self, world: World, tmp_path: Path, which: int | str) -> None:
        await sequencer(world, tmp_path).round()
        with pytest.raises(NotFound):
            await world.office.ledger.entry(AUDITOR, which)

    async def test_from_far_away_it_is_the_same(self, world: World, tmp_path: Path) -> None:
        release_id = (await world.ask()).body["release_id"]
        await record_actions(world.engine, 5)
        await sequencer(world, tmp_path).round()
        added = await world.office.operators.add(ADMIN, "eve", Role.AUDITOR, life=None, subject=None)
        transport = httpx2.ASGITransport(app=world.client._transport.app)  # type: ignore[attr-defined]
        async with open_remote(
            "https://kms", token=str(added["token"]), ca=None, transport=transport
        ) as office:
            here, there = world.office.ledger, office.ledger
            assert await there.statement(AUDITOR) == await here.statement(AUDITOR)
            assert await there.checkpoint(AUDITOR) == await here.checkpoint(AUDITOR)
            assert await there.proof(AUDITOR, release_id) == await here.proof(AUDITOR, release_id)
            assert await there.entry(AUDITOR, 2) == await here.entry(AUDITOR, 2)
            asked: dict[str, Any] = {"start": 1, "limit": 3, "kind": "action"}
            assert await there.entries(AUDITOR, **asked) == await here.entries(AUDITOR, **asked)
            with pytest.raises(NotFound) as refused:
                await there.proof(AUDITOR, UNKNOWN)
            assert refused.value.reason == "not-found"


def _routes(openapi: dict[str, Any]) -> Iterator[str]:
    yield from (path for path in openapi["paths"] if "ledger" in path)


async def test_the_interface_is_described(world: World) -> None:
    described = (await get(world, "/openapi.json")).json()
    assert sorted(_routes(described)) == [
        "/ledger/checkpoint",
        "/ledger/tile/{tile}",
        "/v1/ledger",
        "/v1/ledger/entries",
        "/v1/ledger/entries/{entry}",
        "/v1/ledger/proofs/{release_id}",
    ]
    for path in _routes(described):
        public = not path.startswith("/v1/ledger/entries")
        assert ("security" not in described["paths"][path]["get"]) == public
