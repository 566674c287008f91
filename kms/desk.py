"""The release desk: what arrives there, what it needs, and what it answers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from kms.authenticity import Authenticator
from kms.boot_info import BootInfo
from kms.checks import Check
from kms.keys.apps_ca import AppsCa
from kms.keys.identity import Identity
from kms.ledger.budget import StrangerBudget
from kms.ports import (
    Clock,
    Decisions,
    Epochs,
    ForeignRoots,
    GuestLimits,
    Identities,
    Policies,
    Progress,
    Randomness,
    RootKey,
    Unlimited,
    Unwatched,
)
from kms.snp.advisories import Advisories
from kms.snp.product import Product
from kms.strict_json import JsonValue

# Some 4 KB each: below 400 MB a day, however many strangers there are.
STRANGERS_PER_MINUTE: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What arrived: the exact request bytes, the evidence as strict JSON, and from where.

    `release_id` is the id that the guest is told whatever happens. `client` is the peer's address.
    """

    release_id: str
    client: str
    request: bytes
    evidence: JsonValue


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """Keys on their way, durable in the record. `sealed` opens only with the guest's private key."""

    release_id: str
    suite: str
    sealed: bytes
    boot_info: BootInfo
    policy_revision: str
    receipt: Mapping[str, str]
    development: bool
    product: Product | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A stated "no". `reasons` are codes for the guest; `checks` hold values, for operators only.

    `product` is that of an authentic report.
    """

    release_id: str
    code: str
    reasons: tuple[str, ...]
    checks: tuple[Check, ...]
    product: Product | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseDesk:
    """Everything that a release needs, joined by `kms.wiring`.

    `identity` is the generation that this server signs with, `identities` are all that there are now.
    """

    clock: Clock
    randomness: Randomness
    authenticator: Authenticator
    advisories: Advisories
    policies: Policies
    decisions: Decisions
    root_key: RootKey
    epochs: Epochs
    apps_ca: AppsCa = field(repr=False)
    foreign: ForeignRoots
    identity: Identity
    identities: Identities
    challenge_key: bytes = field(repr=False)
    challenge_lifetime: timedelta
    development: bool
    # Of a release id: who follows that release.
    follow: Callable[[str], Progress] = field(default=lambda _: Unwatched())
    limits: GuestLimits = field(default_factory=Unlimited)
    stranger_budget: StrangerBudget = field(default_factory=lambda: StrangerBudget(STRANGERS_PER_MINUTE))

    async def identities_beside(self, named: bytes | None) -> frozenset[bytes]:
        """Give the public keys that an app document may name, which names `named` (32 bytes, or nothing).

        Any generation may be named; the others are only looked up where it is not the one in use.
        """
        own = frozenset({self.identity.public_key})
        return own if named is None or named in own else (await self.identities.known()).public_keys
