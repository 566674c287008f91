"""Is an endorsement certificate for this report: its product, its chip or provider, its TCB.

Steps 3 to 5 of `kms.snp.verify`. What the certificate says is AMD's word only if its chain is good, which is
step 2's to say. Source of the extensions: VCEK specification 57230.
"""

from functools import lru_cache
from typing import Final, NamedTuple

from kms.checks import Check
from kms.identifiers import ChipId
from kms.snp import tcb
from kms.snp.certificate import OID_CSP_ID, OID_HWID, Certificate, ExtensionInvalid
from kms.snp.chain import Chain
from kms.snp.flags import Signer
from kms.snp.kds_paths import HWID_LENGTH_ON_TURIN
from kms.snp.product import Cpuid, Product, product_named
from kms.snp.report import RawTcbs, Report
from kms.snp.tcb import TcbVersions

# The guests of a chip all show the same platform. What a stranger crowds this memory with costs time only.
_REMEMBERED: Final = 256


class Platform(NamedTuple):
    """What a report says of the platform that it is from: all that a certificate has to agree with."""

    version: int
    cpuid: Cpuid | None
    product: Product | None
    chip_id: ChipId | None
    tcbs: RawTcbs

    @classmethod
    def of(cls, report: Report) -> "Platform":
        """Take it from a report."""
        return cls(report.version, report.cpuid, report.product, report.chip_id, report.tcbs)


class Fit(NamedTuple):
    """How a leaf fits a report. `product` is the chain's, else the report's; without one, no `tcb`."""

    product: Product | None
    csp_id: str | None
    tcb: TcbVersions | None
    identity_checks: tuple[Check, ...]
    tcb_checks: tuple[Check, ...]


@lru_cache(maxsize=_REMEMBERED)
def check_leaf(chain: Chain, signer: Signer, platform: Platform) -> Fit:
    """Check product, chip or provider, and TCB: the same certificate and platform always give the same."""
    product = chain.product or platform.product
    # (3) One product.
    one_product = _check_product(chain, platform)
    # (4) This chip, or this provider.
    identity, csp_id = _check_identity(chain.leaf, signer, platform, product)
    # (5) This TCB.
    versions = None if product is None else platform.tcbs.decode(product)
    levels = () if product is None or versions is None else _check_tcb(chain.leaf, product, versions)
    return Fit(product, csp_id, versions, (one_product, identity), levels)


def _check_product(chain: Chain, platform: Platform) -> Check:
    try:
        said = chain.leaf.product_name()
    except ExtensionInvalid as error:
        return Check.of("product", False, str(error))
    by_chain = chain.product
    agree = by_chain is not None and product_named(said.split("-", 1)[0]) is by_chain
    if platform.version >= 3:
        agree = agree and platform.product is by_chain
    cpuid = platform.cpuid
    shown = f"{cpuid.family:#x}:{cpuid.model:#x}" if cpuid else "not in a version 2 report"
    return Check.of("product", agree, f"chain {by_chain}, productName {said}, CPUID {shown}")


def _check_identity(
    leaf: Certificate, signer: Signer, platform: Platform, product: Product | None
) -> tuple[Check, str | None]:
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
    chip_id = platform.chip_id
    if chip_id is None:
        return Check.of(
            "hwid", False, "CHIP_ID is zero in a report signed by a VCEK", reason="chip-id-zero"
        ), None
    # Turin's hwID is 8 bytes; its CHIP_ID continues with zeros. Everywhere else all 64 must match.
    used = HWID_LENGTH_ON_TURIN if product is Product.TURIN else len(chip_id)
    same = len(hwid) == used and chip_id[:used] == hwid and not any(chip_id[used:])
    return Check.of("hwid", same, f"hwID {hwid.hex()}, CHIP_ID {chip_id.hex()}", reason="hwid-mismatch"), None


def _check_tcb(leaf: Certificate, product: Product, versions: TcbVersions) -> tuple[Check, ...]:
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
