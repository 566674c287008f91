"""Revisions in the database: what a folder may undo, and what it may not."""

from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from kms.administration.changing import PolicyChanger
from kms.administration.folder import FolderPolicies
from kms.administration.permission import Journal
from kms.ledger.actions import OperatorAction
from kms.policy.documents import RevokedDocument
from kms.policy.revision import Revision
from kms.strict_json import JsonValue
from kms.wiring import new_id
from tests.changer import open_changer, put
from tests.world import NOW

RACK = f'kind: chips\nname: rack\nchips: ["{"11" * 64}"]\n'
REVOKED = (
    f'---\nkind: revoked\nname: emergency\nchips: ["{"11" * 64}"]\nmeasurements: []\nimages: []\n'
    "apps: []\ncompose: []\nproducts: []\n"
)


@pytest.fixture
async def changer(engine: AsyncEngine, tmp_path: Path) -> PolicyChanger:
    return await open_changer(engine, tmp_path, lambda: NOW)


def revision(text: str) -> Revision:
    return Revision.from_files({"p.yaml": text.encode()}, development=False)


class Unwritten:
    """Only the changer's own transaction writes what the folder does."""

    async def record(self, action: OperatorAction) -> None:
        raise AssertionError(action.action)

    async def actions(self, *, before: str | None, limit: int) -> tuple[dict[str, JsonValue], ...]:
        raise AssertionError(limit)


@pytest.fixture
def folder(changer: PolicyChanger) -> FolderPolicies:
    journal = Journal(actions=Unwritten(), clock=lambda: NOW, new_id=new_id)
    return FolderPolicies(changer=changer, journal=journal)


async def revoked(changer: PolicyChanger) -> list[str]:
    active = (await changer.standing()).revision
    assert active is not None
    return [each.name for each in active.documents if isinstance(each, RevokedDocument)]


async def test_a_revocation_by_command_outlives_an_edit_of_the_folder(
    changer: PolicyChanger, folder: FolderPolicies
) -> None:
    await folder.apply(revision(RACK), {})
    await put(changer, revision(RACK + REVOKED))
    edited = revision(RACK + "---\nkind: guest\nname: other\n")
    assert await folder.apply(edited, {})
    assert await revoked(changer) == ["emergency"]
    # The folder's own digest is what an unchanged folder is recognised by.
    assert await folder.folder_revision() == edited.digest


async def test_what_the_folder_revoked_it_takes_back(changer: PolicyChanger, folder: FolderPolicies) -> None:
    await folder.apply(revision(RACK + REVOKED), {})
    assert await revoked(changer) == ["emergency"]
    await folder.apply(revision(RACK), {})
    assert await revoked(changer) == []
