"""The office: all that operators can do, as one interface for the routes, the commands and a remote server.

Every method takes the `Actor` first, checks the permission, records what was done, and answers with a JSON
object (the shapes are documented with the routes). Refusals are `kms.errors.OperatorRefusal`s.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol, TypeAlias

from kms.operator_ports import RecordFilter
from kms.operators import Actor, Role
from kms.policy.history import PolicySignature
from kms.strict_json import JsonValue

Json: TypeAlias = dict[str, JsonValue]
Files: TypeAlias = Mapping[str, bytes]


class PolicyWork(Protocol):
    """Policies: what is in force, how it came there, and changing it."""

    async def status(self, actor: Actor) -> Json:
        """Give what is in force."""
        ...

    async def history(self, actor: Actor, *, before: int | None, limit: int) -> Json:
        """Give changes, newest first."""
        ...

    async def revision(self, actor: Actor, revision: str) -> Json:
        """Give a revision's documents, and its files as they were written where those are known."""
        ...

    async def diff(self, actor: Actor, *, old: str | None, new: str | Files) -> Json:
        """Say in the domain's words what `new` changes of `old` (None: what is in force)."""
        ...

    async def lint(self, actor: Actor, files: Files) -> Json:
        """Find what is wrong with a policy."""
        ...

    async def what_if(self, actor: Actor, new: str | Files, *, since: timedelta) -> Json:
        """Judge every guest recorded `since` then by a candidate."""
        ...

    async def apply(
        self,
        actor: Actor,
        new: str | Files,
        *,
        message: str,
        expect: str | None,
        gate: timedelta | None = None,
        lift_revocations: bool = False,
    ) -> Json:
        """Put a policy in force, or propose it where signatures are needed.

        `expect` is the revision that must still be in force ("none" where there is none yet; None: whatever
        is). `gate` refuses a change that would newly refuse guests seen that lately. A policy without a
        revocation that stands now is refused unless `lift_revocations` says that it is meant.
        """
        ...

    async def rollback(self, actor: Actor, revision: str, *, message: str, expect: str | None) -> Json:
        """Put an earlier revision in force again, with every revocation that stands now."""
        ...

    async def revoke(self, actor: Actor, kind: str, value: str, *, reason: str) -> Json:
        """Revoke one thing (`kms.policy.standing.REVOCABLE`) on top of what is in force."""
        ...

    async def proposals(self, actor: Actor) -> Json:
        """Give what waits for signatures."""
        ...

    async def proposal(self, actor: Actor, revision: str) -> Json:
        """Give the current proposal of a revision, with its statement."""
        ...

    async def propose(
        self, actor: Actor, new: str | Files, *, message: str, lift_revocations: bool = False
    ) -> Json:
        """Propose a policy for signing, also where no signature is needed. `lift_revocations` as above."""
        ...

    async def sign(self, actor: Actor, revision: str, signature: PolicySignature) -> Json:
        """Add a signature to the current proposal of a revision."""
        ...


class RecordWork(Protocol):
    """The record of releases and refusals, and evidence."""

    async def releases(self, actor: Actor, wanted: RecordFilter, *, limit: int) -> Json:
        """Give decisions, newest first."""
        ...

    async def release(self, actor: Actor, release_id: str) -> Json:
        """Give one recorded decision whole."""
        ...

    async def explain(self, actor: Actor, release_id: str) -> Json:
        """Explain a recorded decision: every check, what was wanted, and which document and line says so."""
        ...

    async def verify(
        self, actor: Actor, evidence: JsonValue, *, request: bytes | None, at: datetime | None
    ) -> Json:
        """Verify, measure and judge evidence; nothing is spent, no keys."""
        ...


class ImageWork(Protocol):
    """The images of the policy in force."""

    async def images(self, actor: Actor, *, after: str | None, limit: int) -> Json:
        """Give the image documents, by name."""
        ...

    async def measurements(self, actor: Actor, name: str, *, after: str | None, limit: int) -> Json:
        """Give every measurement that an image may show (by name or os_image_hash), in order."""
        ...


class OperatorWork(Protocol):
    """Who may operate the KMS, and what they did."""

    async def operators(self, actor: Actor, *, after: str | None, limit: int) -> Json:
        """Give the operators, by name."""
        ...

    async def add(
        self, actor: Actor, name: str, role: Role, *, life: timedelta | None, subject: str | None
    ) -> Json:
        """Add an operator: with a token that is shown this once, or a client certificate's subject."""
        ...

    async def revoke(self, actor: Actor, name: str) -> Json:
        """End an operator's access, for ever."""
        ...

    async def actions(self, actor: Actor, *, before: str | None, limit: int) -> Json:
        """Give what operators did, newest first."""
        ...


class KeyWork(Protocol):
    """Epochs of the root, and the KMS identity; never a secret."""

    async def keys(self, actor: Actor) -> Json:
        """Give the epochs with their states, and the generations of the identity."""
        ...

    async def rotate(self, actor: Actor, *, at: datetime | None) -> Json:
        """Make the next epoch, to be current now or from `at` on.

        While an epoch waits for its time no further one is made: it gets this time.
        """
        ...

    async def retire(self, actor: Actor, epoch: int, *, seen_within: timedelta, force: bool) -> Json:
        """Give keys of an epoch to nobody any more.

        Refused while a guest that was seen within that time did not move on to a newer epoch, unless
        forced; and always for the current one.
        """
        ...

    async def rotation(self, actor: Actor, *, app: str | None, since: timedelta) -> Json:
        """Say which epochs the guests of an app (hex), or of all, took since then."""
        ...

    async def rotate_identity(self, actor: Actor) -> Json:
        """Make the next generation of the KMS identity; servers take it up when they start."""
        ...


class LedgerWork(Protocol):
    """The ledger: its entries, for those who may see them, and what anybody may have."""

    async def entries(self, actor: Actor, *, start: int, limit: int, kind: str | None) -> Json:
        """Give what is among the `limit` entries from index `start` on, in order; `kind` None: all kinds."""
        ...

    async def entry(self, actor: Actor, which: int | str) -> Json:
        """Give one entry by its index, or by its id; one that has no index yet too."""
        ...

    async def statement(self, actor: Actor) -> Json:
        """Give the ledger's origin, key and size, with the identity's signature over the key."""
        ...

    async def checkpoint(self, actor: Actor) -> str:
        """Give the newest checkpoint, a signed note."""
        ...

    async def proof(self, actor: Actor, release_id: str) -> Json:
        """Give the proof that a release, refusal or action is in the newest checkpoint."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Office:
    """All of it, on this machine's database or on a server."""

    policies: PolicyWork
    records: RecordWork
    images: ImageWork
    operators: OperatorWork
    keys: KeyWork
    ledger: LedgerWork
