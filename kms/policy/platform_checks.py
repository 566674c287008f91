"""Checks of where the guest runs: revocations, chip, product, TCB, firmware, platform, mitigations."""

from collections.abc import Iterator
from datetime import datetime
from functools import cache

from kms.checks import Check
from kms.policy.compiled import CompiledApp, Policy
from kms.policy.documents import Levels, TcbDocument, TcbKind
from kms.policy.question import PlatformFacts
from kms.snp.flags import Signer
from kms.snp.tcb import TcbVersion, TcbVersions


def revocation_checks(policy: Policy, facts: PlatformFacts) -> Iterator[Check]:
    """Check what can be revoked whatever the app: revocation wins over everything, chips of any signer.

    Images are with the launch (`kms.policy.app_checks`).
    """
    revoked = policy.revocations
    yield _not_revoked("app", facts.app_id in revoked.apps)
    yield _not_revoked("compose", facts.compose_hash in revoked.compose)
    yield _not_revoked("measurement", facts.measurement in revoked.measurements)
    yield _not_revoked("chip", facts.chip_id in revoked.chips)
    yield _not_revoked("product", facts.product in revoked.products)


@cache  # there are ten of these, and each decision makes five
def _not_revoked(what: str, revoked: bool) -> Check:
    detail = f"this {what} is {'' if revoked else 'not '}revoked"
    return Check(f"{what}-not-revoked", not revoked, detail, f"{what}-revoked")


def chip_checks(policy: Policy, app: CompiledApp, facts: PlatformFacts, now: datetime) -> Iterator[Check]:
    """Check the chip against the app's list: ids, and named sets that have not expired."""
    allowed, chip = app.document.chips, facts.chip_id
    reason = "chip-not-listed"
    if allowed.anything:
        yield Check("chip-listed", True, "the app allows any chip", reason)
        return
    if facts.signer is not Signer.VCEK or chip is None:
        # A VLEK is a provider's and not a chip's: what its report says of the chip, the provider says.
        yield Check("chip-listed", False, f"a {facts.signer} report proves no chip", reason)
        return
    if chip in allowed.items:
        yield Check("chip-listed", True, f"chip {chip.hex()} is listed", reason)
        return
    sets = [each for each in policy.chip_sets_with(chip) if each.name in app.document.chip_sets]
    current = [each.name for each in sets if not each.expired(now)]
    if sets and not current:
        detail = f"chip {chip.hex()} is only in expired sets: {', '.join(each.name for each in sets)}"
        yield Check("chip-listed", False, detail, "chips-expired")
        return
    detail = f"in {', '.join(current)}" if current else "not listed"
    yield Check("chip-listed", bool(current), f"chip {chip.hex()} is {detail}", reason)


def tcb_checks(app: CompiledApp, facts: PlatformFacts, now: datetime) -> Iterator[Check]:
    """Check product, the TCB versions that the document names, firmware, platform bits, mitigations."""
    document = app.tcb
    until = "has no expiry" if document.expires_at is None else f"expires {document.expires_at}"
    yield Check("tcb-document-current", not document.expired(now), f"{document.name} {until}", "tcb-expired")
    minimum = document.minimum(facts.product, facts.cpuid)
    model = "unknown model" if facts.cpuid is None else f"model {facts.cpuid.model:#x}"
    yield Check(
        "product-listed",
        minimum is not None,
        f"{facts.product}, {model}, in {document.name}",
        "product-not-listed",
    )
    if minimum is not None:
        for kind in document.check:
            yield _tcb_check(kind, _version(facts.tcb, kind), minimum)
    yield _provisional_check(document, facts)
    yield from _platform_checks(document, facts)
    yield _mitigation_check("launch", facts.launch_mitigations, document.launch_mitigations)
    yield _mitigation_check("current", facts.current_mitigations, document.current_mitigations)


def _version(versions: TcbVersions, kind: TcbKind) -> TcbVersion:
    match kind:
        case TcbKind.REPORTED:
            return versions.reported
        case TcbKind.COMMITTED:
            return versions.committed
        case TcbKind.CURRENT:
            return versions.current
        case TcbKind.LAUNCH:
            return versions.launch


def _tcb_check(kind: TcbKind, version: TcbVersion, minimum: Levels) -> Check:
    """Compare component by component: a high microcode level must not hide an old bootloader (lesson 7)."""
    below = version.below(minimum)
    if below:
        detail = "; ".join(
            f"{kind} {name} {'absent' if seen is None else seen} is below {wanted}"
            for name, (seen, wanted) in below.items()
        )
    else:
        detail = f"{kind}: every component reaches its minimum"
    return Check(f"tcb-{kind}", not below, detail, f"tcb-{kind}-too-low")


def _provisional_check(document: TcbDocument, facts: PlatformFacts) -> Check:
    """Compare committed with current firmware: until it is committed, the host may roll it back."""
    tcb = facts.tcb
    provisional = tcb.current != tcb.committed or facts.current_firmware != facts.committed_firmware
    return Check(
        "firmware-not-provisional",
        document.provisional_firmware or not provisional,
        f"firmware {facts.current_firmware}, committed {facts.committed_firmware}"
        f"{'; it can be rolled back' if provisional else ''}",
        "provisional-firmware",
    )


def _platform_checks(document: TcbDocument, facts: PlatformFacts) -> Iterator[Check]:
    bits = facts.platform_info.bits()
    missing = [name for name in document.require if not bits[name]]
    yield Check(
        "platform-required",
        not missing,
        f"missing: {', '.join(missing) or 'none'}",
        "platform-required-missing",
    )
    unwanted = [name for name in document.forbid if bits[name]]
    yield Check(
        "platform-forbidden",
        not unwanted,
        f"set although forbidden: {', '.join(unwanted) or 'none'}",
        "platform-forbidden-set",
    )


def _mitigation_check(which: str, seen: int | None, wanted: int) -> Check:
    # A report without the field proves no mitigation: it passes only where none is wanted.
    passed = wanted == 0 or (seen is not None and seen & wanted == wanted)
    shown = "not in this report" if seen is None else hex(seen)
    return Check(
        f"mitigations-{which}", passed, f"{shown}, wanted {wanted:#x}", f"mitigations-{which}-missing"
    )
