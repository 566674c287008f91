"""Explaining evidence: the same verification, measurement and decision as a release, nothing spent, no keys.

For operators and auditors, offline. Every check is reported, passed or failed, in the order of the release
path; what was not asked about is not reported.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from kms.boot_info import BootInfo, build_boot_info
from kms.checks import Check, failures
from kms.errors import MalformedEvidence
from kms.evidence.app_document import AppIdentity
from kms.evidence.launch import LaunchFacts, LaunchFinder
from kms.identifiers import AppId, ComposeHash, Measurement
from kms.judgement import Circumstances, bind_app, check_document, check_measurement, context_of, name_app
from kms.measurement.description import LaunchDescription, os_image_hash
from kms.measurement.errors import MeasurementError
from kms.measurement.explanation import Explanation, explain_measurement
from kms.measurement.guest_features import SNP_ACTIVE
from kms.measurement.images import (
    Image,
    LaunchHint,
    MeasurementTable,
    filled_cmdline,
    has_placeholders,
)
from kms.measurement.launch import LaunchFile, launch_measurement
from kms.measurement.snp import MAX_VCPUS
from kms.measurement.vcpu_types import VCPU_TYPES, vcpu_type_name
from kms.policy.compiled import Policy
from kms.policy.decision import AppClaim, Ask, decide
from kms.snp.advisories import Advisories
from kms.snp.report import Report
from kms.snp.verify import Unverified, VerifiedReport, check_report_data

_App: TypeAlias = "tuple[AppId, ComposeHash] | None"

# Asked without a request there are no keys to judge, and that is not the evidence's fault.
_ABOUT_KEYS = frozenset({"keys-asked"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked about a report. Each optional part adds its checks.

    `claim` is what a request would name, for a command line that binds the app. `kms_identity` is the KMS's
    public key (32 bytes): without it, an app document that names a KMS cannot pass a policy. `advisories` are
    AMD's bulletins that the report is assessed by.
    """

    report: Report
    advisories: Advisories
    launch: LaunchFile | None = None
    app_document: bytes | None = None
    report_data: bytes | None = None
    policy: Policy | None = None
    claim: AppClaim | None = None
    kms_identity: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Every check that was made. `boot_info` is None unless the report is authentic."""

    checks: tuple[Check, ...]
    boot_info: BootInfo | None = None

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
) -> Verification:
    """Measure and judge what authentication gave (`kms.authenticity`), as far as the question goes.

    It never raises for what the evidence is. `outcome` is the exception where the report turned out not to be
    of its format.
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
        kms_identity=question.kms_identity or b"",
        advisories=question.advisories,
    )
    boot_info = _judge(
        question, question.policy, outcome, document, circumstances=circumstances, checks=checks
    )
    return Verification(checks=tuple(checks), boot_info=boot_info)


def _check_document(question: Question, checks: list[Check]) -> AppIdentity | None:
    if question.app_document is None:
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
    measurement, app = question.report.measurement, _named_app(question.claim, document)
    try:
        launch = _launched(question.launch, measurement, app)
        detail = f"MEASUREMENT is {measurement.hex()}"
        if launch is None:
            detail += f"; {_expected(question.launch, app)}; {_explained(question, app)}"
        else:
            detail += f", as the launch inputs give with {launch.vcpus} vCPUs of {launch.vcpu_type}"
    except MeasurementError as error:
        checks.append(Check.of("measurement", False, error.detail, reason="measurement-mismatch"))
        return None
    checks.append(Check.of("measurement", launch is not None, detail, reason="measurement-mismatch"))
    return launch


def _explained(question: Question, app: _App) -> Explanation:
    """Say which launch the measurement shows, by the launch inputs and the policy's images."""
    measurement = question.report.measurement
    images = () if question.policy is None else question.policy.images
    shown = [
        image
        for image in images
        if MeasurementTable(image, _cmdline(image.description, app)).find(measurement)
    ]
    return explain_measurement(measurement, shown or images, question.launch, app=app)


def _launched(given: LaunchFile, measurement: Measurement, app: _App) -> LaunchFacts | None:
    found, cmdline = given.machine(), _cmdline(given.description, app)
    if found is None:
        table = MeasurementTable(_image(given), cmdline)
        found = next((each.machine for each in table.find(measurement)), None)
    elif launch_measurement(given.description, found, cmdline=cmdline) != measurement:
        found = None
    if found is None:
        return None
    return LaunchFacts(
        measurement=measurement,
        image=None,
        os_image_hash=os_image_hash(given.description.to_json()),
        vcpus=found.vcpus,
        vcpu_type=given.vcpu_type or vcpu_type_name(found.vcpu_signature),
        guest_features=found.guest_features,
    )


def _image(given: LaunchFile) -> Image:
    types = tuple(
        name
        for name, signature in VCPU_TYPES.items()
        if given.vcpu_signature is None or signature == given.vcpu_signature
    )
    return Image(
        name=None,
        os_image_hash=os_image_hash(given.description.to_json()),
        description=given.description,
        enforces=frozenset(),
        vcpu_types=types,
        vcpus_minimum=given.vcpus or 1,
        vcpus_maximum=given.vcpus or MAX_VCPUS,
        guest_features=(SNP_ACTIVE if given.guest_features is None else given.guest_features,),
    )


def _expected(given: LaunchFile, app: _App) -> str:
    machine = given.machine()
    if machine is None:
        return "no machine that fits the launch inputs"
    cmdline = _cmdline(given.description, app)
    return f"they give {launch_measurement(given.description, machine, cmdline=cmdline).hex()}"


def _named_app(claim: AppClaim | None, document: AppIdentity | None) -> _App:
    """Give the app that fills a given command line: that of the claim, else that of the document."""
    if claim is not None and claim.app_id is not None and claim.compose_hash is not None:
        return claim.app_id, claim.compose_hash
    return None if document is None else (document.app_id, document.compose_hash)


def _cmdline(description: LaunchDescription, app: _App) -> str | None:
    """Give the filled command line; None where the description's own is measured as it is."""
    template = description.cmdline or ""
    return filled_cmdline(template, *app) if app is not None and has_placeholders(template) else None


def _judge(
    question: Question,
    policy: Policy,
    verified: VerifiedReport,
    document: AppIdentity | None,
    *,
    circumstances: Circumstances,
    checks: list[Check],
) -> BootInfo:
    """Find the launch among the policy's images, and decide as a release would, but for the keys."""
    hint = LaunchHint()
    if question.launch is not None:
        # So that an image that is allowed by hash alone is found, as from a guest that describes it.
        hint = LaunchHint(description=question.launch.description.to_json())
    launch = LaunchFinder(policy).find(verified, hint, name_app(question.claim, document))
    known = check_measurement(verified, launch)
    if launch is None:
        checks.append(
            known._replace(
                detail=f"{known.detail}; {_explained(question, _named_app(question.claim, document))}"
            )
        )
        return build_boot_info(verified, None, document, question.advisories)
    identity, binding = bind_app(policy, launch, document)
    boot_info = build_boot_info(verified, launch, identity, question.advisories)
    ask = Ask(keys=(), app=question.claim)
    decision = decide(policy, boot_info, ask, context_of(circumstances, launch, document))
    checks += [known, binding]
    checks.extend(check for check in decision.checks if check.name not in _ABOUT_KEYS)
    return boot_info
