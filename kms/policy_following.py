"""The policy in force, compiled in memory, and the following of what the database says of it."""

import asyncio
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import structlog

from kms.background import Background, SaidLately, collector_at_rest
from kms.errors import LedgerUnavailable
from kms.evidence.launch import Launch, LaunchFinder, NamedApp
from kms.identifiers import Measurement
from kms.measurement.images import LaunchHint
from kms.operator_ports import PolicyPast, SeenHead
from kms.policy.compiled import Policy
from kms.policy.history import Head, PolicyChange
from kms.policy.revision import Revision
from kms.policy_authority import PolicyAuthority, PolicyUntrusted, load_revision
from kms.snp.verify import VerifiedReport

_log = structlog.get_logger("kms.policy")

# Every server follows a change within 2 s; a decision by an older revision is refused by the record anyway.
_FOLLOW_EVERY: Final = 1.0
_PAUSE_BETWEEN_IMAGES: Final = 2e-4  # seconds
_STALE_AFTER: Final = 30.0  # seconds: a large revision takes some to be taken over


@dataclass(frozen=True, slots=True)
class LoadedPolicy:
    """Implements `kms.ports.ActivePolicy`."""

    policy: Policy
    launches: LaunchFinder
    computing: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))

    @classmethod
    def of(cls, revision: Revision, before: "LoadedPolicy | None" = None) -> "LoadedPolicy":
        """Compile a revision; of the one before, the measurements of images that stay the same are kept."""
        with collector_at_rest():
            policy = Policy(revision)
        # After each image: a thread that gives Python's lock back for a moment, as hashing a page does, and
        # takes it again at once can keep the event loop from it for hundreds of milliseconds.
        pause = partial(time.sleep, _PAUSE_BETWEEN_IMAGES)
        earlier = None if before is None else before.launches
        return cls(policy, LaunchFinder(policy, earlier, after_each=pause))

    async def find_launch(
        self, verified: VerifiedReport, hint: LaunchHint, app: NamedApp | None
    ) -> Launch | None:
        """Find a launch; where measurements have to be computed, beside the event loop."""
        if self.launches.only_looks_up(hint, app):
            return self.launches.find(verified, hint, app)
        return await asyncio.to_thread(self.launches.find, verified, hint, app)

    async def may_show(self, claimed: Measurement, hint: LaunchHint, app: NamedApp | None) -> bool:
        """Say whether some image shows a claimed measurement; as `find_launch`.

        What follows from a guest's own words is computed beside the event loop, one at a time: anybody may
        make us compute it.
        """
        if self.launches.only_looks_up(hint, app):
            return self.launches.may_show(claimed, hint, app)
        async with self.computing:
            return await asyncio.to_thread(self.launches.may_show, claimed, hint, app)


class FollowedPolicies:
    """Implements `kms.ports.Policies`: keeps the revision in force compiled, and follows the pointer.

    What the pointer names is used only once `authority` has verified how it came there; `anchor` keeps what
    was used last outside the database, so that an older state of it is noticed.
    """

    def __init__(self, history: PolicyPast, authority: PolicyAuthority, anchor: SeenHead) -> None:
        self._history = history
        self._authority = authority
        self._anchor = anchor
        self._loaded: LoadedPolicy | None = None
        self._head: Head | None = None
        self._refused: PolicyUntrusted | None = None
        self._seen: Head | None = None
        self._looked_at = time.monotonic()
        self._said = SaidLately()
        self._follower = Background("policy-follower", self._follow, pause=_FOLLOW_EVERY)
        self._lock = asyncio.Lock()
        self._filling: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """Whether the pointer is being followed."""
        return self._follower.alive

    @property
    def refused(self) -> bool:
        """Whether the database names a policy that must not be used."""
        return self._refused is not None

    @property
    def loaded(self) -> bool:
        """Whether there is a policy in memory."""
        return self._loaded is not None

    @property
    def sequence(self) -> int:
        """The sequence number of the change whose revision is used; 0 while there is none."""
        return 0 if self._head is None else self._head.sequence

    @property
    def stale(self) -> bool:
        """Whether nobody could look at what is in force for some time, though somebody is there to look."""
        return self.alive and time.monotonic() - self._looked_at > _STALE_AFTER

    async def active(self) -> LoadedPolicy | None:
        """Give the revision in force, as last seen.

        Raises:
            PolicyUntrusted: the database names one that may not be used. What was in force before may have
                been narrowed since: it is not used either.
            LedgerUnavailable: nobody could look for some time.

        """
        if self._refused is not None:
            raise PolicyUntrusted(self._refused.detail, reason=self._refused.reason)
        if self.stale:
            raise LedgerUnavailable(
                "the policy in force has not been looked at", reason="policy-not-followed"
            )
        return self._loaded

    async def refresh(self) -> None:
        """Look at the pointer now, and load what it names.

        Raises:
            PolicyUntrusted: what it names must not be used, and until that changes nothing is.
            LedgerUnavailable: the database did not answer, or what it names is not there.

        """
        async with self._lock:
            try:
                await self._refresh()
            except PolicyUntrusted as error:
                self._refused = error
                raise
            except LedgerUnavailable as error:
                if self._head is not None and self._seen != self._head:
                    # Something else was used since, and the database does not say what.
                    self._refused = PolicyUntrusted(f"what is in force cannot be told: {error.detail}")
                raise
            self._refused = None
            self._looked_at = time.monotonic()

    async def _remembered(self, head: Head) -> bool:
        """Keep in the anchor what is about to be used; False where the pointer moved on meanwhile."""
        try:
            await self._anchor.remember(head)
        except PolicyUntrusted:
            if await self._history.head() == head:
                raise
            return False  # another process of this server has used the next one already
        return True

    async def _refresh(self) -> None:
        # The anchor first, which only ever follows the pointer: read the other way round, a change in between
        # would look like an older database.
        seen = self._seen = await self._anchor.read()
        head = await self._history.head()
        if head is not None and head == self._head == seen:
            return
        if head is None:
            if seen is not None:
                raise PolicyUntrusted(f"the database names no policy, and this server has used {seen}")
            return
        past = _Recalling(self._history)
        await self._authority.verify(head, seen, past)
        if self._loaded is None or self._loaded.policy.revision != head.revision:
            revision = await load_revision(head.revision, past)
            loaded = await asyncio.to_thread(LoadedPolicy.of, revision, self._loaded)
            if not await self._remembered(head):
                await self._refresh()
                return
            self._loaded = loaded
            self._history.keep(revision)
            # Whoever asks meanwhile waits only for the images of the app that it names.
            self._filling = asyncio.create_task(_fill(loaded.launches))
        elif not await self._remembered(head):
            await self._refresh()
            return
        self._head = head
        _log.info("policy-in-force", revision=head.revision, sequence=head.sequence)

    async def filled(self) -> None:
        """Wait until nothing is left to compute ahead for the revision in force."""
        if self._filling is not None:
            await self._filling

    def start(self) -> None:
        """Start following in the running event loop."""
        self._follower.start()

    async def stop(self) -> None:
        """Stop following."""
        await self._follower.stop()

    async def _follow(self) -> None:
        try:
            await self.refresh()
        except LedgerUnavailable as error:
            # The revision in memory stays in force; the record refuses it if the pointer moved on.
            if self._said.is_due(error.detail):
                _log.error("policy-not-followed", cause=error.detail, reason=error.reason)


class _Recalling:
    """A past that reads no revision twice while a change is followed: a large one takes seconds."""

    def __init__(self, past: PolicyPast) -> None:
        self._past = past
        self._known: dict[str, Revision] = {}

    async def head(self) -> Head | None:
        return await self._past.head()

    async def change(self, sequence: int) -> PolicyChange | None:
        return await self._past.change(sequence)

    async def changes(self, *, before: int | None, limit: int) -> tuple[PolicyChange, ...]:
        return await self._past.changes(before=before, limit=limit)

    async def load(self, digest: str) -> Revision | None:
        if digest not in self._known and (found := await self._past.load(digest)) is not None:
            self._known[digest] = found
        return self._known.get(digest)

    def keep(self, revision: Revision) -> None:
        self._past.keep(revision)


async def _fill(launches: LaunchFinder) -> None:
    try:
        await asyncio.to_thread(launches.fill)
    except Exception as error:  # noqa: BLE001 -- a task's outermost shell; `find` computes what is missing
        _log.error("launches-not-filled", exc_info=error)
