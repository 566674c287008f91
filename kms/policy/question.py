"""What a decision is asked: the keys that a guest wants, and the circumstances that are not in BootInfo."""

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from kms.identifiers import AppId, ChipId, ComposeHash, InstanceId, Measurement
from kms.keys.names import KeyRequest
from kms.measurement.images import Binding
from kms.snp.advisories import NO_ADVISORIES, Advisories
from kms.snp.flags import PlatformInfo, Signer
from kms.snp.product import Cpuid, Product
from kms.snp.report import FirmwareVersion
from kms.snp.tcb import TcbVersions


class PlatformFacts(Protocol):
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
    def product(self) -> Product:
        """The product line."""
        ...

    @property
    def cpuid(self) -> Cpuid | None:
        """CPUID; None in a version 2 report."""
        ...

    @property
    def signer(self) -> Signer:
        """The kind of key that signed."""
        ...

    @property
    def tcb(self) -> TcbVersions:
        """The four TCB versions."""
        ...

    @property
    def current_firmware(self) -> FirmwareVersion:
        """The running firmware."""
        ...

    @property
    def committed_firmware(self) -> FirmwareVersion:
        """The firmware that the host cannot go back behind."""
        ...

    @property
    def platform_info(self) -> PlatformInfo:
        """PLATFORM_INFO."""
        ...

    @property
    def launch_mitigations(self) -> int | None:
        """LAUNCH_MIT_VECTOR; None before version 5."""
        ...

    @property
    def current_mitigations(self) -> int | None:
        """CURRENT_MIT_VECTOR; None before version 5."""
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

    `now` is the server's clock (UTC, aware). `kms_identity` is our public key, `document_kms_identity` the
    one that the app document names, if it names one. `document_app` is the app and compose that a bound
    document names: beside a command line that binds the app, it must agree. `enforces` is what the matched
    image enforces. `advisories` are AMD's bulletins as this KMS knows them.
    """

    now: datetime
    development: bool
    kms_identity: bytes
    document_kms_identity: bytes | None
    enforces: frozenset[Binding]
    document_app: tuple[AppId, ComposeHash] | None = None
    advisories: Advisories = NO_ADVISORIES
