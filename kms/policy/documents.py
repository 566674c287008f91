"""The six kinds of policy documents, as checked values.

They are made by the readers of this room only (`kms.policy.lint.lint`), which refuse everything that the
protocol, section 4, does not allow. What a reader can leave out is decided there; here every field has a
value, and nothing means "anything" by being empty (field lesson 22).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final, Generic, TypeAlias, TypeVar

from kms.identifiers import AppId, ChipId, ComposeHash, KeyDigest, Measurement, OsImageHash
from kms.keys.names import KeyPattern
from kms.measurement.images import Binding, Image
from kms.policy.chip_set import ChipSet
from kms.snp.flags import Signer
from kms.snp.product import Cpuid, Product

STRICT: Final = "strict"  # the built-in guest document; no document replaces it
DSTACK: Final = "dstack"  # the only word that `compat` may say

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Allowlist(Generic[T]):
    """Values that are allowed. An empty one allows nobody; `anything` must have been written as ``any``."""

    items: frozenset[T]
    anything: bool = False

    def allows(self, value: T | None) -> bool:
        """Say whether the value is allowed. None, a value that was not proven, is only where all are."""
        return self.anything or value in self.items


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """What every document may carry. From `expires_at` on it denies whatever relies on it."""

    name: str
    description: str | None = None
    owner: str | None = None
    expires_at: datetime | None = None

    def expired(self, now: datetime) -> bool:
        """Say whether the document is past its date."""
        return self.expires_at is not None and now >= self.expires_at


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsNames:
    """What an app's TLS certificates say: DNS names, and their life in days."""

    names: tuple[str, ...]
    days: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AppDocument(Document):
    """One application: who may run it where, and which keys it gets.

    `images` are names of image documents, `image_hashes` os_image_hashes; `chips` are chip ids and
    `chip_sets` names of chips documents. `epoch` pins the key epoch. `compat` lets `keys` list those of
    another KMS.
    """

    id: AppId
    compose: Allowlist[ComposeHash]
    images: frozenset[str]
    image_hashes: frozenset[OsImageHash]
    chips: Allowlist[ChipId]
    chip_sets: frozenset[str]
    tcb: str
    guest: str
    binding: frozenset[Binding]
    keys: tuple[KeyPattern, ...]
    forbid_advisories: frozenset[str] = frozenset()
    epoch: int | None = None
    tls: TlsNames | None = None
    compat: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageDocument(Document):
    """A guest image; its hash was checked against its launch block."""

    image: Image


class TcbKind(StrEnum):
    """The four TCB versions of a report. Only `REPORTED` is bound to the endorsement key."""

    REPORTED = "reported"
    COMMITTED = "committed"
    CURRENT = "current"
    LAUNCH = "launch"


Levels: TypeAlias = Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class TcbDocument(Document):
    """Minimum firmware: levels by component, for each product line and exact CPU model that is allowed.

    `require` and `forbid` name PLATFORM_INFO bits; the mitigations are masks of bits that must be set.
    """

    products: Mapping[Product, Levels]
    models: Mapping[tuple[Product, int], Levels]
    check: tuple[TcbKind, ...]
    provisional_firmware: bool
    require: tuple[str, ...]
    forbid: tuple[str, ...]
    launch_mitigations: int
    current_mitigations: int

    def minimum(self, product: Product, cpuid: Cpuid | None) -> Levels | None:
        """Give the levels that a report must reach, or None when its product is not listed.

        Without a CPUID (version 2) the report could be from any model of its line, so it must reach the
        maximum of all entries of the line, component by component.
        """
        if cpuid is not None:
            return self.models.get((product, cpuid.model), self.products.get(product))
        entries = [levels for (line, _), levels in self.models.items() if line is product]
        if product in self.products:
            entries.append(self.products[product])
        if not entries:
            return None
        return {name: max(levels[name] for levels in entries) for name in entries[0]}


class Wanted(StrEnum):
    """What a guest document wants of a bit of the guest's POLICY."""

    ANY = "any"  # also written `allow`, where a set bit is what one would forbid
    SET = "require"
    CLEAR = "forbid"


@dataclass(frozen=True, slots=True, kw_only=True)
class FirmwareMinimum:
    """Lowest SEV firmware version, for current and committed."""

    major: int
    minor: int
    build: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestDocument(Document):
    """How the guest was launched and who asks. The defaults are the built-in ``strict`` document's.

    `bits` is by the names of `kms.snp.flags.GuestPolicy.bits`, `debug` excepted: it is allowed only where
    `debug` says so and the server is in development mode.
    """

    vmpl: frozenset[int] = frozenset({0})
    report_versions: frozenset[int] = frozenset({2, 3, 4, 5})
    signers: frozenset[Signer] = frozenset({Signer.VCEK})
    csp: frozenset[str] = frozenset()
    debug: bool = False
    bits: tuple[tuple[str, Wanted], ...] = (
        ("migration_agent", Wanted.CLEAR),
        ("smt", Wanted.ANY),
        ("single_socket", Wanted.ANY),
        ("cxl", Wanted.ANY),
        ("ciphertext_hiding", Wanted.ANY),
        ("aes_256_xts", Wanted.ANY),
        ("rapl_disabled", Wanted.ANY),
        ("page_swap_disabled", Wanted.ANY),
    )
    firmware_minimum: FirmwareMinimum = FirmwareMinimum(major=1, minor=51)
    guest_svn_minimum: int = 0
    id_key_digests: Allowlist[KeyDigest] = Allowlist(frozenset(), anything=True)
    author_key_digests: Allowlist[KeyDigest] = Allowlist(frozenset(), anything=True)


STRICT_GUEST: Final = GuestDocument(name=STRICT)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChipsDocument(Document):
    """A named set of chips."""

    chips: ChipSet


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokedDocument(Document):
    """What is denied whatever the others say. `images` are names, `image_hashes` os_image_hashes."""

    chips: frozenset[ChipId]
    measurements: frozenset[Measurement]
    images: frozenset[str]
    image_hashes: frozenset[OsImageHash]
    apps: frozenset[AppId]
    compose: frozenset[ComposeHash]
    products: frozenset[Product]


AnyDocument: TypeAlias = (
    AppDocument | ImageDocument | TcbDocument | GuestDocument | ChipsDocument | RevokedDocument
)

KINDS: Final[Mapping[type[Document], str]] = {
    AppDocument: "app",
    ImageDocument: "image",
    TcbDocument: "tcb",
    GuestDocument: "guest",
    ChipsDocument: "chips",
    RevokedDocument: "revoked",
}
