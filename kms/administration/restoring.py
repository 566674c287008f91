"""Putting a root back from a backup: what must agree before anything is made, and in which order it is.

The database first: a server that starts in between lacks its root, and says so. The other way round, it would
make epoch 1 the current one in a database that knows of no other, and give guests keys that were retired.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from kms.administration.backups import RESTORE, WholeRoot, answers
from kms.administration.permission import Journal
from kms.encoding import b64url
from kms.errors import ConfigurationError, KeysConflict
from kms.keys.epochs import EpochTable
from kms.keys.key_history import RESTORED
from kms.keys.root_copy import Description, RootCopy
from kms.keys.root_messages import Mode
from kms.ledger.actions import OperatorAction
from kms.operator_ports import Generation
from kms.operators import Actor


class RootPlace(Protocol):
    """Where the settings say that the root is."""

    @property
    def uri(self) -> str:
        """As ``KMS_ROOT_KEY`` names it."""
        ...

    async def open(self) -> WholeRoot | None:
        """Open the root that is there; None where there is none.

        Raises:
            ConfigurationError: what is there cannot be used.
            RootKeyUnavailable: the place cannot be reached now.

        """
        ...

    async def make(self, secrets: Mapping[int, bytes]) -> None:
        """Make a root of these secrets, never over an existing one; errors as `open`."""
        ...


async def require_root(place: RootPlace) -> None:
    """Make sure that a root is there, and make nothing: opening all keys makes a new KMS where there is none.

    Raises:
        ConfigurationError: there is none, or it cannot be used.
        RootKeyUnavailable: its place cannot be reached now.

    """
    present = await place.open()
    if present is None:
        raise ConfigurationError(
            f"there is no root key at {place.uri}, and nothing was made",
            remedy="Name the one that is meant (KMS_ROOT_KEY, KMS_DATA_DIR), or restore it from its backup.",
        )
    await present.close()


def require_mode(root: RootCopy, mode: Mode) -> None:
    """Make sure that a backup is of the settings' mode. Raises `ConfigurationError`."""
    if root.mode is not mode:
        raise ConfigurationError(
            f"the backup is of a {root.mode} root, and these settings are of {mode} mode",
            remedy="A root never changes from one mode to the other.",
        )


class KnownValues(Protocol):
    """The key-check values of the database."""

    async def check_values(self) -> dict[int, bytes]:
        """Give the stored value (32 bytes) of each epoch; none in a new database."""
        ...


class LostRegister(Protocol):
    """The register of epochs and generations (`kms.operator_ports.KeyRegister`), which may have none."""

    async def restore(
        self,
        table: EpochTable,
        check_values: Mapping[int, bytes],
        generations: Sequence[Generation],
        action: OperatorAction,
    ) -> bool:
        """Write epochs with their key-check values, later generations and the record, in one transaction.

        Say False where there are epochs: these stay, and nothing is written. Generations that are there stay.

        Raises:
            ConfigurationError: there is another key-check value.
            KeysConflict: there was something that this does not know.
            LedgerUnavailable: the database did not answer, or did not keep it; or what there was cannot be
                told.

        """
        ...


class PutBack(NamedTuple):
    """What was done.

    `made` is false where the same root was there already, and `adopted` where the database had epochs, which
    stay. `waiting` are epochs of the root that the database does not know: rotations adopt them.
    """

    made: bool
    adopted: bool
    waiting: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class RootRestoring:
    """Puts roots back. `anchor` names to operators the file that says what this server has seen."""

    place: RootPlace
    values: KnownValues
    register: LostRegister
    journal: Journal
    anchor: str

    async def put_back(self, actor: Actor, root: RootCopy, description: Description) -> PutBack:
        """Write epochs and generations into a database that has none, and then make the root in its place.

        Raises:
            ConfigurationError: it is not this database's, something else is there, it cannot be made, or it
                is older than what this server has seen.
            LedgerUnavailable: as `LostRegister.restore`.
            RootKeyUnavailable: the place cannot be reached now.

        """
        known = await self.values.check_values()
        _require_same_kms(known, description)
        there = await self._is_there(description)
        if not there:
            _require_all_epochs(known, description)
        adopted = await self._adopt(actor, description)
        if not there:
            await self.place.make(root.secrets)
        waiting = set(root.secrets) - set(await self.values.check_values())
        return PutBack(made=not there, adopted=adopted, waiting=sorted(waiting))

    async def _is_there(self, description: Description) -> bool:
        """Say whether the root is in its place; it is never overwritten."""
        try:
            present = await self.place.open()
        except ConfigurationError as error:
            raise ConfigurationError(
                error.detail, remedy="It is never overwritten: mend it, or move it away and restore again."
            ) from error
        if present is None:
            return False
        try:
            await _require_same_root(present, description)
        finally:
            await present.close()
        return True

    async def _adopt(self, actor: Actor, description: Description) -> bool:
        table, later = description.history.epochs, description.history.later_generations
        generations = [
            Generation(number=number, made_at=made_at, made_by=RESTORED)
            for number, made_at in enumerate(later, start=2)
        ]
        adopted = [each.number for each in table.epochs]
        action = self.journal.entry(
            actor,
            RESTORE,
            "epochs",
            details={
                "epochs": [*adopted],
                "retired": [each.number for each in table.epochs if each.retired_at is not None],
                "generations": 1 + len(later),
            },
        )
        values = {number: description.check_values[number] for number in adopted}
        try:
            return await self.register.restore(table, values, generations, action)
        except KeysConflict as error:
            raise ConfigurationError(
                f"{error.detail}. The anchor {self.anchor}, or the database, says that there was",
                remedy="Use the newest backup; another recipient may have it. If there is none, and you know"
                f" what you bring back: remove the member `keys` from {self.anchor} (where nothing else is in"
                " it, the file), restore again, and retire with `kms keys retire` what was retired since.",
            ) from error


def _require_same_kms(known: Mapping[int, bytes], description: Description) -> None:
    if any(description.check_values.get(epoch, value) != value for epoch, value in known.items()):
        raise ConfigurationError(
            "the backup is of another KMS than this database: its first identity is"
            f" {b64url(description.identity)}",
            remedy="Use a backup of this one, or the settings of that one.",
        )


def _require_all_epochs(known: Mapping[int, bytes], description: Description) -> None:
    missing = sorted(set(known) - set(description.check_values))
    if missing:
        # Nor can the database be made to forget them: the next epoch of such a number would have other keys,
        # and with them a guest's disk looks damaged, or new.
        raise ConfigurationError(
            f"the backup is older than epoch(s) {', '.join(map(str, missing))}, which this database has",
            remedy="Use a newer one, made after the last `kms keys rotate`. If there is none, what only those"
            " epochs' keys open is lost; for the rest, restore into a new data folder (KMS_DATA_DIR), with a"
            " new database.",
        )


async def _require_same_root(present: WholeRoot, description: Description) -> None:
    there = await present.versions()
    for epoch, value in description.check_values.items():
        if epoch not in there:
            raise ConfigurationError(
                f"there is a root already, which has no epoch {epoch}: an older copy",
                remedy="It is never overwritten: move it away and restore again.",
            )
        if not await answers(present, description.mode, epoch, value):
            raise ConfigurationError(
                "there is another root already",
                remedy="It is never overwritten: use it, or move it away and restore again.",
            )
