"""Reading policies: what is in force, its history, what would change, who would be refused."""

from collections import Counter
from dataclasses import dataclass
from datetime import timedelta

from kms.administration.office import Files, Json
from kms.administration.policy_desk import PolicyDesk
from kms.administration.policy_shapes import diff_json, findings_json
from kms.operators import Actor, Permission
from kms.policy.diff import differences
from kms.policy.documents import KINDS
from kms.policy.findings import Severity
from kms.policy.lint import lint
from kms.policy.revision import Revision, documents_of
from kms.strict_json import JsonValue

_READ = "policy-read"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyReading(PolicyDesk):
    """The part of `PolicyWork` that changes nothing."""

    async def status(self, actor: Actor) -> Json:
        """Give what is in force; see `PolicyWork.status`."""
        await self.journal.require(actor, Permission.READ_POLICY, _READ)
        standing, trust = await self.changer.standing(), self.changer.authority.trust
        documents: Counter[str] = Counter()
        if standing.revision is not None:
            documents.update(KINDS[type(each)] for each in standing.revision.documents)
        proposals = [
            each for each in await self.changer.history.proposals() if not self.is_stale(each, standing)
        ]
        return {
            "active": None if standing.change is None else self.change_json(standing.change),
            "trusted": standing.untrusted is None,
            "untrusted": standing.untrusted,
            "documents": dict(sorted(documents.items())),
            "trust": None
            if trust is None
            else {"widen": trust.widen, "narrow": trust.narrow, "keys": [*sorted(trust.keys)]},
            "proposals": len(proposals),
        }

    async def history(self, actor: Actor, *, before: int | None, limit: int) -> Json:
        """Give changes, newest first; see `PolicyWork.history`."""
        await self.journal.require(actor, Permission.READ_POLICY, _READ)
        found = await self.changer.history.changes(before=before, limit=limit)
        return {
            "changes": [self.change_json(each) for each in found],
            "next": found[-1].sequence if len(found) == limit else None,
        }

    async def revision(self, actor: Actor, revision: str) -> Json:
        """Give a revision as it was written; see `PolicyWork.revision`."""
        await self.journal.require(actor, Permission.READ_POLICY, _READ)
        loaded = await self.load(revision)
        files = await self.files(loaded, beside=self.beside)
        texts: dict[str, JsonValue] = {name: content.decode("utf-8") for name, content in files.items()}
        documents: list[JsonValue] = [*await self.beside(lambda: documents_of(loaded))]
        return {"revision": loaded.digest, "documents": documents, "files": texts}

    async def diff(self, actor: Actor, *, old: str | None, new: str | Files) -> Json:
        """Say what `new` changes; see `PolicyWork.diff`."""
        await self.journal.require(actor, Permission.READ_POLICY, _READ)
        candidate, _ = await self.read(new, beside=self.beside)
        before = (await self.changer.standing()).revision if old is None else await self.load(old)
        found = await self.beside(lambda: differences(before, candidate))
        return diff_json(None if before is None else before.digest, candidate.digest, found)

    async def lint(self, actor: Actor, files: Files) -> Json:
        """Find what is wrong; see `PolicyWork.lint`."""
        await self.journal.require(actor, Permission.READ_POLICY, _READ)
        result = await self.beside(
            lambda: lint(files, development=self.development, now=self.clock(), advisories=self.advisories)
        )
        count = Counter(each.severity for each in result.findings)
        digest = None
        if not count[Severity.ERROR]:
            digest = (await self.beside(lambda: Revision.from_lint(result))).digest
        return {
            "valid": digest is not None,
            "revision": digest,
            "documents": len(result.sources),
            "errors": count[Severity.ERROR],
            "warnings": count[Severity.WARNING],
            "findings": findings_json(result.findings),
        }

    async def what_if(self, actor: Actor, new: str | Files, *, since: timedelta) -> Json:
        """Judge recorded guests by a candidate; see `PolicyWork.what_if`."""
        await self.journal.require(actor, Permission.READ_RECORD, "policy-what-if")
        candidate, _ = await self.read(new, beside=self.beside)
        await self.journal.record(actor, "policy-what-if", candidate.digest)
        return await self.rehearse(candidate, since)
