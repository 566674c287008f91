"""A server follows the revision in force, and does again only what has to be done again."""

import time
from pathlib import Path

import pytest
import yaml
from sqlalchemy.ext.asyncio import AsyncEngine

from kms.administration.changing import PolicyChanger
from kms.errors import LedgerUnavailable
from kms.measurement.index import MeasurementIndex
from kms.policy.revision import Revision
from kms.policy_following import FollowedPolicies
from tests.changer import follow, open_changer, put
from tests.world import NOW, describe_image, image_document

IMAGES = "---\n".join(
    yaml.safe_dump(image_document(name, describe_image(f"image={name}"), vcpus={"min": 1, "max": 2}))
    for name in ("os-1", "os-2")
)
RACK = f'---\nkind: chips\nname: rack\nchips: ["{"11" * 64}"]\n'


@pytest.fixture
async def changer(engine: AsyncEngine, tmp_path: Path) -> PolicyChanger:
    return await open_changer(engine, tmp_path, lambda: NOW)


def revision(text: str) -> Revision:
    return Revision.from_files({"p.yaml": text.encode()}, development=False)


async def test_images_that_stay_are_not_computed_again(
    changer: PolicyChanger, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    compute = MeasurementIndex.compute

    def count(self: MeasurementIndex, number: int) -> bool:
        did = compute(self, number)
        computed.extend([number] if did else [])
        return did

    monkeypatch.setattr(MeasurementIndex, "compute", count)
    policies = follow(changer)
    await policies.filled()
    for text, expected in ((IMAGES, 2), (IMAGES + RACK, 0)):
        await put(changer, revision(text))
        await policies.refresh()
        await policies.filled()
        active = await policies.active()
        assert active is not None
        assert active.policy.revision == revision(text).digest
        assert len(computed) == expected
        computed.clear()


async def test_a_policy_that_nobody_follows_is_not_used_for_ever(
    changer: PolicyChanger, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies = follow(changer)
    await put(changer, revision(RACK))
    await policies.refresh()
    monkeypatch.setattr(FollowedPolicies, "alive", property(lambda _: True))
    now = time.monotonic()
    monkeypatch.setattr("kms.policy_following.time.monotonic", lambda: now + 29)
    assert await policies.active() is not None
    monkeypatch.setattr("kms.policy_following.time.monotonic", lambda: now + 31)
    assert policies.stale
    with pytest.raises(LedgerUnavailable) as told:
        await policies.active()
    assert told.value.reason == "policy-not-followed"
    await policies.refresh()
    assert await policies.active() is not None
