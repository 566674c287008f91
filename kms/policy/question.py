"""What a decision is asked: the keys that a guest wants, and the circumstances that are not in BootInfo."""

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from kms.identifiers import AppId, ChipId, ComposeHash, InstanceId, Measurement
from kms.keys.names import KeyRequest
from kms.measurement.images import Binding
from kms.snp.advisories import NO_ADVISORIES, Advisories, Platform
from kms.snp.flags import Signer


class PlatformFacts(Platform, Protocol):
    """What the checks of the platform look at: a BootInfo, or what an unverified report claims."""

    @property
    def app_id(self) -> AppId | None:
        """The app."""
        ...

    @property
    def compose_hash(self) -> ComposeHash | None:
        """What the app runs."""
        ...

    @property
    def measurement(self) -> Measurement:
        """MEASUREMENT."""
        ...

    @property
    def chip_id(self) -> ChipId | None:
        """CHIP_ID; None when it is zero."""
        ...

    @property
    def signer(self) -> Signer:
        """The kind of key that signed."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AppClaim:
    """The request's optional ``app``: what the guest says that it is. It must agree with what is bound."""

    app_id: AppId | None = None
    compose_hash: ComposeHash | None = None
    instance_id: InstanceId | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """The keys asked for (1 to 32), and the claim if the request made one."""

    keys: tuple[KeyRequest, ...]
    app: AppClaim | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a decision depends on beside policy, BootInfo and ask.

    `now` is the server's clock (UTC, aware). `kms_identities` are our public keys, former ones included, and
    `document_kms_identity` is the one that the app document names, if it names one. `document_app` is the app
    and compose that a bound document names: beside a command line that binds the app, it must agree.
    `enforces` is what the matched image enforces. `advisories` are AMD's bulletins as this KMS knows them.
    """

    now: datetime
    development: bool
    kms_identities: frozenset[bytes]
    document_kms_identity: bytes | None
    enforces: frozenset[Binding]
    document_app: tuple[AppId, ComposeHash] | None = None
    advisories: Advisories = NO_ADVISORIES
