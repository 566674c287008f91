"""What the release path needs from outside, as small protocols. Edges implement them; wiring joins them."""

from datetime import datetime
from typing import Protocol

from kms.evidence.launch import Launch, NamedApp
from kms.ledger.entries import DecisionEntry
from kms.measurement.images import LaunchHint
from kms.policy.compiled import Policy
from kms.policy.revision import Revision
from kms.snp.certificate import Certificate
from kms.snp.report import Report
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

    async def epochs(self) -> tuple[int, ...]:
        """Give the epochs that exist, oldest first; never empty, and the last one is the newest."""
        ...


class Collateral(Protocol):
    """Endorsement certificates that guests need not send. What it gives is a candidate, never trusted."""

    async def authorities(self) -> tuple[Certificate, ...]:
        """Give the known ASKs, ASVKs and ARKs."""
        ...

    async def leaves(self, report: Report) -> tuple[Certificate, ...]:
        """Give the endorsement certificates for the report's chip, of whatever TCB.

        Raises:
            CollateralUnavailable: none is known, and that does not mean that none exists.

        """
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


class Policies(Protocol):
    """The policy in force."""

    async def active(self) -> ActivePolicy | None:
        """Give the revision to judge by now; None while there is none, and then nobody is allowed."""
        ...

    async def refresh(self) -> None:
        """Look again which revision is in force. Raises `LedgerUnavailable` if that cannot be told."""
        ...


class PolicyRevisions(Protocol):
    """Where revisions are kept, and which is in force."""

    async def folder_revision(self) -> str | None:
        """Give the digest that the watched folder had when it was applied last."""
        ...

    async def apply(
        self, revision: Revision, *, author: str, message: str, from_folder: bool = False
    ) -> bool:
        """Store a revision and put it in force; say whether that changed anything.

        With `from_folder` the revocations in force that did not come from the folder stay.

        Raises:
            LedgerUnavailable: it could not be written.
            PolicyInvalid: such a revocation does not fit the folder.

        """
        ...


class PolicyMoved(Exception):
    """The revision that judged is no longer the active one."""


class Decisions(Protocol):
    """The durable record of decisions, and the memory of spent challenges."""

    async def is_spent(self, challenge: bytes) -> bool:
        """Say whether a challenge is already spent: only a short cut, `record` decides."""
        ...

    async def record(self, entry: DecisionEntry, challenge_expires_at: datetime | None) -> None:
        """Make a decision durable, in one transaction, or raise and leave no trace.

        The transaction requires that `entry.policy_revision` (if any) is still the active revision and
        that `entry.challenge` (if any) is unspent, and spends it. It is on stable storage when this
        returns.

        Raises:
            PolicyMoved: another revision is active; judge again.
            ChallengeUsed: somebody else won the challenge.
            LedgerUnavailable: it could not be written.

        """
        ...
