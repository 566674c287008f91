"""Policy work: changing what is in force."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from kms.administration.changing import Prepared, Standing
from kms.administration.office import Files, Json
from kms.administration.policy_desk import refused
from kms.administration.policy_reading import PolicyReading
from kms.administration.policy_shapes import diff_json, prepared_diff
from kms.administration.policy_signing import PolicySigning
from kms.errors import PolicyConflict, PolicyGated, PolicyRefused
from kms.operators import Actor, Permission
from kms.policy.diff import differences
from kms.policy.findings import PolicyInvalid
from kms.policy.history import ChangeKind
from kms.policy.revision import Revision, documents_of, written
from kms.policy.standing import REVOCABLE, with_revocation, with_standing_revocations

NOTHING_IN_FORCE = "none"  # what `expect` is where there is no policy yet


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyAdministration(PolicyReading, PolicySigning):
    """Implements `kms.administration.office.PolicyWork`."""

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
        """Put a policy in force; see `PolicyWork.apply`."""
        action = "policy-apply"
        await self.journal.require(actor, Permission.CHANGE_POLICY, action)
        revision, files = await self.read(new)
        standing = await self.changer.standing()
        await self._expect(actor, action, revision, standing, expect)
        await self.keep_revocations(actor, action, revision, standing, lift=lift_revocations)
        if gate is not None:
            await self._gate(actor, action, revision, gate)
        return await self._put(
            actor,
            action,
            await self.prepare(actor, standing, revision, files, kind=ChangeKind.APPLY, message=message),
        )

    async def rollback(self, actor: Actor, revision: str, *, message: str, expect: str | None) -> Json:
        """Put an earlier revision in force again; see `PolicyWork.rollback`."""
        action = "policy-rollback"
        await self.journal.require(actor, Permission.CHANGE_POLICY, action, revision)
        target = await self.load(revision)
        standing = await self.changer.standing()
        await self._expect(actor, action, target, standing, expect)
        files: Mapping[str, bytes] = await self.files(target)
        in_force, united = standing.revision, target
        if in_force is not None:
            united = await self.beside(lambda: with_standing_revocations(target, in_force, None))
        if united is not target:
            own = documents_of(target)
            kept = [each for each in documents_of(united) if each not in own]
            files = _with_file(files, "revocations/standing.yaml", written(kept))
        return await self._put(
            actor,
            action,
            await self.prepare(actor, standing, united, files, kind=ChangeKind.ROLLBACK, message=message),
        )

    async def revoke(self, actor: Actor, kind: str, value: str, *, reason: str) -> Json:
        """Revoke one thing on top of what is in force; see `PolicyWork.revoke`."""
        action, target = "policy-revoke", f"{kind} {value}"[:256]
        await self.journal.require(actor, Permission.CHANGE_POLICY, action, target)
        if kind not in REVOCABLE:
            raise PolicyRefused(f"what can be revoked is {', '.join(REVOCABLE)}", reason="not-revocable")
        standing = await self.changer.standing()
        in_force = standing.revision
        if in_force is None:
            raise PolicyRefused("there is no policy in force to revoke anything of", reason="policy-missing")
        try:
            revision, added = await self.beside(lambda: with_revocation(in_force, kind, value, reason=reason))
        except PolicyInvalid as error:
            raise refused(error) from None
        files = await self.files(in_force)
        for document in added:
            files = _with_file(files, f"revocations/{document['name']}.yaml", written([document]))
        prepared = await self.prepare(
            actor, standing, revision, files, kind=ChangeKind.REVOKE, message=reason
        )
        return await self._put(actor, action, prepared, target=target)

    async def _expect(
        self, actor: Actor, action: str, new: Revision, standing: Standing, expect: str | None
    ) -> None:
        """Go on only if what the operator saw is what stands.

        Raises:
            PolicyConflict: it is not; the details say what changed since.

        """
        actual = NOTHING_IN_FORCE if standing.head is None else standing.head.revision
        if expect is None or expect == actual:
            return
        await self.journal.record(actor, action, new.digest, outcome=PolicyConflict.code)
        raise await self._conflict(expect, standing)

    async def _conflict(self, expect: str | None, standing: Standing) -> PolicyConflict:
        before = None
        if expect is not None and expect != NOTHING_IN_FORCE:
            before = await self.load(expect)
        after, diff = standing.revision, None
        if after is not None:
            found = await self.beside(lambda: differences(before, after))
            diff = diff_json(expect, after.digest, found)
        active = None if standing.change is None else self.change_json(standing.change)
        return PolicyConflict(
            "another policy is in force than you saw; nothing was changed",
            details={"expected": expect, "active": active, "diff": diff},
        )

    async def _gate(self, actor: Actor, action: str, new: Revision, since: timedelta) -> None:
        """Refuse a change that would newly refuse guests that were seen lately."""
        judged = await self.rehearse(new, since)
        if judged["newly_refused"] or not judged["complete"]:
            await self.journal.record(actor, action, new.digest, outcome=PolicyGated.code)
            raise PolicyGated(
                "this policy would refuse guests that got their keys lately; nothing was changed",
                details={"what_if": judged},
            )

    async def _put(self, actor: Actor, action: str, prepared: Prepared, *, target: str | None = None) -> Json:
        """Put a prepared change in force, or say what it waits for."""
        change, diff = prepared.change, prepared_diff(prepared)
        outcome: Json = {
            "applied": True,
            "changed": False,
            "revision": change.revision,
            "sequence": None,
            "intent": None,
            "diff": diff,
            "proposal": None,
        }
        standing = prepared.standing
        if prepared.changes_nothing:
            return outcome | {"sequence": None if standing.head is None else standing.head.sequence}
        outcome |= {"intent": change.intent.value}
        entry = self.journal.entry(
            actor,
            action,
            target or change.revision,
            details={"revision": change.revision, "sequence": change.sequence, "message": change.message},
        )
        try:
            applied = await self.changer.put(prepared, entry)
        except PolicyConflict:
            await self.journal.record(actor, action, change.revision, outcome=PolicyConflict.code)
            seen = standing.head and standing.head.revision
            raise await self._conflict(seen or NOTHING_IN_FORCE, await self.changer.standing()) from None
        if applied:
            return outcome | {"changed": True, "sequence": change.sequence}
        await self.journal.record(actor, "policy-propose", change.revision)
        waiting = await self.changer.with_signatures(change)
        return outcome | {"applied": False, "proposal": await self.proposal_json(waiting, standing)}


def _with_file(files: Mapping[str, bytes], name: str, content: bytes) -> dict[str, bytes]:
    """Add a file; to one of the same name, for YAML holds many documents."""
    return {**files, name: files.get(name, b"") + content}
