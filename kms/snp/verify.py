"""Authenticity: did a genuine AMD chip sign this report? Nothing here asks whether we like what it says.

The order is the security argument:

1. who claims to have signed: a chip key, not a masked one, and not at the host's request;
2. the endorsement certificate chains to a pinned root (`kms.snp.chain`), which has revoked neither its
   authority nor itself (`kms.snp.revocation`);
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
from kms.snp.certificate import Certificate
from kms.snp.chain import Chain, build_chain, check_chain, signer_of
from kms.snp.flags import Signer
from kms.snp.leaf import Platform, check_leaf
from kms.snp.product import Product
from kms.snp.report import VMPL_HOST, Report, check_tcb_reserved
from kms.snp.revocation import LIST_MISSING, Revocation, check_revocation
from kms.snp.roots import TrustedRoots
from kms.snp.tcb import TcbVersions

_ORIGIN_CHECKS = frozenset({"chip-key", "signer", "requester"})
_HERE: Final = object()  # whoever has it is this module
_ECDSA: Final = ec.ECDSA(hashes.SHA384())
_MOST_LEAVES = 4  # each costs signature checks, and a stranger chooses how many are sent
_OTHER_TCB = "certificate-tcb"
# What is wrong besides with a certificate for another TCB: a chip has another key for each TCB.
_BESIDES_OTHER_TCB = frozenset({"certificate-not-above-current", "report-signature", LIST_MISSING})


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedReport:
    """A report that a genuine chip signed. Made only by `verify`, and proof that it passed."""

    report: Report
    product: Product
    signer: Signer
    csp_id: str | None
    tcb: TcbVersions
    chain: Chain
    checks: tuple[Check, ...]
    made_by: InitVar[object]

    def __post_init__(self, made_by: object) -> None:
        if made_by is not _HERE or failures(self.checks):
            raise TypeError("only a verification whose every check passed makes a VerifiedReport")

    @property
    def leaf(self) -> Certificate:
        """The endorsement certificate, whose key signed the report."""
        return self.chain.leaf


@dataclass(frozen=True, slots=True, kw_only=True)
class Unverified:
    """A report that did not pass, with every check that was made.

    `chain` is what was judged; None where no leaf of the report's signer was offered.
    """

    report: Report
    chain: Chain | None
    checks: tuple[Check, ...]

    @property
    def leaf(self) -> Certificate | None:
        """The certificate judged, if there was one."""
        return None if self.chain is None else self.chain.leaf

    @property
    def authority_missing(self) -> bool:
        """Whether nothing but the ASK or ASVK is missing of the chain: see `kms.snp.chain.Chain`."""
        return self.chain is not None and self.chain.authority_missing

    @property
    def root_missing(self) -> bool:
        """Whether nothing but the ARK is missing of the chain: see `kms.snp.chain.Chain`."""
        return self.chain is not None and self.chain.root_missing

    @property
    def origin_refused(self) -> bool:
        """Whether the report itself says that no endorsement key signed it for a guest (step 1)."""
        return any(not check.passed for check in self.checks if check.name in _ORIGIN_CHECKS)

    @property
    def stale_leaf(self) -> bool:
        """Whether the only fault is an authentic certificate for another TCB of the same chip.

        The endorsement key follows from the TCB, so that such a certificate never fits the signature. A
        revocation list that is missing besides says nothing about the certificate: the right one may be
        sought, and the list after it.
        """
        found = set(failures(self.checks))
        return _OTHER_TCB in found and found <= _BESIDES_OTHER_TCB | {_OTHER_TCB}

    @property
    def revocation_list_missing(self) -> bool:
        """Whether the only fault is that a revocation list is required and no current one is known."""
        return failures(self.checks) == (LIST_MISSING,)


def check_report_data(report: Report, expected: bytes) -> Check:
    """Check that the guest asked its hardware for a report over exactly `expected` (64 bytes)."""
    return Check.of(
        "report-data",
        hmac.compare_digest(report.report_data, expected),
        f"REPORT_DATA is {report.report_data.hex()}, the request gives {expected.hex()}",
        reason="report-data-mismatch",
    )


def is_signed_with(report: Report, leaf: Certificate) -> bool:
    """Say whether a certificate's key signed a report; of the certificate itself that says nothing."""
    return _check_signature(report, leaf).passed


def verify(
    report: Report,
    certificates: Iterable[Certificate],
    roots: TrustedRoots,
    now: datetime,
    revocation: Revocation,
) -> VerifiedReport | Unverified:
    """Verify a report with candidate certificates (leaf, authorities, any order; more are ignored).

    Several leaves may be offered; the first that verifies is used, else the first is reported on.
    `revocation` brings the revocation lists that are known, of any ARK and from anybody.

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
        return Unverified(report=report, chain=None, checks=(*origin, missing))
    outcomes: list[Unverified] = []
    for leaf in leaves:
        chain = build_chain(leaf, authorities, roots)
        outcome = _verify_with(report, signer, chain, now=now, revocation=revocation, origin=origin)
        if isinstance(outcome, VerifiedReport):
            return outcome
        outcomes.append(outcome)
    return outcomes[0]


def _verify_with(
    report: Report,
    signer: Signer,
    chain: Chain,
    *,
    now: datetime,
    revocation: Revocation,
    origin: tuple[Check, ...],
) -> VerifiedReport | Unverified:
    checks = list(origin)
    # (2) The chain, and whether its root took back its word.
    checks += check_chain(chain, signer, now)
    checks += check_revocation(chain, revocation, now)
    # (3) One product, (4) this chip or this provider, (5) this TCB.
    fit = check_leaf(chain, signer, Platform.of(report))
    checks += fit.identity_checks
    if report.version == 2 and fit.product is not None and not set(failures(checks)) - {LIST_MISSING}:
        # The only version without CPUID: its parser could not know the product; now the chain has proven it.
        check_tcb_reserved(report.tcbs, fit.product)
    checks += fit.tcb_checks
    # (6) The signature.
    checks.append(_check_signature(report, chain.leaf))
    if failures(checks) or fit.product is None or fit.tcb is None:
        return Unverified(report=report, chain=chain, checks=tuple(checks))
    return VerifiedReport(
        report=report,
        product=fit.product,
        signer=signer,
        csp_id=fit.csp_id,
        tcb=fit.tcb,
        chain=chain,
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


def _check_signature(report: Report, leaf: Certificate) -> Check:
    key = leaf.public_key
    good = False
    signature = report.signature
    if signature and isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1):
        try:
            key.verify(encode_dss_signature(*signature), report.signed_bytes, _ECDSA)
            good = True
        except InvalidSignature:
            good = False
    return Check.of("report-signature", good, "ECDSA P-384 with SHA-384 over the first 672 bytes")
