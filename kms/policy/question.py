"""What a decision is asked: the keys that a guest wants, and the circumstances that are not in BootInfo."""

from dataclasses import dataclass
from datetime import datetime

from kms.identifiers import AppId, ComposeHash, InstanceId
from kms.keys.names import KeyRequest
from kms.measurement.images import Binding


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
    image enforces.
    """

    now: datetime
    development: bool
    kms_identity: bytes
    document_kms_identity: bytes | None
    enforces: frozenset[Binding]
    document_app: tuple[AppId, ComposeHash] | None = None
