"""Explaining evidence: the same verification, measurement and decision as a release, nothing spent, no keys.

For operators and auditors. Every check is reported, passed or failed, in the order of the release
path; what was not asked about is not reported.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TypeAlias

from kms.boot_info import BootInfo, build_boot_info
from kms.checks import Check, failures
from kms.errors import MalformedEvidence
from kms.evidence.app_document import AppIdentity
from kms.evidence.launch import Launch, LaunchFacts, LaunchFinder, NamedApp
from kms.evidence.launch_inputs import App, cmdline_for, expected, launched
from kms.identifiers import Measurement
from kms.judgement import (
    Circumstances,
    bind_app,
    check_document,
    check_measurement,
    check_named,
    context_of,
    name_app,
)
from kms.keys.names import KeyRequest
from kms.measurement.errors import MeasurementError
from kms.measurement.explanation import Explanation, explain_measurement
from kms.measurement.images import LaunchHint, MeasurementTable
from kms.measurement.launch import LaunchDescription, LaunchFile
from kms.measurement.nearest import nearest_image
from kms.policy.compiled import Policy
from kms.policy.decision import AppClaim, Ask, Decision, decide
from kms.snp.advisories import Advisories
from kms.snp.report import Report
from kms.snp.verify import Unverified, VerifiedReport, check_report_data

# Finds the launch that a report shows, as `kms.evidence.launch.LaunchFinder.find`.
Find: TypeAlias = Callable[[VerifiedReport, LaunchHint, NamedApp | None], Launch | None]

# Asked without a request there are no keys to judge, and that is not the evidence's fault.
_ABOUT_KEYS = frozenset({"keys-asked"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked about a report. Each optional part adds its checks.

    `claim` is what a request names, for a command line that binds the app, and `keys` what it asks for:
    without any, keys are not judged. `hint` is what the guest says of its launch. `kms_identities` are the
    KMS's public keys (32 bytes each): without them, an app document that names a KMS cannot pass a policy.
    `advisories` are AMD's bulletins that the report is assessed by.
    """

    report: Report
    advisories: Advisories
    launch: LaunchFile | None = None
    app_document: bytes | None = None
    report_data: bytes | None = None
    policy: Policy | None = None
    claim: AppClaim | None = None
    keys: tuple[KeyRequest, ...] = ()
    hint: LaunchHint = field(default_factory=LaunchHint)
    kms_identities: frozenset[bytes] = frozenset()

    def app(self) -> NamedApp | None:
        """Give the app whose images come first, as a release does."""
        return name_app(self.claim, _check_document(self, []))


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Every check that was made. `boot_info` is None unless the report is authentic.

    `decision` is the policy's, where it was asked; `nearest` explains a measurement that no allowed image
    shows.
    """

    checks: tuple[Check, ...]
    boot_info: BootInfo | None = None
    decision: Decision | None = None
    nearest: Explanation | None = None

    @property
    def verified(self) -> bool:
        """Whether every check passed."""
        return not failures(self.checks)


def explain(
    question: Question,
    outcome: VerifiedReport | Unverified | MalformedEvidence,
    now: datetime,
    *,
    development: bool,
    find: Find | None = None,
) -> Verification:
    """Measure and judge what authentication gave (`kms.authenticity`), as far as the question goes.

    It never raises for what the evidence is. `outcome` is the exception where the report turned out not to be
    of its format. `find` is for those who have computed the policy's launches already.
    """
    report = question.report
    checks: list[Check] = []
    if question.report_data is not None:
        checks.append(check_report_data(report, question.report_data))
    if isinstance(outcome, MalformedEvidence):
        checks.append(Check.of("report-format", False, outcome.detail, reason=outcome.reason))
        return Verification(checks=tuple(checks))
    checks.extend(outcome.checks)
    # What follows is also said of a report that nobody signed: it helps to find what is wrong with it.
    document = _check_document(question, checks)
    launch = _check_launch(question, document, checks)
    if not isinstance(outcome, VerifiedReport):
        return Verification(checks=tuple(checks))
    if question.policy is None:
        shown = build_boot_info(outcome, launch, document, question.advisories)
        return Verification(checks=tuple(checks), boot_info=shown)
    circumstances = Circumstances(
        now=now,
        development=development,
        kms_identities=question.kms_identities,
        advisories=question.advisories,
    )
    judged = _judge(
        question,
        question.policy,
        outcome,
        document,
        find=find or LaunchFinder(question.policy).find,
        circumstances=circumstances,
    )
    return replace(judged, checks=(*checks, *judged.checks))


def _check_document(question: Question, checks: list[Check]) -> AppIdentity | None:
    if question.app_document is None:
        if question.keys:
            checks.append(check_named(question.claim))
        return None
    try:
        identity, check = check_document(question.app_document, question.report)
    except MalformedEvidence as error:
        identity, check = None, Check.of("app-document", False, error.detail, reason=error.reason)
    checks.append(check)
    return identity


def _check_launch(
    question: Question, document: AppIdentity | None, checks: list[Check]
) -> LaunchFacts | None:
    """Recompute the measurement from the given launch inputs; what they leave open is searched for."""
    if question.launch is None:
        return None
    measurement, app = question.report.measurement, named_app(question.claim, document)
    try:
        launch = launched(question.launch, measurement, app)
        detail = f"MEASUREMENT is {measurement.hex()}"
        if launch is None:
            detail += f"; {expected(question.launch, app)}; {_compared(question, question.launch, app)}"
        else:
            detail += f", as the launch inputs give with {launch.vcpus} vCPUs of {launch.vcpu_type}"
    except MeasurementError as error:
        checks.append(Check.of("measurement", False, error.detail, reason="measurement-mismatch"))
        return None
    checks.append(Check.of("measurement", launch is not None, detail, reason="measurement-mismatch"))
    return launch


def _compared(question: Question, given: LaunchFile, app: App | None) -> Explanation:
    """Say which launch the measurement shows, by launch inputs and the policy's images."""
    measurement = question.report.measurement
    images = () if question.policy is None else question.policy.images
    shown = [
        image
        for image in images
        if MeasurementTable(image, cmdline_for(image.description, app)).find(measurement)
    ]
    return explain_measurement(measurement, shown or images, given, app=app)


def _nearest(question: Question, policy: Policy, app: App | None) -> Explanation:
    """Say which allowed image is nearest to a measurement that none of them shows."""
    measurement, hint = question.report.measurement, question.hint
    given = question.launch or _described(hint, measurement, app)
    if given is not None:
        return explain_measurement(measurement, policy.images, given, app=app)
    hinted = None if hint.image is None else policy.image(hint.image)
    own = policy.images_of(app[0]) if app is not None else ()
    return nearest_image(measurement, (() if hinted is None else (hinted,), own, policy.images), app)


def _described(hint: LaunchHint, measurement: Measurement, app: App | None) -> LaunchFile | None:
    """Give the launch that the guest describes if the measurement proves it: then it is no mere hint."""
    if hint.description is None:
        return None
    try:
        given = LaunchFile(
            description=LaunchDescription.parse(hint.description), guest_features=hint.guest_features
        )
        return None if launched(given, measurement, app) is None else given
    except MeasurementError:
        return None


def named_app(claim: AppClaim | None, document: AppIdentity | None) -> App | None:
    """Give the app that fills a command line: that of the claim, else that of the document."""
    if claim is not None and claim.app_id is not None and claim.compose_hash is not None:
        return claim.app_id, claim.compose_hash
    return None if document is None else (document.app_id, document.compose_hash)


def _judge(
    question: Question,
    policy: Policy,
    verified: VerifiedReport,
    document: AppIdentity | None,
    *,
    find: Find,
    circumstances: Circumstances,
) -> Verification:
    """Find the launch among the policy's images, and decide as a release would."""
    hint = question.hint
    if question.launch is not None:
        # So that an image that is allowed by hash alone is found, as from a guest that describes it.
        hint = replace(hint, description=question.launch.description.to_json())
    launch = find(verified, hint, name_app(question.claim, document))
    known = check_measurement(verified.report.measurement, launch)
    if launch is None:
        nearest = _nearest(question, policy, named_app(question.claim, document))
        return Verification(
            checks=(known._replace(detail=f"{known.detail}; {nearest}"),),
            boot_info=build_boot_info(verified, None, document, question.advisories),
            nearest=nearest,
        )
    identity, binding = bind_app(policy, launch, document)
    boot_info = build_boot_info(verified, launch, identity, question.advisories)
    ask = Ask(keys=question.keys, app=question.claim)
    decision = decide(policy, boot_info, ask, context_of(circumstances, launch, document))
    made = (check for check in decision.checks if question.keys or check.name not in _ABOUT_KEYS)
    return Verification(checks=(known, binding, *made), boot_info=boot_info, decision=decision)
