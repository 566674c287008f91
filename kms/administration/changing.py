"""Changing the policy in force: one way for operators and for the watched folder.

A change is prepared against what stands now, and put in force only if that still stands. Where a trust file
asks for signatures, a change that has too few is a proposal that waits for them.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from kms.administration.beside import Beside
from kms.errors import LedgerUnavailable, PolicyConflict
from kms.ledger.actions import OperatorAction
from kms.operator_ports import PolicyHistory, SeenHead
from kms.policy.diff import Difference, differences, intent_of
from kms.policy.history import ChangeKind, Head, Intent, PolicyChange
from kms.policy.revision import Revision
from kms.policy.statement import Statement
from kms.policy_authority import PolicyAuthority, PolicyUntrusted, load_revision
from kms.ports import Clock, PolicyMoved

_MOST_AUTHOR = 256  # characters
_MOST_MESSAGE = 4096
UNKNOWN_FOLDER = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What stands now: the pointer, and the change and revision behind it.

    Where these may not be used, `untrusted` says why, there is no `change`, and `revision` is what this KMS
    has used last, if it is still there: what was revoked stays revoked, whatever the database says.
    """

    head: Head | None
    change: PolicyChange | None = None
    revision: Revision | None = None
    untrusted: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A change that could be made: to which revision, after what, and what it changes."""

    change: PolicyChange
    statement: Statement
    standing: Standing
    revision: Revision
    differences: tuple[Difference, ...]

    @property
    def changes_nothing(self) -> bool:
        """Whether this revision is in force already."""
        change = self.standing.change
        return change is not None and change.revision == self.revision.digest


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyChanger:
    """Prepares changes, and puts them in force. `beside` computes what takes long."""

    history: PolicyHistory
    authority: PolicyAuthority
    anchor: SeenHead
    clock: Clock
    beside: Beside

    async def standing(self) -> Standing:
        """Give what stands now.

        Raises:
            LedgerUnavailable: the database or the anchor did not answer.

        """
        seen = await self.anchor.read()
        head = None
        try:
            head = await self.history.head()
            change = await self._verified(head, seen)
            stands = None if change is None else await load_revision(change.revision, self.history)
            return Standing(head=head, change=change, revision=stands)
        except PolicyUntrusted as error:
            used = None
            with suppress(PolicyUntrusted):
                used = None if seen is None else await load_revision(seen.revision, self.history)
            return Standing(head=head, revision=used, untrusted=error.detail)

    async def folder_revision(self) -> str | None:
        """Give the digest that the watched folder had when it was applied last.

        Raises:
            PolicyUntrusted: what the database says may not be used.

        """
        seen = await self.anchor.read()
        change = await self._verified(await self.history.head(), seen)
        return None if change is None else change.folder

    async def _verified(self, head: Head | None, seen: Head | None) -> PolicyChange | None:
        # The anchor was read first, and only ever follows the pointer: else a change in between would look
        # like an older database.
        if head is not None:
            return await self.authority.verify(head, seen, self.history)
        if seen is not None:
            raise PolicyUntrusted(f"the database names no policy, and this server has used {seen}")
        return None

    async def prepare(
        self,
        standing: Standing,
        revision: Revision,
        *,
        files: Mapping[str, bytes] | None,
        kind: ChangeKind,
        author: str,
        message: str,
        folder: str | None = None,
    ) -> Prepared:
        """Store a revision, and say what putting it in force would change.

        What is in force already may come into force anew, as a change that says it widens: so its signatures
        are renewed when keys leave the trust file.
        """
        before, seen = standing.change, await self.anchor.read()
        renewed = before is not None and before.revision == revision.digest
        # What is in force is not written anew: nobody shall change under what words it was agreed to.
        if not renewed or (files is not None and await self.history.files(revision.digest) is None):
            await self.history.store(revision, files)
        found = await self.beside(lambda: differences(standing.revision, revision))
        change = PolicyChange(
            sequence=max(await self.history.last_sequence(), 0 if seen is None else seen.sequence) + 1,
            revision=revision.digest,
            previous=None if before is None else before.revision,
            intent=Intent.WIDEN if renewed or before is None else intent_of(found),
            kind=kind,
            author=author[:_MOST_AUTHOR],
            message=message[:_MOST_MESSAGE],
            made_at=self.clock(),
            folder=folder or await self._last_folder(standing, seen),
        )
        return Prepared(
            change=change,
            statement=Statement.of(change, self.authority.kms_identity),
            standing=standing,
            revision=revision,
            differences=found,
        )

    async def _last_folder(self, standing: Standing, seen: Head | None) -> str | None:
        if standing.untrusted is None:
            return None if standing.change is None else standing.change.folder
        # What the folder was when it was applied last: unknown, it would be applied again as if it were new.
        used = None if seen is None else await self.history.change(seen.sequence)
        return UNKNOWN_FOLDER if used is None or used.head != seen else used.folder

    async def put(self, prepared: Prepared, action: OperatorAction | None) -> bool:
        """Put a change in force, with the record of who did it; say False where it waits for signatures.

        Raises:
            PolicyConflict: something else came into force meanwhile.
            LedgerUnavailable: it could not be written.

        """
        change = prepared.change
        if self.authority.trust is not None:
            change = await self.with_signatures(change)
            if not self.authority.has_quorum(change):
                await self.history.propose(change, prepared.statement)
                return False
        try:
            await self.history.append(change, expect=prepared.standing.head, action=action)
        except PolicyMoved:
            raise PolicyConflict("another policy came into force meanwhile; nothing was changed") from None
        with suppress(LedgerUnavailable):  # it is in force; a server that uses it remembers it anyway
            await self.anchor.remember(change.head)
        return True

    async def with_signatures(self, change: PolicyChange) -> PolicyChange:
        """Give a change as it was proposed, with the signatures over its statement."""
        statement = Statement.of(change, self.authority.kms_identity)
        for proposal in await self.history.proposals(change.revision):
            if Statement.of(proposal, self.authority.kms_identity) == statement:
                return replace(proposal, made_at=change.made_at)
        return change
