"""What the release path needs from outside, as small protocols. Edges implement them; wiring joins them."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from kms.evidence.launch import Launch, NamedApp
from kms.identifiers import AppId, ChipId, Measurement
from kms.keys.dstack import DstackRoots
from kms.keys.epochs import EpochTable
from kms.keys.hand_over import KnownIdentities
from kms.ledger.entries import DecisionEntry
from kms.measurement.images import LaunchHint
from kms.policy.compiled import Policy
from kms.policy.revision import Revision
from kms.snp.certificate import Certificate
from kms.snp.chain import Chain
from kms.snp.kds_paths import Line, Wanted
from kms.snp.product import Product
from kms.snp.report import Report
from kms.snp.revocation import RevocationList
from kms.snp.tcb import TcbVersion
from kms.snp.verify import VerifiedReport


class Clock(Protocol):
    """The server's clock: an aware datetime in UTC."""

    def __call__(self) -> datetime:
        """Give the time now."""
        ...


class Randomness(Protocol):
    """Cryptographic randomness."""

    def __call__(self, length: int, /) -> bytes:
        """Give `length` random bytes."""
        ...


class RootKey(Protocol):
    """The root secret as a PRF: it need never leave where it lives (a file, an HSM, Vault).

    An epoch is a version of the root, a positive integer; a new epoch is a new secret.
    """

    async def prf(self, epoch: int, message: bytes) -> bytes:
        """Give HMAC-SHA-512 of `message` under the root of `epoch`: 64 bytes.

        Raises:
            RootKeyUnavailable: the provider did not answer, or this epoch does not exist there.

        """
        ...

    async def check(self, epoch: int) -> None:
        """Ask whether the root can be used now, also for `epoch`.

        Raises:
            RootKeyUnavailable: its reason says why not.

        """
        ...


class Epochs(Protocol):
    """Which epochs there are, and which of them may be used."""

    async def epochs(self) -> EpochTable:
        """Give what the database says now; it is authentic.

        Raises:
            LedgerUnavailable: it did not answer; or reason ``epochs-untrusted``: what it says was not written
                by a KMS, or is older than what this server has used.

        """
        ...

    def forget(self) -> None:
        """Ask the database anew next time: what it said is no longer so."""
        ...


class Identities(Protocol):
    """The generations of the KMS identity."""

    async def known(self) -> KnownIdentities:
        """Give the public keys of all generations, and how each handed over to the next.

        Raises:
            LedgerUnavailable: the database did not answer, or says what this KMS did not write.
            RootKeyUnavailable: one of them was never derived yet, and the root cannot be used now.

        """
        ...


class ForeignRoots(Protocol):
    """The roots of other KMSs that operators imported, so that their apps could move here."""

    async def dstack(self) -> DstackRoots | None:
        """Give the imported roots of a dstack KMS; None where there are none.

        Raises:
            LedgerUnavailable: the database did not answer, or what it holds was not written by this KMS.

        """
        ...


class Role(StrEnum):
    """What a stored certificate is."""

    ARK = "ark"
    AUTHORITY = "authority"  # an ASK or ASVK
    LEAF = "leaf"  # a VCEK or VLEK


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCertificate:
    """A certificate that verified once, and what it is for.

    `chip_id` and `tcb` are those of a VCEK; a VLEK has `tcb` and `csp_id`; authorities have none of them. An
    ARK is kept under the VCEK line. `source` says where it came from: `kds`, `guest`, `import`, `folder`.
    """

    certificate: Certificate
    line: Line
    role: Role
    source: str
    chip_id: ChipId | None = None
    csp_id: str | None = None
    tcb: TcbVersion | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRevocationList:
    """A revocation list whose ARK signed it, and the SHA-256 of that ARK's public key (32 bytes)."""

    list: RevocationList
    line: Line
    ark: bytes
    source: str


class Collateral(Protocol):
    """What AMD signs and guests need not send. What it gives is a candidate, never trusted."""

    async def authorities(self) -> tuple[Certificate, ...]:
        """Give the known ASKs, ASVKs and ARKs."""
        ...

    async def revocation_lists(self) -> tuple[RevocationList, ...]:
        """Give the newest known revocation list of each ARK and line."""
        ...

    async def leaves(self, report: Report) -> tuple[Certificate, ...]:
        """Give the stored endorsement certificates for the report's reported TCB; few, or none.

        For a VCEK those of its chip; for a VLEK those that an operator imported.
        """
        ...

    async def fetch(self, wanted: Wanted, client: str) -> None:
        """Ask the key distribution services, and keep the answer once it verifies.

        After it returns, `authorities`, `revocation_lists` or `leaves` have it. It returns at once for what
        is there already and needs no renewal. `client` is the address on whose behalf it is asked: each has
        its share of the requests.

        Raises:
            CollateralUnknown: every service says that there is no such thing (404).
            CollateralUnavailable: no service answered usably in time; the guest may come again.

        """
        ...

    def keep(self, chain: Chain) -> None:
        """Take note of a verified chain, to be stored soon.

        It never waits and never raises; a VLEK itself is not kept.
        """
        ...


class CollateralStore(Protocol):
    """Where collateral is kept for ever. It believes its caller: only what verified may come here."""

    async def authorities(self) -> tuple[StoredCertificate, ...]:
        """Give every ASK, ASVK and ARK."""
        ...

    async def revocation_lists(self) -> tuple[StoredRevocationList, ...]:
        """Give the newest list of each ARK and line."""
        ...

    async def vceks(self, product: Product | None, chip_id: ChipId) -> tuple[StoredCertificate, ...]:
        """Give a chip's VCEKs, the one kept last first; of any product when that is None."""
        ...

    async def vleks(self, product: Product | None, tcb: TcbVersion | None) -> tuple[StoredCertificate, ...]:
        """Give the VLEKs of a product at a TCB, the one kept last first; None stands for all."""
        ...

    async def keep(self, *items: StoredCertificate | StoredRevocationList) -> int:
        """Store what is not there yet, in one transaction, and say how many that were.

        A revocation list takes the place of an older one of the same ARK and line only if it `replaces` it.
        """
        ...

    async def all_certificates(self) -> tuple[StoredCertificate, ...]:
        """Give every stored certificate, ordered by line, role, chip and TCB: for listing and export."""
        ...

    async def claim(self, what: str, owner: str, seconds: float) -> bool:
        """Take the right to fetch `what` (a KDS path) for some seconds, unless somebody else has it."""
        ...

    async def release(self, what: str, owner: str) -> None:
        """Give the right back, if this owner has it."""
        ...


class ActivePolicy(Protocol):
    """A compiled policy revision and the launches that its images may show."""

    @property
    def policy(self) -> Policy:
        """The policy."""
        ...

    async def find_launch(
        self, verified: VerifiedReport, hint: LaunchHint, app: NamedApp | None
    ) -> Launch | None:
        """Find the launch that a report shows, as `kms.evidence.launch.LaunchFinder.find`."""
        ...

    async def may_show(self, claimed: Measurement, hint: LaunchHint, app: NamedApp | None) -> bool:
        """Say whether an allowed image shows a measurement that nobody has proven yet."""
        ...


class Policies(Protocol):
    """The policy in force."""

    async def active(self) -> ActivePolicy | None:
        """Give the revision to judge by now; None while there is none, and then nobody is allowed."""
        ...

    async def refresh(self) -> None:
        """Look again which revision is in force. Raises `LedgerUnavailable` if that cannot be told."""
        ...


class PolicyRevisions(Protocol):
    """Where a watched folder is put in force."""

    async def folder_revision(self) -> str | None:
        """Give the digest that the watched folder had when it was applied last."""
        ...

    async def apply(self, revision: Revision, files: Mapping[str, bytes]) -> bool:
        """Put the folder in force, with its files; say False where it waits for operators' signatures.

        The revocations in force that did not come from the folder stay.

        Raises:
            LedgerUnavailable: it could not be written.
            PolicyInvalid: such a revocation does not fit the folder.

        """
        ...


class Step(StrEnum):
    """The steps of a release, in the order of `kms.release`: for who measures how long each takes."""

    RECEIVE = "receive"
    VERIFY = "verify"
    MEASURE = "measure"
    DECIDE = "decide"
    DERIVE = "derive"
    SEAL = "seal"
    RECORD = "record"


class Progress(Protocol):
    """Follows one release. It may not fail, and it sees nothing that it could give away."""

    def at(self, step: Step) -> None:
        """Note that a step begins; the one before it has ended."""
        ...

    def end(self, code: str | None, product: Product | None, reasons: tuple[str, ...]) -> None:
        """Note how it ended: None for a release, else the code of the refusal or error, and its reasons."""
        ...


class Unwatched:
    """A `Progress` that nobody looks at."""

    def at(self, step: Step) -> None:
        """Note nothing."""

    def end(self, code: str | None, product: Product | None, reasons: tuple[str, ...]) -> None:
        """Note nothing."""


class GuestLimits(Protocol):
    """How often a chip and an app may ask. Only what is proven counts: else anybody could lock them out."""

    def take_chip(self, chip_id: ChipId | None) -> None:
        """Count a request whose report this chip signed; None for one of a VLEK that names none.

        Raises:
            RateLimited: too many; nothing of this request was kept.

        """
        ...

    def take_app(self, app_id: AppId) -> None:
        """Count a request of a guest that the policy allows for this app. Raises `RateLimited`, as above."""
        ...


class Unlimited:
    """`GuestLimits` without any."""

    def take_chip(self, chip_id: ChipId | None) -> None:
        """Count nothing."""

    def take_app(self, app_id: AppId) -> None:
        """Count nothing."""


class PolicyMoved(Exception):
    """The revision that judged is no longer the active one."""


class EpochsMoved(Exception):
    """An epoch of the keys on their way was retired since it was looked up."""


class Decisions(Protocol):
    """The durable record of decisions, and the memory of spent challenges."""

    async def is_spent(self, challenge: bytes) -> bool:
        """Say whether a challenge was spent here lately: only a short cut, `record` decides."""
        ...

    async def record(
        self,
        entry: DecisionEntry,
        challenge_expires_at: datetime | None,
        judged_by: EpochTable | None = None,
    ) -> None:
        """Make a decision durable, in one transaction, or raise and leave no trace.

        The transaction requires that `entry.policy_revision` (if any) is still the active revision, that the
        epochs are as `judged_by` says (None where nobody looked at them), that none of `entry.epochs` is
        retired, and that `entry.challenge` (if any) is unspent, and spends it. It is on stable storage when
        this returns.

        Raises:
            PolicyMoved: another revision is active; judge again.
            EpochsMoved: they are others now; judge again.
            ChallengeUsed: somebody else won the challenge.
            LedgerUnavailable: it could not be written.

        """
        ...
