"""The release desk: what arrives there, what it needs, and what it answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from kms.authenticity import Authenticator
from kms.boot_info import BootInfo
from kms.checks import Check
from kms.keys.apps_ca import AppsCa
from kms.keys.identity import Identity
from kms.keys.signed import Signed
from kms.ledger.budget import StrangerBudget
from kms.ports import Clock, Decisions, Epochs, ForeignRoots, Policies, Randomness, RootKey
from kms.snp.advisories import Advisories
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A stated "no". `reasons` are codes for the guest; `checks` hold values, for operators only."""

    release_id: str
    code: str
    reasons: tuple[str, ...]
    checks: tuple[Check, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseDesk:
    """Everything that a release needs, joined by `kms.wiring`.

    `identity` is the one in use; `former_identities` are the public keys (32 bytes) of those before it, which
    guests may still name, and `hand_overs` their words for the ones that followed, oldest first.
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
    hand_overs: tuple[Signed, ...] = ()
    former_identities: frozenset[bytes] = frozenset()
    challenge_key: bytes = field(repr=False)
    challenge_lifetime: timedelta
    development: bool
    stranger_budget: StrangerBudget = field(default_factory=lambda: StrangerBudget(STRANGERS_PER_MINUTE))

    @property
    def identities(self) -> frozenset[bytes]:
        """The public keys of every generation of the identity: app documents may name any of them."""
        return self.former_identities | {self.identity.public_key}
