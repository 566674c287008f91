"""Is a report authentic? With what the guest sent, what is stored, and at last what AMD's service gives.

Most guests bring nothing but the report, or a host's table that is out of date; AMD's key distribution
service (KDS) answers slowly and seldom. So it is asked last, only for what is missing, and never for a report
whose claims nobody accepts.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime

from kms.checks import Check, failures
from kms.errors import CollateralUnavailable, CollateralUnknown, NobodyToAsk
from kms.ports import Collateral
from kms.snp import tcb
from kms.snp.certificate import Certificate
from kms.snp.chain import is_authority, signer_of
from kms.snp.endorsed import line_of
from kms.snp.flags import Signer
from kms.snp.kds_paths import HWID_LENGTH_ON_TURIN, ChainOf, RevocationListOf, VcekOf, line_named
from kms.snp.product import Product
from kms.snp.report import Report
from kms.snp.revocation import Revocation, RevocationList, RevocationMode
from kms.snp.roots import TrustedRoots
from kms.snp.verify import Unverified, VerifiedReport, is_signed_with, verify

# Judges what a report claims, as one of a product: the checks, any of which refuses to ask for a certificate.
Worth = Callable[[Product], Awaitable[tuple[Check, ...]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class NotSought:
    """A report without a certificate, for which none was sought: no app accepts what it claims."""

    checks: tuple[Check, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Authenticator:
    """Whom to trust, how revocation is judged, and where collateral comes from.

    `revocation` holds the rules; the lists are those that `collateral` knows.
    """

    roots: TrustedRoots
    revocation: Revocation
    collateral: Collateral

    async def authenticate(
        self,
        report: Report,
        certificates: tuple[Certificate, ...],
        lists: tuple[RevocationList, ...],
        *,
        now: datetime,
        client: str,
        worth: Worth,
    ) -> VerifiedReport | Unverified | NotSought:
        """Verify with the guest's certificates and lists, completed from the store and the KDS.

        A leaf that the guest sends is the one judged. Only when it is authentic but for another TCB of the
        same chip (a host's stale table) is it set aside for one from the store or the KDS. `client` is the
        address on whose behalf the KDS is asked.

        Raises:
            CollateralUnavailable: what is missing may exist, and could not be had now.
            MalformedEvidence: as `kms.snp.verify.verify`.

        """
        case = _Case(self, report, certificates, lists, now, client, worth)
        outcome = await case.verify_endorsement()
        if isinstance(outcome, NotSought):
            return outcome
        outcome = await case.verify_revocation(outcome)
        if isinstance(outcome, VerifiedReport):
            self.collateral.keep(outcome.chain)
        return outcome


@dataclass(slots=True)
class _Case:
    """One report on its way."""

    by: Authenticator
    report: Report
    certificates: tuple[Certificate, ...]
    lists: tuple[RevocationList, ...]
    now: datetime
    client: str
    worth: Worth
    stored: tuple[Certificate, ...] = field(default=())

    @property
    def sent_chain(self) -> bool:
        """Whether the guest sent a leaf with an ASK or ASVK, of whatever line."""
        leaf = any(signer_of(each) is not None for each in self.certificates)
        return leaf and any(is_authority(each) for each in self.certificates)

    async def verify(self) -> VerifiedReport | Unverified:
        """Verify with everything that is at hand."""
        collateral = self.by.collateral
        known = (*self.lists, *await collateral.revocation_lists())
        authorities = await collateral.authorities()
        if self.sent_chain and not self.stored:
            # Like a leaf, an ASK that is sent is the one judged: the store repairs nothing that was forged.
            authorities = tuple(each for each in authorities if not is_authority(each))
        offered = (*self.stored, *self.certificates, *authorities)
        revocation = replace(self.by.revocation, lists=known)
        return verify(self.report, offered, self.by.roots, self.now, revocation)

    async def verify_endorsement(self) -> VerifiedReport | Unverified | NotSought:
        """Find the certificate and its authority, and verify with them."""
        outcome = await self.verify()
        if isinstance(outcome, VerifiedReport) or outcome.origin_refused:
            return outcome
        if outcome.root_missing or (outcome.authority_missing and not self.sent_chain):
            completed = await self._with_authority(outcome)
            if not isinstance(completed, Unverified):
                return completed
            outcome = completed
        if outcome.leaf is not None and not outcome.stale_leaf:
            return outcome
        return await self._with_leaf(outcome)

    async def verify_revocation(self, outcome: VerifiedReport | Unverified) -> VerifiedReport | Unverified:
        """Ask for a revocation list where none is known yet, of reports that are authentic but for that."""
        if self.by.revocation.mode is RevocationMode.OFF or outcome.chain is None:
            return outcome
        missing = isinstance(outcome, Unverified) and outcome.revocation_list_missing
        if not (missing or isinstance(outcome, VerifiedReport)):
            return outcome
        line = line_of(outcome.chain)
        if line is None:
            return outcome
        known = await self.by.collateral.revocation_lists()
        if not missing and any(each.line == line for each in known):
            return outcome
        try:
            await self.by.collateral.fetch(RevocationListOf(line), self.client)
        except CollateralUnavailable:
            if missing:
                raise
            return outcome
        except CollateralUnknown as error:
            if missing:
                raise CollateralUnavailable(
                    f"no service has a revocation list of {line.folder}, and one is required", retry_after=30
                ) from error
            return outcome
        outcome = await self.verify()
        if isinstance(outcome, Unverified) and outcome.revocation_list_missing:
            raise CollateralUnavailable(f"no current revocation list of {line.folder} is signed by this ARK")
        return outcome

    async def _with_authority(self, outcome: Unverified) -> VerifiedReport | Unverified | NotSought:
        line = None if outcome.leaf is None else line_named(outcome.leaf.issuer_name)
        if line is None:
            return outcome
        checks = await self.worth(line.product)
        if failures(checks):
            return NotSought(checks=checks)
        try:
            await self.by.collateral.fetch(ChainOf(line), self.client)
        except CollateralUnknown as error:
            # AMD has the chain of every line: a service without it is no proof against the certificate.
            raise CollateralUnavailable(f"no service has the chain of {line.folder}") from error
        return await self.verify()

    async def _with_leaf(self, outcome: Unverified) -> VerifiedReport | Unverified | NotSought:
        """Look for the certificate of this chip and TCB: the guest sent none, or one for another TCB."""
        self.stored = await self.by.collateral.leaves(self.report)
        if self.report.flags.signer is Signer.VLEK:
            # A VLEK report names no provider: of all that were imported, the one whose key signed it.
            self.stored = tuple(each for each in self.stored if is_signed_with(self.report, each))
        if self.stored:
            # A certificate like the one that the KDS would give: what does not verify with it is forged.
            better = await self.verify()
            if isinstance(better, Unverified) and (better.authority_missing or better.root_missing):
                return await self._with_authority(better)
            return better
        # A VLEK is issued to the cloud provider: nobody but the guest's host can supply it.
        if self.report.flags.signer is Signer.VLEK:
            return outcome
        return await self._with_fetched_leaf(outcome)

    async def _with_fetched_leaf(self, outcome: Unverified) -> VerifiedReport | Unverified | NotSought:
        chip_id = self.report.chip_id
        if chip_id is None:
            zero = Check.of("hwid", False, "CHIP_ID is zero: nobody can be asked", reason="chip-id-zero")
            return replace(outcome, checks=(*outcome.checks, zero))
        products = self._products(outcome)
        if not products:
            unknown = Check.of("product", False, "CPUID names no product line that is known")
            return replace(outcome, checks=(*outcome.checks, unknown))
        refused: tuple[Check, ...] | None = None
        unavailable: CollateralUnavailable | None = None
        for product in products:
            checks = await self.worth(product)
            if failures(checks):
                refused = refused or checks
                continue
            wanted = VcekOf(product, chip_id, tcb.decode(self.report.tcbs.reported, product))
            try:
                await self.by.collateral.fetch(wanted, self.client)
            except CollateralUnknown:
                continue
            except CollateralUnavailable as error:
                unavailable = unavailable or error
                continue
            self.stored = await self.by.collateral.leaves(self.report)
            return await self.verify()
        if isinstance(unavailable, NobodyToAsk) and outcome.leaf is not None:
            return outcome
        if unavailable is not None:
            raise unavailable
        if outcome.leaf is not None:
            return outcome
        if refused is not None:
            return NotSought(checks=refused)
        unknown = Check.of(
            "endorsement-certificate",
            False,
            "none was sent, and AMD's service knows none for this chip and TCB",
            reason="certificate-unknown",
        )
        kept = tuple(check for check in outcome.checks if check.name != unknown.name)
        return replace(outcome, checks=(*kept, unknown))

    def _products(self, outcome: Unverified) -> tuple[Product, ...]:
        """Give the products that the chip may be of, the likely one first: only version 2 leaves a choice."""
        if self.report.product is not None:
            return (self.report.product,)
        if outcome.chain is not None and outcome.chain.product is not None:
            return (outcome.chain.product,)
        if self.report.version >= 3 or self.report.chip_id is None:
            return ()
        if not any(self.report.chip_id[HWID_LENGTH_ON_TURIN:]):
            return (Product.TURIN,)
        return (Product.MILAN, Product.GENOA)
