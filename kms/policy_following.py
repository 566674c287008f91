"""Policy revisions in the database, and the one in force in memory."""

import asyncio
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import structlog
from sqlalchemy import insert, select, update
from sqlalchemy.dialects.sqlite import insert as insert_or
from sqlalchemy.ext.asyncio import AsyncEngine

from kms.background import Background, collector_at_rest
from kms.database.engine import reading, writing
from kms.database.schema import active_policy, policy_revisions
from kms.errors import LedgerUnavailable
from kms.evidence.launch import Launch, LaunchFinder, NamedApp
from kms.identifiers import Measurement
from kms.ledger.entries import timestamp
from kms.measurement.images import LaunchHint
from kms.policy.compiled import Policy
from kms.policy.findings import PolicyInvalid
from kms.policy.revision import Revision, with_standing_revocations
from kms.ports import Clock
from kms.snp.verify import VerifiedReport

_log = structlog.get_logger("kms.policy")

# Every server follows a change within 2 s; a decision by an older revision is refused by the record anyway.
_FOLLOW_EVERY: Final = 1.0
_PAUSE_BETWEEN_IMAGES: Final = 2e-4  # seconds


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


class PolicyStore:
    """Stores revisions, and moves the pointer to the one in force. Implements `kms.ports.PolicyRevisions`.

    Every method raises `LedgerUnavailable` when the database does not answer.
    """

    def __init__(self, engine: AsyncEngine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock

    async def active_revision(self) -> str | None:
        """Give the digest of the revision in force, None if there is none."""
        async with reading(self._engine) as connection:
            row = (await connection.execute(select(active_policy.c.revision))).first()
        return None if row is None else str(row.revision)

    async def folder_revision(self) -> str | None:
        """Give the digest that the watched folder had when it was applied last."""
        async with reading(self._engine) as connection:
            row = (await connection.execute(select(active_policy.c.folder_revision))).first()
        return None if row is None else row.folder_revision

    async def load(self, digest: str) -> Revision | None:
        """Load a stored revision and check it against its digest.

        Raises:
            PolicyInvalid: the stored bytes are not what the digest names.

        """
        query = select(policy_revisions.c.documents).where(policy_revisions.c.revision == digest)
        async with reading(self._engine) as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            return None
        return await asyncio.to_thread(_read, row.documents, digest)

    async def apply(
        self, revision: Revision, *, author: str, message: str, from_folder: bool = False
    ) -> bool:
        """Store a revision and put it in force, in one transaction; say whether anything changed.

        What a command revoked stays revoked when a folder is applied (`with_standing_revocations`).

        Raises:
            PolicyInvalid: such a revocation does not fit the folder.

        """
        now = timestamp(self._clock())
        folder = revision if from_folder else None
        if folder is not None:
            revision = await self._with_standing_revocations(folder)
        async with writing(self._engine) as connection:
            for each in {revision.digest: revision, **({folder.digest: folder} if folder else {})}.values():
                await connection.execute(
                    insert_or(policy_revisions)
                    .values(
                        revision=each.digest,
                        documents=each.canonical,
                        author=author,
                        message=message,
                        created_at=now,
                    )
                    .on_conflict_do_nothing()
                )
            folder_digest = None if folder is None else folder.digest
            row = (await connection.execute(select(active_policy))).first()
            if row is None:
                await connection.execute(
                    insert(active_policy).values(
                        id=1,
                        revision=revision.digest,
                        sequence=1,
                        activated_at=now,
                        folder_revision=folder_digest,
                    )
                )
                return True
            changed = bool(row.revision != revision.digest)
            values = {"folder_revision": folder_digest or row.folder_revision}
            if changed:
                values |= {"revision": revision.digest, "sequence": row.sequence + 1, "activated_at": now}
            await connection.execute(update(active_policy).values(values))
        return changed

    async def _with_standing_revocations(self, folder: Revision) -> Revision:
        active, last = await self.active_revision(), await self.folder_revision()
        if active == last:
            return folder  # what is in force is the last folder's: nothing else was revoked
        in_force = None if active is None else await self.load(active)
        if in_force is None:
            return folder
        last_folder = None if last is None else await self.load(last)
        return await asyncio.to_thread(with_standing_revocations, folder, in_force, last_folder)


class FollowedPolicies:
    """Implements `kms.ports.Policies`: keeps the revision in force compiled, and follows the pointer."""

    def __init__(self, store: PolicyStore) -> None:
        self._store = store
        self._loaded: LoadedPolicy | None = None
        self._follower = Background("policy-follower", self._follow, pause=_FOLLOW_EVERY)
        self._lock = asyncio.Lock()
        self._filling: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """Whether the pointer is being followed."""
        return self._follower.alive

    async def active(self) -> LoadedPolicy | None:
        """Give the revision in force, as last seen."""
        return self._loaded

    async def refresh(self) -> None:
        """Look at the pointer now, and load what it names.

        Raises:
            LedgerUnavailable: the database did not answer, or what it names cannot be used.

        """
        async with self._lock:
            digest = await self._store.active_revision()
            if digest is None or (self._loaded is not None and self._loaded.policy.revision == digest):
                return
            try:
                revision = await self._store.load(digest)
            except PolicyInvalid as error:
                raise LedgerUnavailable(f"the stored policy {digest} is damaged: {error}") from error
            if revision is None:
                raise LedgerUnavailable(f"the policy in force, {digest}, is not in the database")
            loaded = self._loaded = await asyncio.to_thread(LoadedPolicy.of, revision, self._loaded)
            # Whoever asks meanwhile waits only for the images of the app that it names.
            self._filling = asyncio.create_task(_fill(loaded.launches))
            _log.info("policy-in-force", revision=digest)

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
            _log.error("policy-not-followed", cause=error.detail)


def _read(documents: bytes, digest: str) -> Revision:
    with collector_at_rest():
        return Revision.from_canonical(documents, digest=digest)


async def _fill(launches: LaunchFinder) -> None:
    try:
        await asyncio.to_thread(launches.fill)
    except Exception as error:  # noqa: BLE001 -- a task's outermost shell; `find` computes what is missing
        _log.error("launches-not-filled", exc_info=error)
