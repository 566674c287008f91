"""A server follows the revision in force, and does again only what has to be done again."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import NoReturn

import pytest
import yaml

from kms.database.engine import open_engine, sqlite_url
from kms.database.migrate import migrate
from kms.database.policies import FollowedPolicies, PolicyStore
from kms.measurement.index import MeasurementIndex
from kms.packaged import packaged_folder
from kms.policy.revision import Revision
from tests.world import NOW, describe_image, image_document

IMAGES = "---\n".join(
    yaml.safe_dump(image_document(name, describe_image(f"image={name}"), vcpus={"min": 1, "max": 2}))
    for name in ("os-1", "os-2")
)
RACK = f'---\nkind: chips\nname: rack\nchips: ["{"11" * 64}"]\n'


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[PolicyStore]:
    engine = open_engine(sqlite_url(tmp_path))
    await migrate(engine, packaged_folder("migrations"))
    yield PolicyStore(engine, lambda: NOW)
    await engine.dispose()


def revision(text: str) -> Revision:
    return Revision.from_files({"p.yaml": text.encode()}, development=False)


async def test_images_that_stay_are_not_computed_again(
    store: PolicyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    compute = MeasurementIndex.compute

    def count(self: MeasurementIndex, number: int) -> bool:
        did = compute(self, number)
        computed.extend([number] if did else [])
        return did

    monkeypatch.setattr(MeasurementIndex, "compute", count)
    policies = FollowedPolicies(store)
    await policies.filled()
    for text, expected in ((IMAGES, 2), (IMAGES + RACK, 0)):
        await store.apply(revision(text), author="me", message="")
        await policies.refresh()
        await policies.filled()
        active = await policies.active()
        assert active is not None
        assert active.policy.revision == revision(text).digest
        assert len(computed) == expected
        computed.clear()


async def test_an_edited_folder_alone_needs_no_older_revision(
    store: PolicyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in force came from the folder, so nothing was revoked beside it: no two revisions to read."""
    await store.apply(revision(RACK), author="folder", message="", from_folder=True)

    async def load(_: PolicyStore, digest: str) -> NoReturn:
        raise AssertionError(digest)

    monkeypatch.setattr(PolicyStore, "load", load)
    edited = revision(RACK + "---\nkind: guest\nname: other\n")
    assert await store.apply(edited, author="folder", message="", from_folder=True)
    assert await store.active_revision() == edited.digest == await store.folder_revision()
