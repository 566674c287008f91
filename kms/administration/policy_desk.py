"""What every part of policy work needs: reading policies, and preparing a change of the one in force."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Protocol

from kms.administration.beside import Beside
from kms.administration.changing import PolicyChanger, Prepared, Standing
from kms.administration.office import Files, Json
from kms.administration.permission import Journal
from kms.administration.policy_shapes import change_json, diff_json, findings_json, proposal_json
from kms.errors import NotFound, PolicyRefused
from kms.operators import Actor
from kms.policy.diff import differences
from kms.policy.findings import PolicyInvalid
from kms.policy.history import ChangeKind, PolicyChange
from kms.policy.revision import Revision, documents_of, written
from kms.policy.standing import lifted_revocations
from kms.ports import Clock
from kms.snp.advisories import Advisories

POLICY_UNTRUSTED: Final = "policy-untrusted"


class Rehearsal(Protocol):
    """Judges every recorded guest by a candidate; see `kms.administration.what_if`."""

    async def __call__(self, candidate: Revision, since: timedelta) -> Json:
        """Give WHAT_IF."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyDesk:
    """The means of policy work. `rehearse` is what what-if asks.

    What only reads is computed by `beside`; what changes something by the changer's own, so that nobody who
    reads can make a revocation wait.
    """

    changer: PolicyChanger
    journal: Journal
    clock: Clock
    beside: Beside
    advisories: Advisories
    development: bool
    rehearse: Rehearsal

    async def load(self, digest: str) -> Revision:
        """Load a stored revision.

        Raises:
            NotFound: there is none of this name, or its stored body is not what the name says.

        """
        try:
            revision = await self.changer.history.load(digest)
        except PolicyInvalid:
            raise NotFound("the stored body of this revision is not what its name says") from None
        if revision is None:
            raise NotFound("there is no such revision")
        return revision

    async def files(self, revision: Revision, *, beside: Beside) -> Mapping[str, bytes]:
        """Give a revision's files as they were written, if those that are stored are its own."""
        files = await self.changer.history.files(revision.digest)
        if files is not None:
            try:
                seen = await beside(lambda: Revision.from_files(files, development=True))
            except PolicyInvalid:
                seen = None
            if seen is not None and seen.digest == revision.digest:
                return files
        return {"policy.yaml": written(documents_of(revision))}

    async def read(self, new: str | Files, *, beside: Beside) -> tuple[Revision, Mapping[str, bytes] | None]:
        """Read a policy from files, or a stored one by its name; the files only where they were given.

        Raises:
            PolicyRefused: the files hold errors.
            NotFound: there is no such revision.

        """
        if isinstance(new, str):
            return await self.load(new), None
        try:
            revision = await beside(lambda: Revision.from_files(new, development=self.development))
        except PolicyInvalid as error:
            raise refused(error) from None
        return revision, new

    async def prepare(
        self,
        actor: Actor,
        standing: Standing,
        revision: Revision,
        files: Mapping[str, bytes] | None,
        *,
        kind: ChangeKind,
        message: str,
    ) -> Prepared:
        """Prepare a change, in the actor's name."""
        return await self.changer.prepare(
            standing,
            revision,
            files=files,
            kind=kind,
            author=f"{actor.name} ({actor.proof})",
            message=message,
        )

    async def keep_revocations(
        self, actor: Actor, action: str, revision: Revision, standing: Standing, *, lift: bool
    ) -> None:
        """Refuse a policy that silently lifts what is revoked: a folder that somebody forgot to update."""
        stands = standing.revision
        if stands is None and standing.untrusted is not None and not lift:
            raise await self.cannot_tell(actor, action, revision, standing.untrusted)
        lifted = (
            () if stands is None else await self.changer.beside(lambda: lifted_revocations(stands, revision))
        )
        if lifted and not lift:
            await self.journal.record(actor, action, revision.digest, outcome=PolicyRefused.code)
            raise PolicyRefused(
                f"this policy lifts {len(lifted)} revocation(s) that stand: {'; '.join(lifted[:5])}",
                reason="revocations-lifted",
                details={"lifted": list(lifted)},
            )

    async def cannot_tell(self, actor: Actor, action: str, revision: Revision, why: str) -> PolicyRefused:
        """Give the refusal of a change while nobody can tell what is revoked."""
        await self.journal.record(actor, action, revision.digest, outcome=POLICY_UNTRUSTED)
        return PolicyRefused(
            f"{why}; so what is revoked cannot be told. Apply a policy that holds every revocation, and say"
            " that revocations may be lifted",
            reason=POLICY_UNTRUSTED,
        )

    def change_json(self, change: PolicyChange) -> Json:
        """Give a change as JSON."""
        return change_json(change, self.changer.authority)

    def is_stale(self, proposal: PolicyChange, standing: Standing) -> bool:
        """Say whether a proposal was overtaken: another change came into force since."""
        before = None if standing.change is None else standing.change.revision
        last = 0 if standing.head is None else standing.head.sequence
        return proposal.sequence <= last or proposal.previous != before

    async def proposal_json(self, proposal: PolicyChange, standing: Standing) -> Json:
        """Give a proposal as JSON; while it can come into force, with what it changes of what stands."""
        stale, diff = self.is_stale(proposal, standing), None
        with suppress(NotFound):  # a body that was taken away: nobody can apply it either
            if not stale:
                new = await self.load(proposal.revision)
                before = None if proposal.previous is None else standing.revision
                found = await self.beside(lambda: differences(before, new))
                diff = diff_json(proposal.previous, proposal.revision, found)
        return proposal_json(proposal, self.changer.authority, stale=stale, diff=diff)


def refused(error: PolicyInvalid) -> PolicyRefused:
    """Give the refusal of a policy with errors."""
    return PolicyRefused(
        "the policy has errors", reason="policy-invalid", details={"findings": findings_json(error.findings)}
    )
