"""What operators' work needs from outside, as small protocols beside those of the release path."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TypeAlias

from kms.keys.epochs import Epoch, EpochTable, KeyProgress
from kms.ledger.actions import OperatorAction
from kms.policy.history import Head, PolicyChange, PolicySignature
from kms.policy.revision import Revision
from kms.policy.statement import Statement
from kms.strict_json import JsonValue


class PolicyPast(Protocol):
    """What is known of how the policy in force came there. What it gives is authentic, or not given.

    Every method raises `LedgerUnavailable` when the database does not answer.
    """

    async def head(self) -> Head | None:
        """Give what the pointer says is in force. Cheap, and only a hint until it is verified."""
        ...

    async def change(self, sequence: int) -> PolicyChange | None:
        """Give a change with its signatures; None where there is no authentic one."""
        ...

    async def changes(self, *, before: int | None, limit: int) -> tuple[PolicyChange, ...]:
        """Give the newest changes below `before`, newest first."""
        ...

    async def load(self, digest: str) -> Revision | None:
        """Load a revision. Raises `PolicyInvalid`: the stored bytes are not what the digest names."""
        ...

    def keep(self, revision: Revision) -> None:
        """Keep a revision at hand, in the place of the one before: it is in force, and asked for often."""
        ...


class PolicyHistory(PolicyPast, Protocol):
    """Revisions and the changes that put them in force, for those who add to them."""

    async def last_sequence(self) -> int:
        """Give the sequence number of the newest authentic change, 0 for none."""
        ...

    async def files(self, digest: str) -> Mapping[str, bytes] | None:
        """Give the files as they were written, None where they are not known. Unchecked."""
        ...

    async def store(self, revision: Revision, files: Mapping[str, bytes] | None) -> None:
        """Store a revision, without putting it in force."""
        ...

    async def append(
        self, change: PolicyChange, *, expect: Head | None, action: OperatorAction | None
    ) -> None:
        """Put a stored revision in force, with the record of who did it, in one transaction.

        Raises:
            PolicyMoved: `expect` is not what is in force.

        """
        ...

    async def propose(self, change: PolicyChange, statement: Statement) -> None:
        """Keep a change that waits for signatures; the same again is no other."""
        ...

    async def proposals(self, revision: str | None = None) -> tuple[PolicyChange, ...]:
        """Give the newest proposals, of a revision or of any, with their signatures; also overtaken ones."""
        ...

    async def sign(self, statement: Statement, signature: PolicySignature) -> None:
        """Add a signature to a statement; of one key only one is kept."""
        ...


class SeenHead(Protocol):
    """What this server has used last, kept outside the database."""

    async def read(self) -> Head | None:
        """Give it; None if nothing was ever used. Raises `PolicyUntrusted`: that cannot be told."""
        ...

    async def remember(self, head: Head) -> None:
        """Keep what is used from now on, durably; it only goes forward.

        Raises:
            PolicyUntrusted: something newer was used, or another revision under this number.
            LedgerUnavailable: it could not be kept.

        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFilter:
    """Which decisions are wanted; None is any. Ids are lowercase hex, `since` included, `until` not.

    `app` is an app id. `before` is the cursor: only decisions older than this release id's.
    """

    since: datetime | None = None
    until: datetime | None = None
    app: str | None = None
    image: str | None = None
    chip: str | None = None
    outcome: str | None = None
    code: str | None = None
    before: str | None = None


class Records(Protocol):
    """The recorded decisions, for reading; nothing here says that they are as they were written.

    Every method raises `LedgerUnavailable` when the database does not answer.
    """

    async def entry(self, release_id: str) -> dict[str, JsonValue] | None:
        """Give one recorded entry as JSON. Raises `RecordDamaged`: it is no JSON object, or another's."""
        ...

    async def entries(self, wanted: RecordFilter, *, limit: int) -> tuple[dict[str, JsonValue], ...]:
        """Give the newest entries that match, newest first.

        In the place of one of which `entry` would raise stand its `release_id` and `decided_at` alone.

        Raises:
            NotFound: there is no decision of the id that `before` names.

        """
        ...

    def scan(self, since: datetime, *, until: datetime | None = None) -> AsyncIterator[JsonValue]:
        """Give every entry from `since` on, and before `until`, newest first; None for one that is no JSON.

        A million of them are never in memory at once.
        """
        ...

    async def end(self) -> int:
        """Give the place of what was recorded last, 0 for nothing; what is recorded later has a higher one.

        The time of a decision does not tell what came later: it is when the guest asked.
        """
        ...

    def scan_after(self, place: int) -> AsyncIterator[tuple[int, JsonValue]]:
        """Give every entry that was recorded after a place, with its own, in order; None as `scan`."""
        ...


class Actions(Protocol):
    """The record of what operators did."""

    async def record(self, action: OperatorAction) -> None:
        """Make an action durable."""
        ...

    async def actions(self, *, before: str | None, limit: int) -> tuple[dict[str, JsonValue], ...]:
        """Give the newest actions older than the one with this id, newest first, as JSON."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A generation of the KMS identity after the first; `number` is 2 or more."""

    number: int
    made_at: datetime
    made_by: str


class SeenKeys(Protocol):
    """How far this server has seen epochs and generations come, kept outside the database."""

    async def read_keys(self) -> KeyProgress:
        """Give it; if nothing is kept, nothing was seen. Raises `LedgerUnavailable`: it cannot be told."""
        ...

    async def remember_keys(self, progress: KeyProgress) -> None:
        """Keep it, durably, united with what is kept. Raises `LedgerUnavailable`: it could not be kept."""
        ...


LastLook: TypeAlias = Callable[[Sequence[JsonValue]], OperatorAction]


class KeyRegister(Protocol):
    """Which epochs and generations there are, for those who add to them. What it gives is authentic.

    Every method raises `LedgerUnavailable` when the database does not answer, or (reason
    ``epochs-untrusted``) when what it holds was not written by this KMS.
    """

    async def epochs(self) -> EpochTable:
        """Give the epochs; see `kms.ports.Epochs`."""
        ...

    async def epochs_to_rotate(self) -> EpochTable:
        """Give the epochs also where the newest that was in use waits again, so that `epochs` is refused.

        A clock that was wrong leaves that behind; `move_epoch` to a time that has come mends it.
        """
        ...

    async def add_epoch(self, epoch: Epoch, check_value: bytes, action: OperatorAction) -> None:
        """Adopt an epoch with its key-check value (32 bytes), and record who did it, in one transaction.

        Raises:
            KeysConflict: there is an epoch of this number already, or another check value for it.

        """
        ...

    async def move_epoch(self, old: Epoch, new: Epoch, action: OperatorAction) -> None:
        """Give an epoch another time while it waits for it, and record who did, in one transaction.

        Raises:
            KeysConflict: it is no longer as `old` says, or its time has come.

        """
        ...

    async def retire_epoch(self, old: Epoch, new: Epoch, *, after: int, last_look: LastLook) -> None:
        """End an epoch for ever, in one transaction, beside which no release is recorded.

        `last_look` is given what was recorded after the place `after` (`Records.end`). It may raise, and then
        nothing is changed.

        Raises:
            KeysConflict: it is no longer as `old` says.

        """
        ...

    async def generations(self) -> tuple[Generation, ...]:
        """Give the generations of the identity after the first, oldest first."""
        ...

    async def add_generation(self, generation: Generation, action: OperatorAction) -> None:
        """Add a generation, and record who did it. Raises `KeysConflict`: there is one of this number."""
        ...


class RootVersions(Protocol):
    """The versions of the root, where it lives. Every method may raise `RootKeyUnavailable`."""

    async def versions(self) -> tuple[int, ...]:
        """Give the epochs that exist there, adopted or not, oldest first."""
        ...

    async def ensure(self, epoch: int) -> bytes:
        """Make sure that `epoch` exists, durably, and give its key-check value (32 bytes).

        Raises:
            ConfigurationError: it may not be made there, or it is not the next one.

        """
        ...
