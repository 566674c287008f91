"""The watched folder as an author of policy: the simple way to live, by the same rules as operators."""

from collections.abc import Mapping
from dataclasses import dataclass

from kms.administration.changing import UNKNOWN_FOLDER, PolicyChanger, Standing
from kms.administration.office import Json
from kms.administration.permission import Journal
from kms.errors import PolicyConflict
from kms.operators import Actor, Proof, Role
from kms.policy.history import ChangeKind
from kms.policy.revision import Revision, written
from kms.policy.standing import kept_revocations, with_standing_revocations
from kms.policy_authority import PolicyUntrusted

_ACTOR = Actor(name="KMS_POLICY_DIR", role=Role.OPERATOR, proof=Proof.FOLDER)
_MESSAGE = "the watched folder changed"
_TRIES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderPolicies:
    """Implements `kms.ports.PolicyRevisions`."""

    changer: PolicyChanger
    journal: Journal

    async def folder_revision(self) -> str | None:
        """Give the digest that the folder had when it was applied last; see `PolicyRevisions`."""
        return await self.changer.folder_revision()

    async def apply(self, revision: Revision, files: Mapping[str, bytes]) -> bool:
        """Put the folder in force, or propose it; see `PolicyRevisions.apply`."""
        for _ in range(_TRIES):
            try:
                return await self._apply(revision, files)
            except PolicyConflict:
                if await self.folder_revision() == revision.digest:
                    return True  # another server with the same folder was faster
                # A command was faster: what it revoked has to stay.
        return await self._apply(revision, files)

    async def _apply(self, revision: Revision, files: Mapping[str, bytes]) -> bool:
        standing = await self.changer.standing()
        if standing.untrusted is not None:
            # Not mended by itself: somebody has to look, and to say which revocations stand.
            raise PolicyUntrusted(standing.untrusted)
        change = standing.change
        if change is not None and change.folder == UNKNOWN_FOLDER and change.revision != revision.digest:
            raise PolicyUntrusted(
                "nobody knows what the watched folder was when it was applied last: apply it by command once"
            )
        united = await self._with_standing(revision, standing)
        if united is not revision:
            files = {**files, "revocations/standing.yaml": written(kept_revocations(revision, united))}
            # The folder itself too: what it revokes it may take back later.
            await self.changer.history.store(revision, None)
        prepared = await self.changer.prepare(
            standing,
            united,
            files=files,
            kind=ChangeKind.FOLDER,
            author=_ACTOR.name,
            message=_MESSAGE,
            folder=revision.digest,
        )
        details: Json = {"revision": united.digest, "sequence": prepared.change.sequence}
        return await self.changer.put(
            prepared, self.journal.entry(_ACTOR, "policy-folder", revision.digest, details=details)
        )

    async def _with_standing(self, revision: Revision, standing: Standing) -> Revision:
        change, in_force = standing.change, standing.revision
        if change is None or in_force is None or change.revision == change.folder:
            return revision  # what is in force is the last folder's: nothing else was revoked
        last = None if change.folder is None else await self.changer.history.load(change.folder)
        return await self.changer.beside(lambda: with_standing_revocations(revision, in_force, last))
