"""Putting a root back: nothing is overwritten, no other root than the database's, the database first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from kms.administration.restoring import PutBack, RootRestoring, require_mode, require_root
from kms.errors import ConfigurationError, KeysConflict, LedgerUnavailable
from kms.keys.epochs import EpochTable
from kms.keys.key_history import KeyHistory
from kms.keys.root_copy import RootCopy
from kms.keys.root_messages import Mode
from kms.ledger.actions import OperatorAction
from kms.operator_ports import Generation
from tests.unit.administration.test_backups import ADMIN, FIRST, HISTORY, SECRETS, Log, RootInMemory
from tests.unit.operator_samples import journal
from tests.world import NOW

ROOT = RootCopy(mode=Mode.PRODUCTION, secrets=SECRETS)
KNOWN = ROOT.check_values()
LONGER = RootCopy(mode=Mode.PRODUCTION, secrets={**SECRETS, 3: b"3" * 32}).check_values()


@dataclass
class Place:
    """Implements `RootPlace`: what is there, and what was made. `full` makes nothing."""

    happened: list[str]
    present: RootInMemory | None = None
    made: list[Mapping[int, bytes]] = field(default_factory=list)
    damaged: bool = False
    full: bool = False
    uri: str = "file:root-key.json"

    async def open(self) -> RootInMemory | None:
        if self.damaged:
            raise ConfigurationError("it is damaged", remedy="as the provider says")
        return self.present

    async def make(self, secrets: Mapping[int, bytes]) -> None:
        if self.full:
            raise ConfigurationError("no space")
        self.happened.append("root")
        self.made.append(secrets)


@dataclass
class Database:
    """Implements `KnownValues` and `LostRegister`: there are epochs where there are check values."""

    happened: list[str]
    known: Mapping[int, bytes]
    fault: Exception | None = None
    given: tuple[EpochTable, Sequence[Generation]] | None = None
    action: OperatorAction | None = None

    async def check_values(self) -> dict[int, bytes]:
        return dict(self.known)

    async def restore(
        self,
        table: EpochTable,
        check_values: Mapping[int, bytes],
        generations: Sequence[Generation],
        action: OperatorAction,
    ) -> bool:
        if self.fault is not None:
            raise self.fault
        if self.known:
            return False
        self.happened.append("database")
        self.known, self.given, self.action = check_values, (table, generations), action
        return True


class Room:
    """A place, a database, and what puts roots back."""

    def __init__(
        self,
        known: Mapping[int, bytes],
        present: RootInMemory | None = None,
        *,
        damaged: bool = False,
        fault: Exception | None = None,
    ) -> None:
        self.happened: list[str] = []
        self.place = Place(self.happened, present, damaged=damaged)
        self.database = Database(self.happened, known, fault)
        self.restoring = RootRestoring(
            place=self.place,
            values=self.database,
            register=self.database,
            journal=journal(Log()),
            anchor="the-anchor.json",
        )

    async def put_back(self, history: KeyHistory = HISTORY) -> PutBack:
        return await self.restoring.put_back(ADMIN, ROOT, ROOT.described(NOW, history))

    async def refusal(self) -> ConfigurationError:
        with pytest.raises(ConfigurationError) as refused:
            await self.put_back()
        assert self.happened == []
        return refused.value


@pytest.mark.parametrize(("known", "waiting"), [({1: KNOWN[1]}, [2]), (KNOWN, [])], ids=["older", "its own"])
async def test_where_there_is_no_root_it_is_made_and_a_database_keeps_its_epochs(
    known: dict[int, bytes], waiting: list[int]
) -> None:
    room = Room(known)
    assert await room.put_back() == PutBack(made=True, adopted=False, waiting=waiting)
    assert room.place.made == [SECRETS]
    assert room.happened == ["root"]


async def test_a_database_without_epochs_gets_those_of_the_backup_and_then_there_is_a_root() -> None:
    """The other way round, a server that starts in between would make epoch 1 current, which was retired."""
    room = Room({})
    assert await room.put_back() == PutBack(made=True, adopted=True, waiting=[])
    assert room.happened == ["database", "root"]
    assert room.database.known == KNOWN
    assert room.database.given is not None
    table, generations = room.database.given
    assert table == HISTORY.epochs
    assert [each.retired_at is not None for each in table.epochs] == [True, False]
    assert generations == [Generation(number=2, made_at=HISTORY.later_generations[0], made_by="restored")]
    action = room.database.action
    assert action is not None
    assert (action.actor, action.action, action.target) == (ADMIN, "keys-restore", "epochs")
    assert action.details == {"epochs": [1, 2], "retired": [1], "generations": 2}


async def test_an_epoch_that_was_never_adopted_waits_in_a_new_database_too() -> None:
    room = Room({})
    done = await room.put_back(KeyHistory.of(EpochTable((FIRST,)), []))
    assert done == PutBack(made=True, adopted=True, waiting=[2])
    assert room.database.known == {1: KNOWN[1]}


async def test_a_root_that_is_not_lost_does_not_keep_a_new_database_from_its_epochs() -> None:
    room = Room({}, RootInMemory(SECRETS))
    assert await room.put_back() == PutBack(made=False, adopted=True, waiting=[])
    assert room.happened == ["database"]


async def test_what_was_interrupted_before_the_root_was_made_is_finished() -> None:
    room = Room({})
    room.place.full = True
    with pytest.raises(ConfigurationError, match="no space"):
        await room.put_back()
    room.place.full = False
    assert await room.put_back() == PutBack(made=True, adopted=False, waiting=[])
    assert room.happened == ["database", "root"]


@pytest.mark.parametrize("present", [None, RootInMemory(SECRETS)], ids=["no root", "the root"])
async def test_a_backup_that_is_older_than_the_anchor_is_refused_and_says_what_can_be_done(
    present: RootInMemory | None,
) -> None:
    room = Room({}, present, fault=KeysConflict("the backup does not know epoch 3"))
    refused = await room.refusal()
    assert "does not know epoch 3" in refused.detail
    assert "the-anchor.json" in refused.detail
    assert "newest backup" in refused.remedy
    assert "remove the member `keys` from the-anchor.json" in refused.remedy


async def test_where_it_cannot_be_told_what_there_was_no_root_is_made() -> None:
    room = Room({}, fault=LedgerUnavailable("the anchor is damaged", reason="anchor-unusable"))
    with pytest.raises(LedgerUnavailable):
        await room.put_back()
    assert room.happened == []


async def test_where_it_is_already_it_stays() -> None:
    present = RootInMemory({**SECRETS, 3: b"3" * 32})
    room = Room(LONGER, present)
    assert await room.put_back() == PutBack(made=False, adopted=False, waiting=[])
    assert room.happened == []
    assert present.closed


@pytest.mark.parametrize(
    ("present", "said"),
    [({1: b"x" * 32, 2: SECRETS[2]}, "another root"), ({1: SECRETS[1]}, "no epoch 2")],
    ids=["another", "an older copy"],
)
async def test_what_is_there_is_not_overwritten(present: dict[int, bytes], said: str) -> None:
    root = RootInMemory(present)
    refused = await Room({}, root).refusal()
    assert said in refused.detail
    assert "move it away" in refused.remedy
    assert root.closed


async def test_what_is_there_and_damaged_is_not_overwritten_either() -> None:
    refused = await Room(KNOWN, damaged=True).refusal()
    assert refused.detail == "it is damaged"
    assert "move it away" in refused.remedy


async def test_a_backup_of_another_kms_is_refused_before_the_place_is_looked_at() -> None:
    refused = await Room({**KNOWN, 2: b"x" * 32}, damaged=True).refusal()
    assert "of another KMS than this database" in refused.detail


async def test_a_backup_from_before_the_last_epoch_makes_no_root() -> None:
    refused = await Room(LONGER).refusal()
    assert "older than epoch(s) 3," in refused.detail


def test_a_root_never_changes_its_mode() -> None:
    require_mode(ROOT, Mode.PRODUCTION)
    with pytest.raises(ConfigurationError, match="of a production root"):
        require_mode(ROOT, Mode.DEVELOPMENT)


async def test_a_root_that_must_be_there_is_not_made() -> None:
    place = Place([])
    with pytest.raises(ConfigurationError, match=r"no root key at file:root-key\.json"):
        await require_root(place)
    assert place.made == []
    present = RootInMemory(SECRETS)
    await require_root(Place([], present))
    assert present.closed
