"""Proposals: changes of policy that wait for the signatures of a quorum."""

from dataclasses import dataclass

from kms.administration.changing import Standing
from kms.administration.office import Files, Json
from kms.administration.policy_desk import PolicyDesk
from kms.errors import NotFound, PolicyRefused
from kms.operators import Actor, Permission
from kms.policy.history import ChangeKind, PolicyChange, PolicySignature
from kms.policy.statement import Statement
from kms.policy.trust import verify_policy_signature

_READ = "policy-read"
_SIGN = "policy-sign"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySigning(PolicyDesk):
    """The part of `PolicyWork` about proposals and signatures."""

    async def proposals(self, actor: Actor) -> Json:
        """Give what waits for signatures; see `PolicyWork.proposals`."""
        await self.journal.require(actor, Permission.READ_POLICY, _READ)
        standing = await self.changer.standing()
        found = await self.changer.history.proposals()
        current_first = sorted(found, key=lambda each: self.is_stale(each, standing))
        return {"proposals": [await self.proposal_json(each, standing) for each in current_first]}

    async def proposal(self, actor: Actor, revision: str) -> Json:
        """Give the current proposal of a revision; see `PolicyWork.proposal`."""
        await self.journal.require(actor, Permission.READ_POLICY, _READ)
        standing = await self.changer.standing()
        return await self.proposal_json(await self._current(revision, standing), standing)

    async def propose(
        self, actor: Actor, new: str | Files, *, message: str, lift_revocations: bool = False
    ) -> Json:
        """Propose a policy for signing; see `PolicyWork.propose`."""
        action = "policy-propose"
        await self.journal.require(actor, Permission.CHANGE_POLICY, action)
        revision, files = await self.read(new, beside=self.changer.beside)
        standing = await self.changer.standing()
        await self.keep_revocations(actor, action, revision, standing, lift=lift_revocations)
        prepared = await self.prepare(
            actor, standing, revision, files, kind=ChangeKind.APPLY, message=message
        )
        await self.changer.history.propose(prepared.change, prepared.statement)
        await self.journal.record(actor, action, revision.digest, details={"message": message})
        return await self.proposal_json(await self.changer.with_signatures(prepared.change), standing)

    async def sign(self, actor: Actor, revision: str, signature: PolicySignature) -> Json:
        """Add a signature to the current proposal of a revision; see `PolicyWork.sign`."""
        await self.journal.require(actor, Permission.CHANGE_POLICY, _SIGN, revision)
        standing = await self.changer.standing()
        proposal = await self._current(revision, standing)
        authority = self.changer.authority
        statement = Statement.of(proposal, authority.kms_identity)
        if authority.trust is None:
            detail = "this KMS has no trust file (KMS_POLICY_TRUST): no signature counts, and none is needed"
            raise await self._refused(actor, revision, detail, "no-trust-file")
        name = authority.trust.name_of(signature.public_key)
        if name is None:
            detail = "the key is not in the trust file"
            raise await self._refused(actor, revision, detail, "key-not-trusted")
        if not verify_policy_signature(statement, signature):
            detail = "the signature is not by this key over this statement"
            raise await self._refused(actor, revision, detail, "signature-invalid")
        await self.journal.record(actor, _SIGN, revision, details={"key": name})
        await self.changer.history.sign(statement, signature)
        return await self.proposal_json(await self.changer.with_signatures(proposal), standing)

    async def _current(self, revision: str, standing: Standing) -> PolicyChange:
        """Give the proposal of a revision that could come into force next."""
        found = await self.changer.history.proposals(revision)
        if not found:
            raise NotFound("nobody proposed this revision")
        current = next((each for each in found if not self.is_stale(each, standing)), None)
        if current is None:
            raise NotFound("another policy came into force since this was proposed: propose it again")
        return current

    async def _refused(self, actor: Actor, revision: str, detail: str, reason: str) -> PolicyRefused:
        await self.journal.record(actor, _SIGN, revision, outcome=reason)
        return PolicyRefused(detail, reason=reason)
