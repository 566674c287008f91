"""Putting a root back: nothing is overwritten, and no other root than the database's is made."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from kms.administration.restoring import put_root, require_mode, require_root, waiting_epochs
from kms.errors import ConfigurationError
from kms.keys.root_copy import RootCopy
from kms.keys.root_messages import Mode
from tests.unit.administration.test_backups import SECRETS, RootInMemory
from tests.world import NOW

ROOT = RootCopy(mode=Mode.PRODUCTION, secrets=SECRETS)
DESCRIBED = ROOT.described(NOW)
KNOWN = ROOT.check_values()
LONGER = RootCopy(mode=Mode.PRODUCTION, secrets={**SECRETS, 3: b"3" * 32}).check_values()


@dataclass
class Place:
    """Implements `RootPlace`: what is there, and what was made."""

    present: RootInMemory | None = None
    made: list[Mapping[int, bytes]] = field(default_factory=list)
    damaged: bool = False
    uri: str = "file:root-key.json"

    async def open(self) -> RootInMemory | None:
        if self.damaged:
            raise ConfigurationError("it is damaged", remedy="as the provider says")
        return self.present

    async def make(self, secrets: Mapping[int, bytes]) -> None:
        self.made.append(secrets)


async def refusal(place: Place, known: Mapping[int, bytes]) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as refused:
        await put_root(place, ROOT, DESCRIBED, known)
    assert place.made == []
    return refused.value


@pytest.mark.parametrize("known", [{}, {1: KNOWN[1]}, KNOWN], ids=["new", "older", "its own"])
async def test_where_there_is_none_it_is_made(known: dict[int, bytes]) -> None:
    place = Place()
    assert await put_root(place, ROOT, DESCRIBED, known) is True
    assert place.made == [SECRETS]


async def test_where_it_is_already_it_stays() -> None:
    place = Place(RootInMemory({**SECRETS, 3: b"3" * 32}))
    assert await put_root(place, ROOT, DESCRIBED, LONGER) is False
    assert place.made == []
    assert place.present is not None
    assert place.present.closed


@pytest.mark.parametrize(
    ("present", "said"),
    [({1: b"x" * 32, 2: SECRETS[2]}, "another root"), ({1: SECRETS[1]}, "no epoch 2")],
    ids=["another", "an older copy"],
)
async def test_what_is_there_is_not_overwritten(present: dict[int, bytes], said: str) -> None:
    place = Place(RootInMemory(present))
    refused = await refusal(place, {})
    assert said in refused.detail
    assert "move it away" in refused.remedy
    assert place.present is not None
    assert place.present.closed


async def test_what_is_there_and_damaged_is_not_overwritten_either() -> None:
    refused = await refusal(Place(damaged=True), KNOWN)
    assert refused.detail == "it is damaged"
    assert "move it away" in refused.remedy


async def test_a_backup_of_another_kms_is_refused_before_the_place_is_looked_at() -> None:
    refused = await refusal(Place(damaged=True), {**KNOWN, 2: b"x" * 32})
    assert "of another KMS than this database" in refused.detail


async def test_a_backup_from_before_the_last_epoch_makes_no_root() -> None:
    refused = await refusal(Place(), LONGER)
    assert "older than epoch(s) 3," in refused.detail


def test_a_root_never_changes_its_mode() -> None:
    require_mode(DESCRIBED, Mode.PRODUCTION)
    with pytest.raises(ConfigurationError, match="of a production root"):
        require_mode(DESCRIBED, Mode.DEVELOPMENT)


@pytest.mark.parametrize(
    ("known", "waiting"), [({}, [2]), ({1: KNOWN[1]}, [2]), (KNOWN, [])], ids=["new", "older", "all"]
)
def test_epochs_that_the_database_does_not_know_wait(known: dict[int, bytes], waiting: list[int]) -> None:
    assert waiting_epochs(ROOT, known) == waiting


async def test_a_root_that_must_be_there_is_not_made() -> None:
    place = Place()
    with pytest.raises(ConfigurationError, match=r"no root key at file:root-key\.json"):
        await require_root(place)
    assert place.made == []
    present = RootInMemory(SECRETS)
    await require_root(Place(present))
    assert present.closed
