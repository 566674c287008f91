"""Authenticity: did a genuine AMD chip sign this report? Nothing here asks whether we like what it says.

The order is the security argument:

1. who claims to have signed: a chip key, not a masked one, and not at the host's request;
2. the endorsement certificate chains to a pinned root (`kms.snp.chain`);
3. chain, productName and CPUID name one product;
4. the certificate is for this chip (VCEK: hwID) or for a cloud provider (VLEK: csp id);
5. the certificate is for exactly the TCB that the report claims, component by component;
6. the signature over the 672 raw bytes verifies under that certificate's key.

What the caller must still do: bind REPORT_DATA to the request (`check_report_data`) and judge the content
(`kms.policy`).
"""

import hmac
from collections.abc import Iterable
from dataclasses import InitVar, dataclass
from datetime import datetime
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from kms.checks import Check, failures
from kms.snp import tcb
from kms.snp.certificate import OID_CSP_ID, OID_HWID, Certificate, ExtensionInvalid
from kms.snp.chain import Chain, build_chain, check_chain, signer_of
from kms.snp.flags import Signer
from kms.snp.product import Product, product_named
from kms.snp.report import VMPL_HOST, Report, check_tcb_reserved
from kms.snp.roots import TrustedRoots
from kms.snp.tcb import TcbVersions

_ORIGIN_CHECKS = frozenset({"chip-key", "signer", "requester"})
_HERE: Final = object()  # whoever has it is this module
_MOST_LEAVES = 4  # each costs signature checks, and a stranger chooses how many are sent
_TURIN_CHIP_ID = 8  # bytes of CHIP_ID that Turin uses; the other 56 are zero


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedReport:
    """A report that a genuine chip signed. Made only by `verify`, and proof that it passed."""

    report: Report
    product: Product
    signer: Signer
    csp_id: str | None
    tcb: TcbVersions
    leaf: Certificate
    checks: tuple[Check, ...]
    made_by: InitVar[object]

    def __post_init__(self, made_by: object) -> None:
        if made_by is not _HERE or failures(self.checks):
            raise TypeError("only a verification whose every check passed makes a VerifiedReport")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unverified:
    """A report that did not pass, with every check that was made.

    `leaf` is the certificate judged. `authority_missing` is that of its `kms.snp.chain.Chain`.
    """

    report: Report
    leaf: Certificate | None
    checks: tuple[Check, ...]
    authority_missing: bool = False

    @property
    def origin_refused(self) -> bool:
        """Whether the report itself says that no endorsement key signed it for a guest (step 1)."""
        return any(not check.passed for check in self.checks if check.name in _ORIGIN_CHECKS)

    @property
    def stale_leaf(self) -> bool:
        """Whether the only fault is an authentic certificate for another TCB of the same chip."""
        return failures(self.checks) == ("certificate-tcb",)


def check_report_data(report: Report, expected: bytes) -> Check:
    """Check that the guest asked its hardware for a report over exactly `expected` (64 bytes)."""
    return Check.of(
        "report-data",
        hmac.compare_digest(report.report_data, expected),
        f"REPORT_DATA is {report.report_data.hex()}, the request gives {expected.hex()}",
        reason="report-data-mismatch",
    )


def verify(
    report: Report, certificates: Iterable[Certificate], roots: TrustedRoots, now: datetime
) -> VerifiedReport | Unverified:
    """Verify a report with candidate certificates (leaf, authorities, any order; more are ignored).

    Several leaves may be offered; the first that verifies is used, else the first is reported on.

    Raises:
        MalformedEvidence: a version 2 report whose TCB has reserved bytes set for the product of its chain.

    """
    offered = tuple(certificates)
    # (1) Who claims to have signed.
    origin = _check_origin(report)
    signer = report.flags.signer
    leaves = [] if signer is None else [c for c in offered if signer_of(c) is signer][:_MOST_LEAVES]
    authorities = [c for c in offered if signer_of(c) is None]
    if signer is None or not leaves:
        missing = Check.of(
            "endorsement-certificate", False, "no endorsement certificate of the report's signer was given"
        )
        return Unverified(report=report, leaf=None, checks=(*origin, missing))
    outcomes: list[Unverified] = []
    for leaf in leaves:
        outcome = _verify_with(report, signer, build_chain(leaf, authorities, roots), now, origin)
        if isinstance(outcome, VerifiedReport):
            return outcome
        outcomes.append(outcome)
    return outcomes[0]


def _verify_with(
    report: Report, signer: Signer, chain: Chain, now: datetime, origin: tuple[Check, ...]
) -> VerifiedReport | Unverified:
    leaf = chain.leaf
    checks = list(origin)
    # (2) The chain.
    checks.extend(check_chain(chain, signer, now))
    # (3) One product.
    product = chain.product or report.product
    checks.append(_check_product(report, chain))
    # (4) This chip, or this provider.
    identity, csp_id = _check_identity(report, signer, leaf, product)
    checks.append(identity)
    # (5) This TCB.
    versions: TcbVersions | None = None
    if product is not None:
        if report.version == 2 and not failures(checks):  # the only version without CPUID
            # Its parser could not know the product; now the chain has proven it.
            check_tcb_reserved(report.tcbs, product)
        versions = _decode(report, product)
        checks.extend(_check_tcb(leaf, product, versions))
    # (6) The signature.
    checks.append(_check_signature(report, leaf))
    if failures(checks) or product is None or versions is None:
        return Unverified(
            report=report, leaf=leaf, checks=tuple(checks), authority_missing=chain.authority_missing
        )
    return VerifiedReport(
        report=report,
        product=product,
        signer=signer,
        csp_id=csp_id,
        tcb=versions,
        leaf=leaf,
        checks=tuple(checks),
        made_by=_HERE,
    )


def _check_origin(report: Report) -> tuple[Check, ...]:
    return (
        Check.of(
            "chip-key",
            not report.flags.chip_key_masked,
            "the chip key is not masked (MASK_CHIP_KEY)",
            reason="chip-key-masked",
        ),
        Check.of(
            "signer",
            report.flags.signer is not None,
            "signed by a VCEK or VLEK (SIGNING_KEY)",
            reason="signer-none",
        ),
        Check.of(
            "requester",
            # The host may ask for a report of a guest, with REPORT_DATA of its own choice.
            report.vmpl != VMPL_HOST,
            "the guest asked for this report, not the host (VMPL)",
            reason="requested-by-host",
        ),
    )


def _check_product(report: Report, chain: Chain) -> Check:
    try:
        named = product_named(chain.leaf.product_name().split("-", 1)[0])
        said = chain.leaf.product_name()
    except ExtensionInvalid as error:
        return Check.of("product", False, str(error))
    by_chain = chain.product
    agree = by_chain is not None and named is by_chain
    if report.version >= 3:
        agree = agree and report.product is by_chain
    cpuid = (
        f"{report.cpuid.family:#x}:{report.cpuid.model:#x}" if report.cpuid else "not in a version 2 report"
    )
    return Check.of("product", agree, f"chain {by_chain}, productName {said}, CPUID {cpuid}")


def _check_identity(
    report: Report, signer: Signer, leaf: Certificate, product: Product | None
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
    chip_id = report.chip_id
    if chip_id is None:
        return Check.of(
            "hwid", False, "CHIP_ID is zero in a report signed by a VCEK", reason="chip-id-zero"
        ), None
    # Turin's hwID is 8 bytes; its CHIP_ID continues with zeros. Everywhere else all 64 must match.
    used = _TURIN_CHIP_ID if product is Product.TURIN else len(chip_id)
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


def _check_signature(report: Report, leaf: Certificate) -> Check:
    key = leaf.public_key
    good = False
    signature = report.signature
    if signature and isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1):
        try:
            key.verify(encode_dss_signature(*signature), report.signed_bytes, ec.ECDSA(hashes.SHA384()))
            good = True
        except InvalidSignature:
            good = False
    return Check.of("report-signature", good, "ECDSA P-384 with SHA-384 over the first 672 bytes")


def _decode(report: Report, product: Product) -> TcbVersions:
    return TcbVersions(
        current=tcb.decode(report.tcbs.current, product),
        reported=tcb.decode(report.tcbs.reported, product),
        committed=tcb.decode(report.tcbs.committed, product),
        launch=tcb.decode(report.tcbs.launch, product),
    )
