"""May it be kept? Certificates and lists judged alone, against the pinned roots, with a reason for every no.

What a file is called, and where it came from, is never asked: only who signed it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from kms.checks import Check
from kms.ports import Role, StoredCertificate, StoredRevocationList
from kms.snp.certificate import Certificate
from kms.snp.chain import build_chain, is_authority, signer_of
from kms.snp.endorsed import Endorsed, endorse, is_pinned
from kms.snp.flags import Signer
from kms.snp.kds_paths import Line, line_named
from kms.snp.revocation import RevocationList
from kms.snp.roots import TrustedRoots, product_of_ark


@dataclass(frozen=True, slots=True)
class No:
    """It may not be kept; the reason is for operators, and repeats nothing that is not printable."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Judges by these roots. `authorities` are candidates, ARKs among them; `source` is what is noted."""

    roots: TrustedRoots
    now: datetime
    source: str
    authorities: tuple[Certificate, ...] = ()

    def knowing(self, authorities: Iterable[Certificate]) -> "Judge":
        """Give a judge that knows these authorities as well."""
        known = {each.fingerprint: each for each in (*self.authorities, *authorities)}
        return replace(self, authorities=tuple(known.values()))

    def certificate(self, certificate: Certificate) -> StoredCertificate | No:
        """Judge a certificate of any role."""
        if signer_of(certificate) is not None:
            return self._leaf(certificate)
        return self._authority(certificate) if is_authority(certificate) else self._ark(certificate)

    def revocation_list(self, found: RevocationList, signer: Signer) -> StoredRevocationList | No:
        """Judge a list; `signer` says for which endorsement keys of the ARK's product it is kept.

        That is only the shelf: a list without an issuing distribution point speaks for every certificate
        of its issuer (RFC 5280 section 5.2.5).
        """
        for ark in self.arks():
            product = self.roots.product_of(ark)
            if product is not None and found.issuer == ark.subject and found.is_signed_by(ark):
                if found.this_update > self.now:
                    return No(f"issued {_date(found.this_update)}, which is still to come")
                line = Line(signer, product)
                return StoredRevocationList(
                    list=replace(found, line=line), line=line, ark=ark.public_key_sha256, source=self.source
                )
        return No(f"no pinned ARK signed it; its issuer is {_name(found.issuer_name)}")

    def _leaf(self, leaf: Certificate) -> StoredCertificate | No:
        judged = endorse(leaf, self.authorities, self.roots, self.now)
        if not isinstance(judged, Endorsed):
            if build_chain(leaf, self.authorities, self.roots).authority_missing:
                return No(f"its issuer {leaf.issuer_name} is not known, here or in the store")
            return No(_first_failed(judged))
        return StoredCertificate(
            certificate=leaf,
            line=judged.line,
            role=Role.LEAF,
            source=self.source,
            chip_id=judged.chip_id,
            csp_id=judged.csp_id,
            tcb=judged.tcb,
        )

    def _authority(self, authority: Certificate) -> StoredCertificate | No:
        line = line_named(authority.subject_name)
        if line is None:
            return No(f"{_name(authority.subject_name)} is the name of no certificate that is needed")
        if all(self.roots.product_of(each) is not line.product for each in self.arks()):
            return No(f"no pinned ARK of {line.product.certificate_name} is known, here or in the store")
        for ark in self.arks():
            of_product = self.roots.product_of(ark) is line.product
            if of_product and authority.issuer == ark.subject and authority.is_signed_by(ark):
                return self._kept(authority, line, Role.AUTHORITY)
        return No(f"no pinned ARK signed it; its issuer is {_name(authority.issuer_name)}")

    def _ark(self, ark: Certificate) -> StoredCertificate | No:
        product = self.roots.product_of(ark)
        if product is None:
            return No(f"{_name(ark.subject_name)}: its key is not pinned, as a root or anything else")
        if not is_pinned(ark, self.roots) or product_of_ark(ark) is not product:
            return No(f"the key of ARK-{product.certificate_name}, in a certificate that it did not sign so")
        return self._kept(ark, Line(Signer.VCEK, product), Role.ARK)

    def _kept(self, certificate: Certificate, line: Line, role: Role) -> StoredCertificate | No:
        if certificate.is_ca is not True or certificate.may_sign_certificates is not True:
            return No("not a CA that may sign certificates")
        if not certificate.not_before <= self.now <= certificate.not_after:
            begin, end = _date(certificate.not_before), _date(certificate.not_after)
            return No(f"valid from {begin} to {end}")
        return StoredCertificate(certificate=certificate, line=line, role=role, source=self.source)

    def arks(self) -> tuple[Certificate, ...]:
        """Give the pinned ARKs among the authorities, development roots included."""
        candidates = (*self.authorities, *self.roots.development)
        return tuple(each for each in candidates if is_pinned(each, self.roots))


def _first_failed(checks: tuple[Check, ...]) -> str:
    return next(f"{check.name}: {check.detail}" for check in checks if not check.passed)


def _name(common_name: str) -> str:
    return common_name or "(unnamed)"


def _date(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
