"""What a release, an explanation and a what-if must do alike, so that they never differ.

Which app is named, which binding counts, and what the policy is told beside BootInfo: `kms.release`,
`kms.verification` and `kms.administration.what_if` all ask here.
"""

from dataclasses import dataclass
from datetime import datetime
from itertools import chain

from kms.checks import Check
from kms.evidence.app_document import AppIdentity, bind_document
from kms.evidence.launch import MatchedLaunch, NamedApp
from kms.identifiers import Measurement
from kms.measurement.images import Binding
from kms.policy.compiled import Policy
from kms.policy.decision import AppClaim, Context
from kms.snp.advisories import Advisories
from kms.snp.report import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What a judgement depends on beside evidence and policy: clock, mode, and this KMS's public keys.

    `advisories` are AMD's bulletins as this KMS knows them.
    """

    now: datetime
    development: bool
    kms_identities: frozenset[bytes]
    advisories: Advisories


def name_app(claim: AppClaim | None, document: AppIdentity | None) -> NamedApp | None:
    """Give the app whose images come first.

    Only the request can name an app that a command line is filled with; a document speaks for itself.
    """
    if claim is not None and claim.app_id is not None:
        return NamedApp(app_id=claim.app_id, compose_hash=claim.compose_hash)
    return None if document is None else NamedApp(app_id=document.app_id, compose_hash=None)


def check_document(document: bytes, report: Report) -> tuple[AppIdentity | None, Check]:
    """Give the identity that an app document states, if the report's HOST_DATA commits to its exact bytes.

    Raises:
        MalformedEvidence: HOST_DATA commits to the document, and it cannot be read.

    """
    identity = bind_document(document, report.host_data)
    detail = f"HOST_DATA {report.host_data.hex()} does not commit to this document"
    if identity is not None:
        detail = f"HOST_DATA binds app {identity.app_id.hex()} ({identity.binding.value})"
    return identity, Check.of("app-document", identity is not None, detail, reason="host-data-mismatch")


def check_named(claim: AppClaim | None) -> Check:
    """Check, of evidence without an app document, that the request names an app and compose."""
    named = claim is not None and claim.app_id is not None and claim.compose_hash is not None
    detail = "no app document; the request names an app that a measured command line may prove"
    return Check.of("app-document", named, detail, reason="app-document-missing")


def check_measurement(measurement: Measurement, launch: MatchedLaunch | None) -> Check:
    """Check that an allowed image shows the measurement that was proven."""
    shown = measurement.hex()
    if launch is None:
        return Check.of(
            "measurement-known", False, f"no allowed image shows {shown}", reason="measurement-unknown"
        )
    return Check.of("measurement-known", True, f"{shown} is {launch.image or launch.os_image_hash.hex()}")


def bind_app(
    policy: Policy, launch: MatchedLaunch, document: AppIdentity | None
) -> tuple[AppIdentity | None, Check]:
    """Choose the binding that counts: one that the app accepts and the image enforces, if there is one."""
    named = document.app_id if document is not None else None
    if named is None and launch.cmdline_app is not None:
        named = launch.cmdline_app[0]
    app = None if named is None else policy.app(named)
    identity = _choose_identity(launch, document, frozenset() if app is None else frozenset(app.binding))
    detail = "no app document was sent, and the measured command line names no app"
    if identity is not None:
        detail = f"app {identity.app_id.hex()} is bound by {identity.binding.value}"
    return identity, Check.of("app-binding", identity is not None, detail, reason="app-document-missing")


def _choose_identity(
    launch: MatchedLaunch, document: AppIdentity | None, accepted: frozenset[Binding]
) -> AppIdentity | None:
    """Give the app identity that counts for this launch; None if nothing binds one.

    `accepted` are the bindings that the app's policy takes. Where both a document and the command line name
    the app, the one that the image enforces and the app accepts is used; policy checks that they agree.
    """
    by_cmdline = None
    if launch.cmdline_app is not None:
        app_id, compose_hash = launch.cmdline_app
        by_cmdline = AppIdentity(
            app_id=app_id, compose_hash=compose_hash, instance_id=None, binding=Binding.CMDLINE
        )
    offered = [identity for identity in (document, by_cmdline) if identity is not None]
    counting = [
        identity
        for identity in offered
        if identity.binding in launch.enforces and identity.binding in accepted
    ]
    return next(chain(counting, offered), None)


def context_of(circumstances: Circumstances, launch: MatchedLaunch, document: AppIdentity | None) -> Context:
    """Give what a policy is told beside BootInfo; `document` is the bound document's identity."""
    return Context(
        now=circumstances.now,
        development=circumstances.development,
        kms_identities=circumstances.kms_identities,
        document_kms_identity=None if document is None else document.kms_identity,
        document_app=None if document is None else (document.app_id, document.compose_hash),
        enforces=launch.enforces,
        advisories=circumstances.advisories,
    )
