"""How a guest gets its keys: the whole path, top to bottom.

An HTTPS KMS receives guest evidence, verifies the SNP signature chain and policy bits, and recomputes the
expected launch measurement from OVMF metadata, kernel, initrd, cmdline and VMSA; it then builds BootInfo
and checks it against allowlists for app, compose, chip and TCB before deriving and releasing app keys.

Each step takes what the one before proved: Report → VerifiedReport → Launch → BootInfo → Allowed →
sealed keys. A refusal is a value that carries every reason of the first failing step; malformed input and
unavailable dependencies are exceptions (`kms.errors`).
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from kms.app_keys import EPOCH_UNAVAILABLE, choose_epochs, derive_keys
from kms.authenticity import NotSought
from kms.boot_info import BootInfo, build_boot_info
from kms.checks import Check, failures
from kms.desk import Refused, Released, ReleaseDesk, Submission
from kms.encoding import b64url
from kms.errors import ChallengeUsed, KmsError, LedgerUnavailable
from kms.evidence.app_document import AppIdentity
from kms.evidence.sev_snp import SnpEvidence, parse_evidence
from kms.judgement import (
    Circumstances,
    bind_app,
    check_document,
    check_measurement,
    check_named,
    context_of,
    name_app,
)
from kms.keys import challenge as challenges
from kms.keys.certificates import IssuedCertificate
from kms.keys.challenge import NONCE_LENGTH, Challenge
from kms.keys.envelope import build_envelope
from kms.keys.identity import Identity
from kms.keys.sealing import seal
from kms.keys.signed import Signed
from kms.labels import RECEIPT
from kms.ledger.entries import REFUSED, RELEASED, SALT_LENGTH, DecisionEntry, entry_digest, timestamp
from kms.plausibility import judge_claims
from kms.policy.decision import Denied, decide
from kms.ports import EpochsMoved, PolicyMoved, Progress, Step
from kms.request import ReleaseRequest, parse_request
from kms.snp.product import Product
from kms.snp.verify import Unverified, VerifiedReport, check_report_data
from kms.strict_json import JsonValue, canonical_json

EVIDENCE_UNTRUSTED: Final = "evidence-untrusted"
MEASUREMENT_UNKNOWN: Final = "measurement-unknown"
POLICY_DENIED: Final = "policy-denied"

# How often a decision is made again because the policy or the epochs changed under it, before the guest is
# asked to come back: each round is a whole change of them, so more than a few mean something else is wrong.
_MOST_JUDGEMENTS: Final = 5
_CLOCK_SKEW: Final = timedelta(minutes=1)  # between the server that issued a challenge and this one


def issue_challenge(desk: ReleaseDesk) -> Challenge:
    """Give a fresh challenge; the server keeps nothing of it."""
    return challenges.issue(
        desk.challenge_key, desk.randomness(NONCE_LENGTH), desk.clock(), desk.challenge_lifetime
    )


async def release(desk: ReleaseDesk, submission: Submission) -> Released | Refused:
    """Decide on one request, record the decision durably, and only then give keys or a refusal.

    Raises:
        MalformedRequest, MalformedEvidence: not of its format; nothing was spent or recorded.
        ChallengeInvalid, ChallengeExpired, ChallengeUsed: as they say.
        RateLimited: this chip or app asks too often; nothing was spent or recorded.
        Unavailable: a dependency did not answer; the guest starts again with a new challenge.

    """
    progress = desk.follow(submission.release_id)
    code: str | None = "internal"
    reasons: tuple[str, ...] = ()
    product = None
    try:
        outcome = await _release(desk, submission, progress)
        code, reasons = (outcome.code, outcome.reasons) if isinstance(outcome, Refused) else (None, ())
        product = outcome.product
    except KmsError as error:
        code, reasons = error.code, (error.reason,)
        raise
    finally:
        progress.end(code, product, reasons)
    return outcome


async def _release(desk: ReleaseDesk, submission: Submission, progress: Progress) -> Released | Refused:
    now = desk.clock()
    # (1) Receive: shape first, then everything that costs no signature.
    progress.at(Step.RECEIVE)
    request = parse_request(submission.request)
    evidence = parse_evidence(submission.evidence)
    challenge = challenges.authenticate(
        desk.challenge_key, request.challenge, now, longest=desk.challenge_lifetime + _CLOCK_SKEW
    )
    if await desk.decisions.is_spent(challenge.raw):
        raise ChallengeUsed("this challenge was already spent")
    case = _Case(desk, submission, request, challenge, now, progress)
    bound = check_report_data(evidence.report, request.report_data)
    if not bound.passed:
        return await case.refuse(EVIDENCE_UNTRUSTED, (bound,), spend=False)

    # (2) The app: a document counts only if HOST_DATA commits to its exact bytes; only then is it parsed.
    document, document_check = bind_app_document(evidence, request)
    case = replace(case, document=document)

    # (3) Verify: did a genuine chip sign this report? What is decided after this spends the challenge.
    # A certificate is sought from AMD's service only where some app would accept what the report claims.
    progress.at(Step.VERIFY)
    verified = await desk.authenticator.authenticate(
        evidence.report,
        evidence.certificates,
        evidence.revocation_lists,
        now=now,
        client=submission.client,
        worth=partial(case.worth, evidence, document_check),
    )
    if isinstance(verified, NotSought):
        return await case.refuse(code_of_claims(verified), (bound, *verified.checks), spend=False)
    if isinstance(verified, Unverified):
        return await case.refuse(EVIDENCE_UNTRUSTED, (bound, *verified.checks), spend=False)
    desk.limits.take_chip(verified.report.chip_id)
    case = replace(case, product=verified.product)
    proven = (bound, *verified.checks, document_check)
    if not document_check.passed:
        return await case.refuse(EVIDENCE_UNTRUSTED, proven, spend=True)

    for _ in range(_MOST_JUDGEMENTS):
        try:
            return await _judge(case, evidence, verified, proven)
        except PolicyMoved:
            await desk.policies.refresh()
        except EpochsMoved:
            desk.epochs.forget()
    raise LedgerUnavailable(
        "policy and epochs changed too often while this request was judged", reason="policy-moving"
    )


async def _judge(
    case: "_Case",
    evidence: SnpEvidence,
    verified: VerifiedReport,
    proven: tuple[Check, ...],
) -> Released | Refused:
    """Judge what was proven by the policy in force, and answer."""
    desk, request, document = case.desk, case.request, case.document
    active = await desk.policies.active()
    refuse = partial(case.refuse, spend=True, revision=None if active is None else active.policy.revision)

    # (4) Measure: recompute what the allowed images would show, and find the one that was launched.
    case.progress.at(Step.MEASURE)
    launch = None
    if active is not None:
        named = name_app(request.ask.app, document)
        launch = await active.find_launch(verified, evidence.hint, named)
    proven = (*proven, check_measurement(verified.report.measurement, launch))
    if active is None or launch is None:
        boot_info = build_boot_info(verified, None, document, desk.advisories)
        return await refuse(MEASUREMENT_UNKNOWN, proven, boot_info=boot_info)

    # (5) BootInfo: what the guest proved, and the app that is bound to it.
    identity, binding_check = bind_app(active.policy, launch, document)
    boot_info = build_boot_info(verified, launch, identity, desk.advisories)
    proven = (*proven, binding_check)
    if identity is None:
        return await refuse(EVIDENCE_UNTRUSTED, proven, boot_info=boot_info)

    # (6) Policy: every check, passed or failed.
    case.progress.at(Step.DECIDE)
    circumstances = Circumstances(
        now=case.now,
        development=desk.development,
        kms_identities=await desk.identities_beside(None if document is None else document.kms_identity),
        advisories=desk.advisories,
    )
    decision = decide(active.policy, boot_info, request.ask, context_of(circumstances, launch, document))
    checks = (*proven, *decision.checks)
    if isinstance(decision, Denied):
        return await refuse(POLICY_DENIED, checks, boot_info=boot_info)

    # An app is only counted where it is allowed: any genuine chip's host may name it in HOST_DATA.
    desk.limits.take_app(identity.app_id)

    # (7) Epochs: the app's pinned one or the current, unless the guest asks for another that is not retired.
    table = await desk.epochs.epochs()
    epochs, epoch_check = choose_epochs(decision, table, case.now)
    if not epoch_check.passed:
        return await refuse(EPOCH_UNAVAILABLE, (*checks, epoch_check), boot_info=boot_info)

    # (8) Derive and seal; nothing leaves yet.
    case.progress.at(Step.DERIVE)
    keys = await derive_keys(desk, decision, epochs, case.now)
    case.progress.at(Step.SEAL)
    envelope = build_envelope(
        desk.identity,
        release_id=case.submission.release_id,
        request_sha512=request.digest,
        app_id=identity.app_id,
        keys=keys,
    )
    sealed = seal(request.recipient, envelope, request.digest)

    # (9) Record. One transaction: the judged revision is still active, the epochs are as they were, the
    # challenge is unspent. Then release.
    entry = case.entry(
        outcome=RELEASED,
        code=None,
        checks=(*checks, epoch_check),
        spend=True,
        boot_info=boot_info,
        revision=decision.revision,
        epochs=tuple(sorted(set(epochs.values()))),
        certificates=tuple(key.issued for key in keys if key.issued is not None),
        key_epochs=tuple(key.epoch for key in keys),
    )
    receipt = make_receipt(desk.identity, entry)
    case.progress.at(Step.RECORD)
    await desk.decisions.record(entry, case.challenge.expires_at, table)
    return Released(
        release_id=case.submission.release_id,
        suite=request.recipient.suite.value,
        sealed=sealed,
        boot_info=boot_info,
        policy_revision=decision.revision,
        receipt=receipt,
        development=desk.development,
        product=case.product,
    )


def code_of_claims(refused: NotSought) -> str:
    """Give the code that the report would be refused with if all that it claims were proven."""
    failed = {check.name for check in refused.checks if not check.passed}
    if "app-document" in failed:
        return EVIDENCE_UNTRUSTED
    return MEASUREMENT_UNKNOWN if "measurement-known" in failed else POLICY_DENIED


def bind_app_document(evidence: SnpEvidence, request: ReleaseRequest) -> tuple[AppIdentity | None, Check]:
    """Give the identity that a bound document states, or None when the command line is to name the app.

    Raises:
        MalformedEvidence: HOST_DATA commits to the document, and it cannot be read.

    """
    document = evidence.app_document
    if document is None:
        return None, check_named(request.ask.app)
    return check_document(document, evidence.report)


def make_receipt(identity: Identity, entry: DecisionEntry) -> dict[str, str]:
    """Give the promise that the release is in the record: its salted digest, signed by the KMS identity."""
    promise: dict[str, JsonValue] = {
        "release_id": entry.release_id,
        "decided_at": timestamp(entry.decided_at),
        "entry_sha256": entry_digest(entry.salt, entry.canonical).hex(),
        "salt": b64url(entry.salt),
    }
    return Signed.by(identity, RECEIPT, canonical_json(promise)).to_json()


@dataclass(frozen=True, slots=True)
class _Case:
    """One request on its way through the path. `document` is what its bound app document states."""

    desk: ReleaseDesk
    submission: Submission
    request: ReleaseRequest
    challenge: Challenge
    now: datetime
    progress: Progress
    document: AppIdentity | None = None
    product: Product | None = None

    async def worth(
        self, evidence: SnpEvidence, document_check: Check, product: Product
    ) -> tuple[Check, ...]:
        """Judge what the report claims, as one of this product's, before a certificate is sought for it."""
        if not document_check.passed:
            return (document_check,)
        return await judge_claims(
            await self.desk.policies.active(),
            evidence.report,
            product,
            hint=evidence.hint,
            claim=self.request.ask.app,
            document=self.document,
            now=self.now,
        )

    def entry(
        self,
        *,
        outcome: str,
        code: str | None,
        checks: tuple[Check, ...],
        spend: bool,
        boot_info: BootInfo | None = None,
        revision: str | None = None,
        epochs: tuple[int, ...] = (),
        certificates: tuple[IssuedCertificate, ...] = (),
        key_epochs: tuple[int | None, ...] = (),
    ) -> DecisionEntry:
        return DecisionEntry(
            release_id=self.submission.release_id,
            decided_at=self.now,
            outcome=outcome,
            code=code,
            reasons=failures(checks),
            checks=checks,
            boot_info=boot_info,
            document=self.document,
            ask=self.request.ask,
            epochs=epochs,
            certificates=certificates,
            key_epochs=key_epochs,
            policy_revision=revision,
            challenge=self.challenge.raw if spend else None,
            client=self.submission.client,
            development=self.desk.development,
            salt=self.desk.randomness(SALT_LENGTH),
        )

    async def refuse(
        self,
        code: str,
        checks: tuple[Check, ...],
        *,
        spend: bool,
        boot_info: BootInfo | None = None,
        revision: str | None = None,
    ) -> Refused:
        """Record a refusal, spending the challenge if the evidence was authentic and bound to it.

        Of refusals in which nobody proved anything only so many are recorded (`StrangerBudget`).
        """
        entry = self.entry(
            outcome=REFUSED,
            code=code,
            checks=checks,
            spend=spend,
            boot_info=boot_info,
            revision=revision,
        )
        if spend or self.desk.stranger_budget.take(self.now):
            self.progress.at(Step.RECORD)
            await self.desk.decisions.record(entry, self.challenge.expires_at if spend else None)
        return Refused(
            release_id=self.submission.release_id,
            code=code,
            reasons=entry.reasons,
            checks=checks,
            product=self.product,
        )
