"""What may be kept: certificates that chain to a pinned root, judged without a report.

A store, a prefetch and an import ask here before they keep anything; a release still verifies the whole
chain again, whatever the store says.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from kms.checks import Check, failures
from kms.identifiers import ChipId
from kms.snp.certificate import Certificate, ExtensionInvalid
from kms.snp.chain import Chain, build_chain, check_chain, signer_of
from kms.snp.flags import Signer
from kms.snp.kds_paths import Line, chip_id_of
from kms.snp.product import Product, product_named
from kms.snp.roots import TrustedRoots
from kms.snp.tcb import TcbVersion, component_names


@dataclass(frozen=True, slots=True, kw_only=True)
class Endorsed:
    """A leaf under a pinned root: which line, for which chip (a VCEK) or provider (a VLEK), at which TCB."""

    chain: Chain
    line: Line
    chip_id: ChipId | None
    csp_id: str | None
    tcb: TcbVersion


def endorse(
    leaf: Certificate, authorities: Iterable[Certificate], roots: TrustedRoots, now: datetime
) -> Endorsed | tuple[Check, ...]:
    """Judge a leaf with candidate authorities; what does not pass gives the checks that were made."""
    chain = build_chain(leaf, authorities, roots)
    line = line_of(chain)
    if line is None:
        return (Check.of("root", False, "no chain to a pinned root", reason="root-unknown"),)
    checks = check_chain(chain, line.signer, now)
    if failures(checks):
        return checks
    try:
        named, tcb = certified_tcb(leaf)
        chip_id = chip_id_of(leaf.hwid()) if line.signer is Signer.VCEK else None
        csp_id = leaf.csp_id() if line.signer is Signer.VLEK else None
    except (ExtensionInvalid, ValueError) as error:
        return (*checks, Check.of("certificate-tcb-extensions", False, str(error)))
    if named is not line.product:
        return (*checks, Check.of("product", False, f"chain {line.product}, productName {named}"))
    return Endorsed(chain=chain, line=line, chip_id=chip_id, csp_id=csp_id, tcb=tcb)


def certified_tcb(leaf: Certificate) -> tuple[Product, TcbVersion]:
    """Give the product and the TCB that a leaf's extensions name, proven or not.

    Raises:
        ExtensionInvalid: an extension is missing or not of its type, or names no product line.

    """
    product = product_named(leaf.product_name().split("-", 1)[0])
    if product is None:
        raise ExtensionInvalid("productName names no product line")
    return product, TcbVersion(**{name: leaf.level(name) for name in component_names(product)})


def line_of(chain: Chain) -> Line | None:
    """Give the line of a chain; None unless its ARK is pinned and its leaf is of a known kind."""
    signer = signer_of(chain.leaf)
    return None if signer is None or chain.product is None else Line(signer, chain.product)


def is_pinned(ark: Certificate, roots: TrustedRoots) -> bool:
    """Say whether a certificate is a pinned ARK that signed itself."""
    return roots.product_of(ark) is not None and ark.is_signed_by(ark)
