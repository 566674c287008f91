"""Checks of who the guest is: app, compose, binding, claim, KMS identity, image and machine."""

from collections.abc import Iterator
from typing import Final

from kms.boot_info import BootInfo
from kms.checks import Check
from kms.measurement.guest_features import SNP_ACTIVE
from kms.measurement.images import UNDOCUMENTED_ENFORCES, Image
from kms.measurement.snp import MAX_VCPUS
from kms.measurement.vcpu_types import VCPU_TYPES
from kms.policy.compiled import CompiledApp, Policy
from kms.policy.documents import AppDocument, ImageDocument
from kms.policy.forbidden_advisories import advisory_checks
from kms.policy.question import AppClaim, Ask, Context

# What an image allowed by hash alone may be launched on (the protocol, section 4).
_UNDOCUMENTED_FEATURES: Final = frozenset({SNP_ACTIVE})


def identity_checks(
    app: CompiledApp | None, boot_info: BootInfo, ask: Ask, context: Context
) -> Iterator[Check]:
    """Check that the app is listed, that a claim agrees, and that the app document is for this KMS."""
    shown = "no app is bound" if boot_info.app_id is None else f"app {boot_info.app_id.hex()}"
    if app is None:
        yield Check("app-listed", False, f"{shown}: not listed", "app-not-listed")
    else:
        yield Check("app-listed", True, f"{shown} is {app.document.name}", "app-not-listed")
    wrong = _disagreements(ask.app, boot_info)
    if wrong:
        yield Check("app-claim", False, "; ".join(wrong), "app-claim-disagrees")
    else:
        yield Check("app-claim", True, "nothing that the request claims disagrees", "app-claim-disagrees")
    document_app = context.document_app
    yield Check(
        "document-agrees",
        document_app is None or document_app == (boot_info.app_id, boot_info.compose_hash),
        "an app document beside another binding names the same app and compose",
        "app-document-disagrees",
    )
    named = context.document_kms_identity
    detail = "names no KMS" if named is None else f"names the KMS {named.hex()}"
    yield Check(
        "document-kms-identity",
        named is None or named in context.kms_identities,
        f"the app document {detail}",
        "kms-identity-differs",
    )


def _disagreements(claim: AppClaim | None, boot_info: BootInfo) -> list[str]:
    if claim is None:
        return []
    pairs = (
        ("id", claim.app_id, boot_info.app_id),
        ("compose_hash", claim.compose_hash, boot_info.compose_hash),
        ("instance_id", claim.instance_id, boot_info.instance_id),
    )
    return [
        f"{name}: claimed {claimed.hex()}, bound {_hex(bound)}"
        for name, claimed, bound in pairs
        if claimed is not None and claimed != bound
    ]


def app_checks(app: CompiledApp, boot_info: BootInfo, context: Context) -> Iterator[Check]:
    """Check the app document's date, what runs, how it is bound, and forbidden advisories."""
    document = app.document
    yield Check("app-current", not document.expired(context.now), _until(document.expires_at), "app-expired")
    compose = boot_info.compose_hash
    yield Check(
        "compose-listed",
        compose is not None and document.compose.allows(compose),
        f"compose {_hex(compose)}",
        "compose-not-listed",
    )
    binding = boot_info.binding
    allowed = ", ".join(sorted(document.binding)) or "none"
    yield Check(
        "binding-allowed",
        binding in document.binding,
        f"bound by {binding or 'nothing'}; the app allows {allowed}",
        "binding-not-allowed",
    )
    yield from advisory_checks(document.forbid_advisories, boot_info, context.advisories)


def launch_checks(policy: Policy, app: CompiledApp, boot_info: BootInfo, context: Context) -> Iterator[Check]:
    """Check that the app lists the image, on this machine, and that the image enforces the binding."""
    image_hash = boot_info.os_image_hash
    documents = () if image_hash is None else policy.image_documents(image_hash)
    document = listed_document(app.document, documents, boot_info)
    by_hash_alone = not documents and image_hash in app.document.image_hashes
    yield Check(
        "image-listed",
        document is not None or by_hash_alone,
        f"image {boot_info.image or 'without a name'}, os_image_hash {_hex(image_hash)}",
        "image-not-listed",
    )
    if document is not None:
        until = _until(document.expires_at)
        yield Check("image-current", not document.expired(context.now), until, "image-expired")
    revoked = policy.revocations.image_revoked(boot_info, documented=bool(documents))
    yield Check(
        "image-not-revoked",
        not revoked,
        "revoked, or measures as a revoked image does" if revoked else "measures as no revoked image does",
        "image-revoked",
    )
    yield Check(
        "machine-allowed",
        _machine_allowed(None if document is None else document.image, boot_info),
        f"{boot_info.vcpus} vCPUs of {boot_info.vcpu_type}, features {_0x(boot_info.guest_features)}",
        "machine-not-allowed",
    )
    # Both must name it: the image that was matched, and the document that this policy has for it.
    enforced = context.enforces & (UNDOCUMENTED_ENFORCES if document is None else document.image.enforces)
    shown = ", ".join(sorted(enforced)) or "nothing"
    yield Check(
        "binding-enforced",
        boot_info.binding in enforced,
        f"bound by {boot_info.binding or 'nothing'}; the image enforces {shown}",
        "binding-not-enforced",
    )


def listed_document(
    app: AppDocument, documents: tuple[ImageDocument, ...], boot_info: BootInfo
) -> ImageDocument | None:
    """Give the document that lets the image in: the matched one if listed, else another of its hash."""
    by_hash = boot_info.os_image_hash in app.image_hashes
    listed = [each for each in documents if by_hash or each.name in app.images]
    for each in listed:
        if each.name == boot_info.image:
            return each
    return listed[0] if listed else None


def _machine_allowed(image: Image | None, boot_info: BootInfo) -> bool:
    if boot_info.vcpus is None or boot_info.vcpu_type is None or boot_info.guest_features is None:
        return False
    if image is None:
        return (
            1 <= boot_info.vcpus <= MAX_VCPUS
            and boot_info.vcpu_type in VCPU_TYPES
            and boot_info.guest_features in _UNDOCUMENTED_FEATURES
        )
    # Types are compared by signature: several names measure the same, and one of them was reported. Where
    # the hypervisor hides the type, all do.
    signatures = {VCPU_TYPES[name] for name in image.vcpu_types}
    return (
        image.vcpus_minimum <= boot_info.vcpus <= image.vcpus_maximum
        and (not image.description.vmm.shows_vcpu_type or VCPU_TYPES.get(boot_info.vcpu_type) in signatures)
        and boot_info.guest_features in image.guest_features
    )


def _hex(value: bytes | None) -> str:
    return "not proven" if value is None else value.hex()


def _0x(value: int | None) -> str:
    return "not proven" if value is None else hex(value)


def _until(expires_at: object) -> str:
    return "has no expiry" if expires_at is None else f"expires {expires_at}"
