"""From an endorsement certificate to a pinned root: ARK → ASK or ASVK → VCEK or VLEK.

X.509 path validators refuse RSA-PSS, so this is written here, for AMD's one shape of chain: exactly three
certificates. Source: AMD VCEK specification 57230; the profile is that of the genuine certificates.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from kms.checks import Check
from kms.snp.certificate import Certificate
from kms.snp.flags import Signer
from kms.snp.kds_paths import Line, line_named
from kms.snp.product import Product
from kms.snp.roots import TrustedRoots

_LEAF_NAMES = {"SEV-VCEK": Signer.VCEK, "SEV-VLEK": Signer.VLEK}
_ARK_NAMES = frozenset(f"ARK-{product.certificate_name}" for product in Product)
# Chains whose checks are remembered. What a stranger crowds it with costs time, and at most some 16 MiB.
_REMEMBERED: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """The certificates that were judged together, and the product that the pinned root speaks for.

    `authority` is the ASK or ASVK. Anything but the leaf is None where no candidate fits; `product` is
    None unless the ARK is pinned. `authority_missing` says that the leaf names an ASK or ASVK of AMD's as its
    issuer and no certificate of that name was offered: nothing is known against it yet. `root_missing` says
    the same of the ARK, for a leaf that its authority signed.
    """

    leaf: Certificate
    authority: Certificate | None
    ark: Certificate | None
    product: Product | None
    authority_missing: bool = False
    root_missing: bool = False


def signer_of(leaf: Certificate) -> Signer | None:
    """Give the kind of endorsement key that a certificate is for, by its common name; None for others."""
    return _LEAF_NAMES.get(leaf.subject_name)


def is_authority(certificate: Certificate) -> bool:
    """Say whether a certificate stands where an ASK or ASVK stands: neither a leaf nor self-issued."""
    return signer_of(certificate) is None and certificate.subject != certificate.issuer


def build_chain(leaf: Certificate, authorities: Iterable[Certificate], roots: TrustedRoots) -> Chain:
    """Choose the authority and the ARK for a leaf; `check_chain` says whether they are any good.

    Candidates come from strangers: names only narrow the choice, and a chain whose signatures fit up to a
    pinned ARK wins over every decoy of the same name. Without one, the chain that fits furthest is given, so
    that the refusal names what is really wrong with it. The work is linear in the candidates.
    """
    candidates = {each.fingerprint: each for each in (*authorities, *roots.development)}.values()
    named = [each for each in candidates if each.subject == leaf.issuer and each.subject != each.issuer]
    # Whoever signed the leaf is its authority, though the store may know a genuine one of the same name.
    named = [each for each in named if leaf.is_signed_by(each)] or named
    # One ARK for each pinned key: copies of a pinned certificate cannot multiply the work.
    pinned = {
        each.public_key_sha256: each for each in candidates if roots.product_of(each) is not None
    }.values()
    for authority in named:
        for ark in pinned:
            if ark.subject == authority.issuer and authority.is_signed_by(ark):
                return Chain(leaf=leaf, authority=authority, ark=ark, product=roots.product_of(ark))
    if not named:
        missing = line_named(leaf.issuer_name) is not None and not any(
            each.subject_name == leaf.issuer_name for each in candidates
        )
        return Chain(leaf=leaf, authority=None, ark=None, product=None, authority_missing=missing)
    authority = named[0]
    issuers = [each for each in candidates if each.subject == authority.issuer == each.issuer]
    issuers.sort(key=authority.is_signed_by, reverse=True)
    issuer = issuers[0] if issuers else None
    if issuer is None:
        missing = authority.issuer_name in _ARK_NAMES and leaf.is_signed_by(authority)
        return Chain(leaf=leaf, authority=authority, ark=None, product=None, root_missing=missing)
    return Chain(leaf=leaf, authority=authority, ark=issuer, product=roots.product_of(issuer))


def check_chain(chain: Chain, signer: Signer, now: datetime) -> tuple[Check, ...]:
    """Check signatures, names, CA bits, key types and validity of a chain for a report's signer."""
    present = [each for each in (chain.leaf, chain.authority, chain.ark) if each is not None]
    clock = now.isoformat(timespec="seconds")
    return (*_lasting_checks(chain, signer), *(_check_validity(each, now, clock) for each in present))


@lru_cache(maxsize=_REMEMBERED)
def _lasting_checks(chain: Chain, signer: Signer) -> tuple[Check, ...]:
    """Check what the clock cannot change: the same certificates under the same pin always give the same."""
    leaf, authority, ark = chain.leaf, chain.authority, chain.ark
    return (
        _check_root(chain),
        Check.of(
            "authority-signature",
            authority is not None and ark is not None and authority.is_signed_by(ark),
            f"{_name(authority)} is signed by {_name(ark)}",
        ),
        Check.of(
            "leaf-signature",
            authority is not None and leaf.is_signed_by(authority),
            f"{_name(leaf)} is signed by {_name(authority)}",
        ),
        _check_names(chain, signer),
        _check_authority_bits(chain),
        Check.of(
            "leaf-key",
            isinstance(leaf.public_key, ec.EllipticCurvePublicKey)
            and isinstance(leaf.public_key.curve, ec.SECP384R1)
            and not leaf.is_ca,
            "the endorsement key is P-384 and not a CA",
        ),
    )


def _check_root(chain: Chain) -> Check:
    ark = chain.ark
    if ark is None:
        return Check.of("root", False, "no root certificate for this chain is known", reason="root-unknown")
    if chain.product is None:
        detail = f"{_name(ark)}: its public key {ark.public_key_sha256.hex()} is not a pinned root"
        return Check.of("root", False, detail, reason="root-unknown")
    # The key is what is pinned; the self-signature keeps a stranger from editing the dates around it.
    return Check.of(
        "root", ark.is_signed_by(ark), f"{_name(ark)} is pinned and self-signed", reason="root-signature"
    )


def _check_names(chain: Chain, signer: Signer) -> Check:
    leaf, authority, ark = chain.leaf, chain.authority, chain.ark
    seen = f"{leaf.subject_name} < {_name(authority)} < {_name(ark)}"
    product = chain.product
    if product is None or authority is None or ark is None:
        return Check.of("chain-names", False, f"no complete chain: {seen}")
    line = product.certificate_name
    good = (
        signer_of(leaf) is signer
        and authority.subject_name == Line(signer, product).authority_name
        and ark.subject_name == f"ARK-{line}"
        and leaf.issuer == authority.subject
        and authority.issuer == ark.subject == ark.issuer
    )
    return Check.of("chain-names", good, f"{seen}, for a {signer.value.upper()} of {line}")


def _check_authority_bits(chain: Chain) -> Check:
    authorities = (chain.authority, chain.ark)
    good = all(
        certificate is not None and certificate.is_ca is True and certificate.may_sign_certificates is True
        for certificate in authorities
    )
    return Check.of("authority-bits", good, "both authorities are CAs that may sign certificates")


def _check_validity(certificate: Certificate, now: datetime, clock: str) -> Check:
    return Check.of(
        "certificate-validity",
        certificate.not_before <= now <= certificate.not_after,
        f"{_name(certificate)} is valid {certificate.validity}; the clock says {clock}",
    )


def _name(certificate: Certificate | None) -> str:
    return "(missing)" if certificate is None else certificate.subject_name or "(unnamed)"
