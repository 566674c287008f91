"""Is an endorsement certificate for this report: its product, its chip or provider, its TCB.

Steps 3 to 5 of `kms.snp.verify`. What the certificate says is AMD's word only if its chain is good, which is
step 2's to say. Source of the extensions: VCEK specification 57230.
"""

from typing import Final

from kms.checks import Check
from kms.snp import tcb
from kms.snp.certificate import OID_CSP_ID, OID_HWID, Certificate, ExtensionInvalid
from kms.snp.chain import Chain
from kms.snp.flags import Signer
from kms.snp.product import Product, product_named
from kms.snp.report import Report
from kms.snp.tcb import TcbVersions

_TURIN_CHIP_ID: Final = 8  # bytes of CHIP_ID that Turin uses; the other 56 are zero


def check_product(report: Report, chain: Chain) -> Check:
    """Check that the pinned root, the certificate's productName and (from version 3 on) CPUID agree."""
    try:
        said = chain.leaf.product_name()
    except ExtensionInvalid as error:
        return Check.of("product", False, str(error))
    by_chain = chain.product
    agree = by_chain is not None and product_named(said.split("-", 1)[0]) is by_chain
    if report.version >= 3:
        agree = agree and report.product is by_chain
    cpuid = (
        f"{report.cpuid.family:#x}:{report.cpuid.model:#x}" if report.cpuid else "not in a version 2 report"
    )
    return Check.of("product", agree, f"chain {by_chain}, productName {said}, CPUID {cpuid}")


def check_identity(
    report: Report, signer: Signer, leaf: Certificate, product: Product | None
) -> tuple[Check, str | None]:
    """Check that a VCEK is this chip's (hwID), or that a VLEK names its provider, which is given too."""
    try:
        if signer is Signer.VLEK:
            if leaf.has(OID_HWID):
                raise ExtensionInvalid("a VLEK certificate with a hwID")
            csp_id = leaf.csp_id()
            return Check.of("csp-id", True, f"issued to {csp_id}"), csp_id
        if leaf.has(OID_CSP_ID):
            raise ExtensionInvalid("a VCEK certificate with a csp id")
        hwid = leaf.hwid()
    except ExtensionInvalid as error:
        return Check.of("hwid" if signer is Signer.VCEK else "csp-id", False, str(error)), None
    chip_id = report.chip_id
    if chip_id is None:
        return Check.of(
            "hwid", False, "CHIP_ID is zero in a report signed by a VCEK", reason="chip-id-zero"
        ), None
    # Turin's hwID is 8 bytes; its CHIP_ID continues with zeros. Everywhere else all 64 must match.
    used = _TURIN_CHIP_ID if product is Product.TURIN else len(chip_id)
    same = len(hwid) == used and chip_id[:used] == hwid and not any(chip_id[used:])
    return Check.of("hwid", same, f"hwID {hwid.hex()}, CHIP_ID {chip_id.hex()}", reason="hwid-mismatch"), None


def check_tcb(leaf: Certificate, product: Product, versions: TcbVersions) -> tuple[Check, ...]:
    """Check that the certificate is for exactly the reported TCB, and that one is not above the current."""
    try:
        certified = tcb.TcbVersion(**{name: leaf.level(name) for name in tcb.component_names(product)})
    except ExtensionInvalid as error:
        return (Check.of("certificate-tcb-extensions", False, str(error)),)
    unexpected = product is not Product.TURIN and leaf.has_level("fmc")
    return (
        Check.of(
            "certificate-tcb-extensions",
            leaf.reserved_levels_are_zero() and not unexpected,
            "each TCB component occurs once, and nothing else",
        ),
        Check.of(
            "certificate-tcb",
            certified == versions.reported,
            f"the certificate is for {certified.components()}, "
            f"the report claims {versions.reported.components()}",
        ),
        Check.of(
            "certificate-not-above-current",
            versions.current.covers(certified),
            f"the certificate's TCB is not above the current {versions.current.components()}",
        ),
    )
