"""Checks of how the guest was launched and who asks, by its guest document."""

from collections.abc import Iterator
from functools import cache

from kms.boot_info import BootInfo
from kms.checks import Check
from kms.policy.documents import GuestDocument, Wanted
from kms.policy.question import Context
from kms.snp.flags import Signer
from kms.snp.report import FirmwareVersion


def guest_checks(document: GuestDocument, boot_info: BootInfo, context: Context) -> Iterator[Check]:
    """Check every field of the guest document, in the order of the protocol."""
    until = "has no expiry" if document.expires_at is None else f"expires {document.expires_at}"
    yield Check(
        "guest-current", not document.expired(context.now), f"{document.name} {until}", "guest-expired"
    )
    yield Check("vmpl", boot_info.vmpl in document.vmpl, f"VMPL {boot_info.vmpl}", "vmpl-not-allowed")
    yield Check(
        "report-version",
        boot_info.report_version in document.report_versions,
        f"version {boot_info.report_version}",
        "report-version-not-allowed",
    )
    yield Check(
        "signer-allowed",
        boot_info.signer in document.signers,
        f"signed by a {boot_info.signer}",
        "signer-not-allowed",
    )
    yield Check(
        "csp",
        boot_info.signer is Signer.VCEK or boot_info.csp_id in document.csp,
        f"provider {boot_info.csp_id or 'none'}",
        "csp-not-allowed",
    )
    yield _debug_check(document, boot_info, context)
    bits = boot_info.guest_policy.bits()
    for name, wanted in document.bits:
        yield _bit_check(name, wanted, bits[name])
    yield _firmware_check("current", boot_info.current_firmware, document)
    yield _firmware_check("committed", boot_info.committed_firmware, document)
    yield Check(
        "guest-svn",
        boot_info.guest_svn >= document.guest_svn_minimum,
        f"{boot_info.guest_svn}, at least {document.guest_svn_minimum} wanted",
        "guest-svn-too-low",
    )
    yield Check(
        "id-key",
        document.id_key_digests.allows(boot_info.id_key_digest),
        f"ID key digest {boot_info.id_key_digest.hex()}",
        "id-key-not-allowed",
    )
    yield Check(
        "author-key",
        document.author_key_digests.allows(boot_info.author_key_digest),
        f"author key digest {boot_info.author_key_digest.hex()}",
        "author-key-not-allowed",
    )


def _debug_check(document: GuestDocument, boot_info: BootInfo, context: Context) -> Check:
    """Refuse debug guests: the host reads their memory, so a key given to one is given to the host.

    Outside development mode the document has no say, and one that tries denies whoever relies on it.
    """
    if document.debug and not context.development:
        detail = f"{document.name} allows debug outside development mode"
        return Check("policy-debug", False, detail, "debug-allowed")
    passed = not boot_info.guest_policy.debug or document.debug
    shown = "set" if boot_info.guest_policy.debug else "clear"
    return Check("policy-debug", passed, f"the debug bit of the guest's POLICY is {shown}", "debug-enabled")


@cache  # there are a few dozen of these, and each decision makes eight
def _bit_check(name: str, wanted: Wanted, seen: bool) -> Check:
    passed = wanted is Wanted.ANY or seen is (wanted is Wanted.SET)
    detail = f"{name} is {'set' if seen else 'clear'} in the guest's POLICY, wanted: {wanted}"
    code = f"policy-{name.replace('_', '-')}"
    return Check(code, passed, detail, code)


def _firmware_check(which: str, seen: FirmwareVersion, document: GuestDocument) -> Check:
    wanted = document.firmware_minimum
    # Unlike TCB levels these are one version number, so the parts do compare from left to right.
    passed = (seen.major, seen.minor, seen.build) >= (wanted.major, wanted.minor, wanted.build)
    return Check(
        f"firmware-{which}",
        passed,
        f"{which} firmware {seen}, at least {wanted.major}.{wanted.minor}.{wanted.build} wanted",
        f"firmware-{which}-too-low",
    )
