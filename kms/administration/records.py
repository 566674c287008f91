"""The record of releases and refusals for operators: lists, whole entries, explanations; and evidence."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Final

from kms.administration.authenticating import authenticate
from kms.administration.beside import Beside
from kms.administration.explaining import COLLATERAL, explain_evidence, explain_recorded
from kms.administration.office import Json
from kms.administration.permission import Journal
from kms.app_keys import choose_epochs
from kms.authenticity import Authenticator
from kms.checks import Check
from kms.errors import LedgerUnavailable, NotFound
from kms.evidence.launch import Launch
from kms.evidence.sev_snp import parse_evidence
from kms.ledger.recorded import RecordDamaged, RecordedDecision
from kms.operator_ports import PolicyHistory, RecordFilter, Records
from kms.operators import Actor, Permission
from kms.policy.compiled import Policy
from kms.policy.decision import Allowed
from kms.policy.findings import PolicyInvalid
from kms.policy.places import Written
from kms.policy.revision import Revision
from kms.policy.rules import Rules
from kms.ports import Clock, Epochs, Identities, Policies
from kms.request import parse_request
from kms.snp.advisories import Advisories
from kms.snp.verify import VerifiedReport
from kms.strict_json import JsonValue
from kms.verification import Question, explain

_READ: Final = "release-read"
_EXPLAIN: Final = "release-explain"
_VERIFY: Final = "evidence-verify"
_UNREADABLE: Final = "unreadable"  # the outcome of a decision whose record somebody damaged
_WHICH: Final = ("release_id", "decided_at")
_PROVEN: Final = ("app_id", "image", "chip_id")
_NOTHING_IN_FORCE: Final = Revision.from_canonical(b"[]")  # it allows nobody


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordAdministration:
    """Implements `kms.administration.office.RecordWork`.

    `epochs` gives the epochs of the root, and `identities` are those of this KMS: nothing here can
    derive a key.
    """

    records: Records
    history: PolicyHistory
    policies: Policies
    authenticator: Authenticator
    advisories: Advisories
    journal: Journal
    clock: Clock
    beside: Beside
    epochs: Epochs
    identities: Identities
    development: bool

    async def releases(self, actor: Actor, wanted: RecordFilter, *, limit: int) -> Json:
        """Give decisions in short, newest first; see `RecordWork.releases`."""
        await self.journal.require(actor, Permission.READ_RECORD, _READ)
        entries = await self.records.entries(wanted, limit=limit + 1)
        shown = await self.beside(lambda: [_summary(entry) for entry in entries[:limit]])
        more = len(entries) > limit
        return {"releases": [*shown], "next": entries[limit - 1]["release_id"] if more else None}

    async def release(self, actor: Actor, release_id: str) -> Json:
        """Give a recorded decision as it is; see `RecordWork.release`."""
        await self.journal.require(actor, Permission.READ_RECORD, _READ, release_id)
        entry, _ = await self._recorded(release_id)
        await self.journal.record(actor, _READ, release_id)
        return entry

    async def explain(self, actor: Actor, release_id: str) -> Json:
        """Explain a recorded decision; see `RecordWork.explain`."""
        await self.journal.require(actor, Permission.READ_RECORD, _EXPLAIN, release_id)
        _, recorded = await self._recorded(release_id)
        rules = await self._rules(recorded.policy_revision or await self._in_force())
        explained = await self.beside(partial(explain_recorded, recorded, rules))
        await self.journal.record(actor, _EXPLAIN, release_id)
        return explained

    async def verify(
        self, actor: Actor, evidence: JsonValue, *, request: bytes | None, at: datetime | None
    ) -> Json:
        """Verify, measure and judge evidence as a release would now, or `at`; see `RecordWork.verify`.

        Raises:
            MalformedEvidence, MalformedRequest, TooLarge: not of its format.

        """
        await self.journal.require(actor, Permission.VERIFY_EVIDENCE, _VERIFY)
        now = at or self.clock()
        parsed = parse_evidence(evidence)
        asked = None if request is None else parse_request(request)
        active = await self.policies.active()
        question = Question(
            report=parsed.report,
            advisories=self.advisories,
            app_document=parsed.app_document,
            report_data=None if asked is None else asked.report_data,
            policy=Policy(_NOTHING_IN_FORCE) if active is None else active.policy,
            claim=None if asked is None else asked.ask.app,
            keys=() if asked is None else asked.ask.keys,
            hint=parsed.hint,
            kms_identities=(await self.identities.known()).public_keys,
        )
        outcome, missing = await authenticate(
            self.authenticator,
            parsed.report,
            parsed.certificates,
            parsed.revocation_lists,
            now=now,
            client=actor.client or actor.name,
        )
        launch: Launch | None = None
        if active is not None and isinstance(outcome, VerifiedReport):
            launch = await active.find_launch(outcome, parsed.hint, question.app())
        verification = await self.beside(
            lambda: explain(question, outcome, now, development=self.development, find=lambda *_: launch)
        )
        checks = verification.checks
        if missing is not None:
            checks = (Check.of(COLLATERAL, False, missing.detail, reason=missing.reason), *checks)
        if isinstance(verification.decision, Allowed):
            table = await self.epochs.epochs()
            _, epoch_check = choose_epochs(verification.decision, table, now)
            checks = (*checks, epoch_check)
        rules = None if active is None else await self._rules(active.policy.revision)
        explained = await self.beside(
            lambda: explain_evidence(question, verification, checks, now=now, rules=rules)
        )
        details = {"decision": explained["decision"], "code": explained["code"]}
        await self.journal.record(actor, _VERIFY, details=details)
        return explained

    async def _recorded(self, release_id: str) -> tuple[Json, RecordedDecision]:
        """Give a recorded decision as it is, and read.

        Raises:
            NotFound: there is none of this id.
            RecordDamaged: somebody changed it.

        """
        entry = await self.records.entry(release_id)
        if entry is None:
            raise NotFound("there is no recorded decision of this id", details={"release_id": release_id})
        try:
            return entry, RecordedDecision.from_json(entry)
        except RecordDamaged as error:
            raise RecordDamaged(f"the recorded decision {release_id} is damaged: {error.detail}") from None

    async def _in_force(self) -> str | None:
        active = await self.policies.active()
        return None if active is None else active.policy.revision

    async def _rules(self, digest: str | None) -> Rules | None:
        """Give the rules of a revision; None where it is not stored.

        Raises:
            LedgerUnavailable: what is stored is not that revision.

        """
        if digest is None:
            return None
        try:
            revision = await self.history.load(digest)
        except PolicyInvalid as error:
            raise LedgerUnavailable(f"the stored policy {digest} is damaged: {error}") from error
        if revision is None:
            return None
        files = await self.history.files(digest)
        return await self.beside(lambda: Rules(Written(revision, files)))


def _summary(entry: Json) -> Json:
    """Give a decision in short; of one in which nothing was proven without app, image and chip.

    One that somebody damaged is listed as that: it must not hide the others of its page.
    """
    try:
        RecordedDecision.from_json(entry)
    except RecordDamaged:
        nothing = dict.fromkeys(("code", *_PROVEN, "policy_revision", "client"))
        return {**_members(entry, _WHICH), "outcome": _UNREADABLE, "reasons": [], **nothing}
    proven = entry["boot_info"]
    return {
        **_members(entry, (*_WHICH, "outcome", "code", "reasons")),
        **_members(proven if isinstance(proven, dict) else dict.fromkeys(_PROVEN), _PROVEN),
        **_members(entry, ("policy_revision", "client")),
    }


def _members(value: Json, names: Iterable[str]) -> Json:
    return {name: value[name] for name in names}
