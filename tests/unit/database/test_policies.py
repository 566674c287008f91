"""Revisions in the database: what a folder may undo, and what it may not."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kms.database.engine import open_engine, sqlite_url
from kms.database.migrate import migrate
from kms.database.policies import PolicyStore
from kms.packaged import packaged_folder
from kms.policy.documents import RevokedDocument
from kms.policy.revision import Revision
from tests.world import NOW

RACK = f'kind: chips\nname: rack\nchips: ["{"11" * 64}"]\n'
REVOKED = (
    f'---\nkind: revoked\nname: emergency\nchips: ["{"11" * 64}"]\nmeasurements: []\nimages: []\n'
    "apps: []\ncompose: []\nproducts: []\n"
)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[PolicyStore]:
    engine = open_engine(sqlite_url(tmp_path))
    await migrate(engine, packaged_folder("migrations"))
    yield PolicyStore(engine, lambda: NOW)
    await engine.dispose()


def revision(text: str) -> Revision:
    return Revision.from_files({"p.yaml": text.encode()}, development=False)


async def revoked(store: PolicyStore) -> list[str]:
    digest = await store.active_revision()
    active = None if digest is None else await store.load(digest)
    assert active is not None
    return [each.name for each in active.documents if isinstance(each, RevokedDocument)]


async def test_a_revocation_by_command_outlives_an_edit_of_the_folder(store: PolicyStore) -> None:
    folder = revision(RACK)
    await store.apply(folder, author="folder", message="", from_folder=True)
    await store.apply(revision(RACK + REVOKED), author="operator", message="lost a chip")
    edited = revision(RACK + "---\nkind: guest\nname: other\n")
    assert await store.apply(edited, author="folder", message="", from_folder=True)
    assert await revoked(store) == ["emergency"]
    # The folder's own digest is what an unchanged folder is recognised by.
    assert await store.folder_revision() == edited.digest


async def test_what_the_folder_revoked_it_takes_back(store: PolicyStore) -> None:
    await store.apply(revision(RACK + REVOKED), author="folder", message="", from_folder=True)
    assert await revoked(store) == ["emergency"]
    await store.apply(revision(RACK), author="folder", message="", from_folder=True)
    assert await revoked(store) == []
