"""The imported roots of a dstack KMS, on a real SQLite file."""

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from kms.database.engine import open_engine, reading, sqlite_url
from kms.database.foreign_roots import ForeignRootStore
from kms.database.migrate import migrate
from kms.database.schema import foreign_roots, operator_actions
from kms.errors import KeysConflict, LedgerUnavailable
from kms.keys.dstack import DstackRoots
from kms.labels import ROOT_FOREIGN, frame, labelled
from kms.ledger.actions import OperatorAction
from kms.operators import Actor, Proof, Role
from kms.packaged import packaged_folder
from tests.recording import recorder
from tests.unit.database.dialects import ON_SQLITE, values
from tests.world import NOW

KEY, OTHER_KEY = b"k" * 32, b"K" * 32
ROOTS = DstackRoots(ca=b"\x0c" * 32, k256=b"\x25" * 32)
OTHERS = DstackRoots(ca=b"\x0d" * 32, k256=b"\x25" * 32)
ROOT = Actor(name="root", role=Role.ADMIN, proof=Proof.COMMAND_LINE)
INSERT = "insert into foreign_roots values ('dstack', :sealed, '2026', 'mallory')"


@pytest.fixture
def store(engine: AsyncEngine) -> ForeignRootStore:
    return ForeignRootStore(engine, lambda: NOW, KEY, recorder=recorder())


async def bring(
    store: ForeignRootStore, roots: DstackRoots, number: int = 1, *, replace: bool = False
) -> bool:
    action = OperatorAction(
        action_id=f"{number:032x}",
        at=NOW,
        actor=ROOT,
        action="keys-import-dstack",
        target="dstack",
        outcome="done",
        details={},
    )
    return await store.import_dstack(roots, action=action, replace=replace)


async def recorded(engine: AsyncEngine) -> int:
    async with reading(engine) as connection:
        return len((await connection.execute(select(operator_actions.c.id))).all())


async def row_of(engine: AsyncEngine) -> dict[str, Any]:
    async with reading(engine) as connection:
        return dict((await connection.execute(select(foreign_roots))).mappings().one())


async def by_hand(engine: AsyncEngine, statement: str, **values: object) -> None:
    async with engine.begin() as connection:
        await connection.execute(text(statement), values)


async def check_untrusted(store: ForeignRootStore) -> None:
    with pytest.raises(LedgerUnavailable) as caught:
        await store.dstack()
    assert caught.value.reason == "foreign-roots-untrusted"


async def test_nothing_was_imported(store: ForeignRootStore) -> None:
    assert await store.dstack() is None


async def test_what_was_imported_is_given_and_recorded(engine: AsyncEngine, store: ForeignRootStore) -> None:
    assert await bring(store, ROOTS)
    assert await store.dstack() == ROOTS
    assert await ForeignRootStore(engine, lambda: NOW, KEY, recorder=recorder()).dstack() == ROOTS
    row = await row_of(engine)
    assert (row["kind"], row["imported_by"]) == ("dstack", "root")
    assert row["imported_at"].startswith("2026-11-21T12:00:00")
    assert await recorded(engine) == 1


@ON_SQLITE
async def test_the_database_alone_does_not_have_them(
    engine: AsyncEngine, store: ForeignRootStore, tmp_path: Path
) -> None:
    await bring(store, ROOTS)
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())  # noqa: ASYNC240 - nobody waits
    assert b"keys-import-dstack" in written
    for secret in (ROOTS.ca, ROOTS.k256):
        assert secret not in written
        assert secret.hex().encode() not in written
    await check_untrusted(ForeignRootStore(engine, lambda: NOW, OTHER_KEY, recorder=recorder()))


async def test_the_same_again_changes_nothing(engine: AsyncEngine, store: ForeignRootStore) -> None:
    await bring(store, ROOTS)
    before = await row_of(engine)
    assert not await bring(store, ROOTS, 2)
    assert not await bring(store, ROOTS, 3, replace=True)
    assert await row_of(engine) == before
    assert await recorded(engine) == 1


async def test_others_take_their_place_only_when_told(engine: AsyncEngine, store: ForeignRootStore) -> None:
    await bring(store, ROOTS)
    with pytest.raises(KeysConflict) as caught:
        await bring(store, OTHERS, 2)
    assert caught.value.reason == "dstack-roots-differ"
    assert await store.dstack() == ROOTS
    assert await recorded(engine) == 1
    assert await bring(store, OTHERS, 3, replace=True)
    assert await store.dstack() == OTHERS
    assert await recorded(engine) == 2


async def test_a_replacement_is_seen_by_a_server_that_runs(
    engine: AsyncEngine, store: ForeignRootStore
) -> None:
    await bring(store, ROOTS)
    assert await store.dstack() == ROOTS
    await bring(ForeignRootStore(engine, lambda: NOW, KEY, recorder=recorder()), OTHERS, 2, replace=True)
    assert await store.dstack() == OTHERS


async def test_an_import_that_cannot_be_recorded_does_not_happen(
    engine: AsyncEngine, store: ForeignRootStore
) -> None:
    await bring(store, ROOTS)
    with pytest.raises(LedgerUnavailable):
        await bring(store, OTHERS, 1, replace=True)  # an action of this id is there
    assert await store.dstack() == ROOTS


@pytest.mark.parametrize("place", [0, 11, 12, 43, 44, 75, 76, 91])
async def test_a_changed_byte_is_noticed(engine: AsyncEngine, store: ForeignRootStore, place: int) -> None:
    """In the nonce, in each root, in the tag."""
    await bring(store, ROOTS)
    sealed = bytearray((await row_of(engine))["sealed"])
    assert len(sealed) == 92
    sealed[place] ^= 1
    await by_hand(engine, "update foreign_roots set sealed = :sealed", sealed=bytes(sealed))
    await check_untrusted(store)


@values("written", [b"", b"\x00" * 11, b"\x00" * 92, b"\x00" * 10_000], on_sqlite=["text", 7])
async def test_what_somebody_wrote_by_hand_is_not_believed(
    engine: AsyncEngine, store: ForeignRootStore, written: object
) -> None:
    await by_hand(engine, INSERT, sealed=written)
    await check_untrusted(store)
    with pytest.raises(LedgerUnavailable):
        await bring(store, ROOTS)
    assert await bring(store, ROOTS, 2, replace=True)
    assert await store.dstack() == ROOTS


async def test_roots_of_another_kind_are_not_dstacks(engine: AsyncEngine, store: ForeignRootStore) -> None:
    """Sealed by this KMS as something else, and moved."""
    nonce, context = bytes(12), labelled(ROOT_FOREIGN, frame(b"other"))
    sealed = nonce + AESGCM(KEY).encrypt(nonce, OTHERS.ca + OTHERS.k256, context)
    await by_hand(engine, INSERT, sealed=sealed)
    await check_untrusted(store)


async def test_a_row_of_another_kms_does_not_open(
    engine: AsyncEngine, store: ForeignRootStore, tmp_path: Path
) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    other = open_engine(sqlite_url(folder))
    await migrate(other, packaged_folder("migrations"))
    await bring(ForeignRootStore(other, lambda: NOW, OTHER_KEY, recorder=recorder()), OTHERS)
    row = await row_of(other)
    await other.dispose()
    await by_hand(engine, INSERT, sealed=row["sealed"])
    await check_untrusted(store)


async def test_no_nonce_comes_twice(engine: AsyncEngine, store: ForeignRootStore) -> None:
    nonces = set()
    for number, roots in enumerate([ROOTS, OTHERS] * 4, 1):
        await bring(store, roots, number, replace=True)
        nonces.add((await row_of(engine))["sealed"][:12])
    assert len(nonces) == 8


@pytest.mark.parametrize("length", [0, 16, 31, 64])
def test_a_key_of_another_length_is_refused(engine: AsyncEngine, length: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        ForeignRootStore(engine, lambda: NOW, bytes(length), recorder=recorder())
