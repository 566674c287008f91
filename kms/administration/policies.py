"""Policy work: changing what is in force."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from kms.administration.changing import Prepared, Standing
from kms.administration.office import Files, Json
from kms.administration.policy_desk import POLICY_UNTRUSTED, refused
from kms.administration.policy_reading import PolicyReading
from kms.administration.policy_shapes import diff_json, prepared_diff
from kms.administration.policy_signing import PolicySigning
from kms.errors import NotFound, PolicyConflict, PolicyGated, PolicyRefused
from kms.operators import Actor, Permission
from kms.policy.diff import differences
from kms.policy.findings import PolicyInvalid
from kms.policy.history import ChangeKind, PolicyChange
from kms.policy.revision import Revision, written
from kms.policy.standing import (
    REVOCABLE,
    kept_revocations,
    with_revocation,
    with_standing_revocations,
)

_TOO_MANY = "too-many-records"
_TRIES = 5
_REVOKE = "policy-revoke"
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
        revision, files = await self.read(new, beside=self.changer.beside)
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
        files: Mapping[str, bytes] = await self.files(target, beside=self.changer.beside)
        in_force, united = standing.revision, target
        if standing.untrusted is not None and in_force is None:
            raise await self.cannot_tell(actor, action, target, standing.untrusted)
        if in_force is not None:
            united = await self.changer.beside(lambda: with_standing_revocations(target, in_force, None))
        if united is not target:
            kept = await self.changer.beside(lambda: kept_revocations(target, united))
            files = _with_file(files, "revocations/standing.yaml", written(kept))
        return await self._put(
            actor,
            action,
            await self.prepare(actor, standing, united, files, kind=ChangeKind.ROLLBACK, message=message),
        )

    async def revoke(self, actor: Actor, kind: str, value: str, *, reason: str) -> Json:
        """Revoke one thing on top of what is in force; see `PolicyWork.revoke`."""
        await self.journal.require(actor, Permission.CHANGE_POLICY, _REVOKE, f"{kind} {value}"[:256])
        if kind not in REVOCABLE:
            raise PolicyRefused(f"what can be revoked is {', '.join(REVOCABLE)}", reason="not-revocable")
        for _ in range(_TRIES):
            with suppress(PolicyConflict):  # it does not matter on top of what it comes
                return await self._revoke(actor, kind, value, reason=reason)
        return await self._revoke(actor, kind, value, reason=reason)

    async def _revoke(self, actor: Actor, kind: str, value: str, *, reason: str) -> Json:
        target = f"{kind} {value}"[:256]
        standing = await self.changer.standing()
        in_force = standing.revision
        if in_force is None and standing.untrusted is not None:
            await self.journal.record(actor, _REVOKE, target, outcome=POLICY_UNTRUSTED)
            raise PolicyRefused(standing.untrusted, reason=POLICY_UNTRUSTED)
        if in_force is None:
            raise PolicyRefused("there is no policy in force to revoke anything of", reason="policy-missing")
        try:
            revision, added = await self.changer.beside(
                lambda: with_revocation(in_force, kind, value, reason=reason)
            )
        except PolicyInvalid as error:
            found = refused(error)
            messages = "; ".join(dict.fromkeys(each.message for each in error.findings))
            raise PolicyRefused(
                f"{value[:256]}: {messages}", reason=found.reason, details=found.details
            ) from None
        files = await self.files(in_force, beside=self.changer.beside)
        for document in added:
            files = _with_file(files, f"revocations/{document['name']}.yaml", written([document]))
        prepared = await self.prepare(
            actor, standing, revision, files, kind=ChangeKind.REVOKE, message=reason
        )
        return await self._put(actor, _REVOKE, prepared, target=target)

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
        after, diff = standing.revision, None
        with suppress(NotFound):  # whoever expects what never was is still told what is
            before = None if expect in {None, NOTHING_IN_FORCE} else await self.load(str(expect))
            if after is not None:
                found = await self.changer.beside(lambda: differences(before, after))
                diff = diff_json(expect, after.digest, found)
        active = None if standing.change is None else self.change_json(standing.change)
        return PolicyConflict(
            "another policy is in force than you saw; nothing was changed",
            details={"expected": expect, "active": active, "diff": diff},
        )

    async def _gate(self, actor: Actor, action: str, new: Revision, since: timedelta) -> None:
        """Refuse a change that would newly refuse guests that were seen lately."""
        judged = await self.rehearse(new, since)
        if judged["newly_refused"]:
            detail, reason = "this policy would refuse guests that got their keys lately", None
        elif not judged["complete"]:
            detail, reason = "there are more records than can be judged: ask for a shorter time", _TOO_MANY
        else:
            return
        await self.journal.record(actor, action, new.digest, outcome=PolicyGated.code)
        raise PolicyGated(f"{detail}; nothing was changed", reason=reason, details={"what_if": judged})

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
        if prepared.changes_nothing and not await self._renews(change):
            await self.journal.record(actor, action, change.revision, outcome="unchanged")
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

    async def _renews(self, change: PolicyChange) -> bool:
        """Say whether enough operators signed that what is in force shall come into force anew."""
        authority = self.changer.authority
        return authority.trust is not None and authority.has_quorum(
            await self.changer.with_signatures(change)
        )


def _with_file(files: Mapping[str, bytes], name: str, content: bytes) -> dict[str, bytes]:
    """Add a file; to one of the same name, for YAML holds many documents."""
    return {**files, name: files.get(name, b"") + content}
