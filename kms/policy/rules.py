"""The rule that a check goes by: what was wanted, in words, and the place in the policy that says so.

A guest is told codes; this is for the operator who has to find the line to change.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple, TypeVar

from kms.boot_info import BootInfo
from kms.checks import Check
from kms.identifiers import AppId
from kms.measurement.guest_features import SNP_ACTIVE
from kms.measurement.images import UNDOCUMENTED_ENFORCES, Image
from kms.measurement.snp import MAX_VCPUS
from kms.policy.app_checks import listed_document
from kms.policy.documents import (
    STRICT,
    AppDocument,
    ChipsDocument,
    Document,
    GuestDocument,
    ImageDocument,
    Levels,
    RevokedDocument,
    TcbDocument,
)
from kms.policy.places import Place, Written
from kms.policy.revocation import Revocations
from kms.policy.rule_table import (
    LEVELS,
    MACHINE,
    MEASUREMENT,
    MEMBERS,
    REVOKED,
    WITHOUT_DOCUMENT,
    Revocable,
    Ruled,
)
from kms.snp.tcb import TcbVersion

_STRICT: Final = f"guest {STRICT} (built in)"
_BY_HASH_ALONE: Final = "image by hash alone (built in)"
_CHIPS_EXPIRY: Final = Ruled("chips", "expires_at")

D = TypeVar("D", bound=Document)


class Rule(NamedTuple):
    """What a check wants, and the place that says so: None where no document does."""

    wanted: str
    says: Place | None = None


class Rules:
    """The rules of one revision."""

    def __init__(self, written: Written) -> None:
        self._written = written
        self._apps = {each.id: each for each in self._all(AppDocument)}
        # In a valid revision every name that an app refers to is there.
        self._tcbs = {each.name: each for each in self._all(TcbDocument)}
        self._guests = {each.name: each for each in self._all(GuestDocument)}

    @property
    def revision(self) -> str:
        """The digest of the revision."""
        return self._written.revision.digest

    @property
    def images(self) -> tuple[Image, ...]:
        """The images that the revision documents."""
        return tuple(each.image for each in self._all(ImageDocument))

    def images_of(self, app_id: AppId | None) -> tuple[Image, ...]:
        """Give the documented images that an app lists; none for an app that is not listed."""
        app = self._app(app_id)
        return tuple(
            each.image
            for each in self._all(ImageDocument)
            if app and (each.name in app.images or each.image.os_image_hash in app.image_hashes)
        )

    def of(self, check: Check, app_id: AppId | None, boot_info: BootInfo | None) -> Rule | None:
        """Give the rule of a check; None for one that is not a policy's, or where nobody can tell.

        `app_id` is the app that was judged, `boot_info` what was proven, where anything was.
        """
        name = check.name
        if name in WITHOUT_DOCUMENT:
            return Rule(WITHOUT_DOCUMENT[name])
        if name == MEASUREMENT:
            return Rule(f"the measurement of one of {len(self.images)} documented image(s)")
        if name in REVOKED:
            revoked = None if check.passed or boot_info is None else self._revoked(REVOKED[name], boot_info)
            return Rule("in no document of kind revoked", revoked)
        app = self._app(app_id)
        if app is None:
            shown = "that the guest is bound to" if app_id is None else app_id.hex()
            return Rule(f"an app document with the id {shown}") if name == "app-listed" else None
        ruled = MEMBERS.get(name)
        if check.reason == "chips-expired" and boot_info is not None:
            return self._chips_expiry(app, boot_info)
        if ruled is not None and ruled.kind == "app":
            return self._said(app, ruled)
        if ruled is not None and ruled.kind == "tcb":
            return self._of_tcb(check, app, ruled)
        if ruled is not None and ruled.kind == "guest":
            return self._of_guest(check, app, ruled)
        if boot_info is None:
            return None
        if name in LEVELS:
            return self._levels(app, LEVELS[name](boot_info.tcb), boot_info)
        if ruled is not None or name == MACHINE:
            return self._of_image(check, app, boot_info)
        return None

    def _said(self, document: Document, ruled: Ruled) -> Rule:
        written = self._written.document(document)
        said = written.said(ruled.member)
        return Rule(said or f"left out: default {ruled.default}", written.place(ruled.member))

    def _chips_expiry(self, app: AppDocument, boot_info: BootInfo) -> Rule | None:
        """Name the set that lists the chip and is past its date."""
        sets = (each for each in self._all(ChipsDocument) if each.name in app.chip_sets)
        found = next((each for each in sets if boot_info.chip_id in each.chips), None)
        return None if found is None else self._said(found, _CHIPS_EXPIRY)

    def _of_tcb(self, check: Check, app: AppDocument, ruled: Ruled) -> Rule:
        document = self._tcbs[app.tcb]
        rule = self._said(document, ruled)
        if check.name == "product-listed":
            return rule._replace(wanted=f"one of: {', '.join(sorted(_entries(document))) or 'none'}")
        return rule

    def _of_guest(self, check: Check, app: AppDocument, ruled: Ruled) -> Rule:
        if app.guest == STRICT:
            return Rule(ruled.default, Place(_STRICT, ruled.member))
        rule = self._said(self._guests[app.guest], ruled)
        if check.reason == "debug-allowed":
            return rule._replace(wanted="forbid: outside development mode `allow` denies everybody")
        return rule

    def _levels(self, app: AppDocument, seen: TcbVersion, boot_info: BootInfo) -> Rule:
        """Name the component that is below its minimum, the first of several; else the product's entry."""
        document = self._tcbs[app.tcb]
        minimum = document.minimum(boot_info.product, boot_info.cpuid) or {}
        low = {name: wanted for name, (_, wanted) in seen.below(minimum).items()}
        entries = _entries_for(document, boot_info)
        member = "products"
        if low:
            component = next(iter(low))
            entry = next(name for name, levels in entries.items() if levels[component] == low[component])
            member = f"products.{entry}.{component}"
        elif len(entries) == 1:
            member = f"products.{next(iter(entries))}"
        wanted = ", ".join(f"{name} at least {level}" for name, level in (low or minimum).items())
        return Rule(wanted, self._written.document(document).place(member))

    def _of_image(self, check: Check, app: AppDocument, boot_info: BootInfo) -> Rule:
        same = (each for each in self._all(ImageDocument) if _describes(each, boot_info))
        document = listed_document(app, tuple(same), boot_info)
        ruled = MEMBERS.get(check.name)
        if ruled is not None and document is not None:
            return self._said(document, ruled)
        if ruled is not None:
            return Rule(", ".join(sorted(UNDOCUMENTED_ENFORCES)), Place(_BY_HASH_ALONE, ruled.member))
        member = None if check.passed else _misfit(document, boot_info)
        if document is None:
            wanted = f"1 to {MAX_VCPUS} vCPUs, a known vCPU type, features {SNP_ACTIVE:#x}"
            return Rule(wanted, Place(_BY_HASH_ALONE, member))
        return Rule(_machines(document.image), self._written.document(document).place(member))

    def _revoked(self, revocable: Revocable, boot_info: BootInfo) -> Place | None:
        """Find the first document that revokes what was proven, and the item that does."""
        proven = revocable.proven(boot_info)
        for document in self._all(RevokedDocument):
            if revocable.member == "images":
                item = self._revoked_image(document, boot_info)
            else:
                item = _text(proven) if proven in getattr(document, revocable.member) else None
            if item is not None:
                return self._written.document(document).place(revocable.member, item=item)
        return None

    def _revoked_image(self, document: RevokedDocument, boot_info: BootInfo) -> str | None:
        """Give the item that revokes the image; empty where another image does that measures the same."""
        described = {each.name: each for each in self._all(ImageDocument)}
        revocations = Revocations.unite((document,), {name: each.image for name, each in described.items()})
        documented = any(_describes(each, boot_info) for each in described.values())
        if not revocations.image_revoked(boot_info, documented=documented):
            return None
        if boot_info.os_image_hash in document.image_hashes:
            return _text(boot_info.os_image_hash)
        same = (name for name, each in described.items() if _describes(each, boot_info))
        return next((name for name in same if name in document.images), "")

    def _app(self, app_id: AppId | None) -> AppDocument | None:
        return None if app_id is None else self._apps.get(app_id)

    def _all(self, kind: type[D]) -> Iterator[D]:
        return (each for each in self._written.revision.documents if isinstance(each, kind))


def _entries(document: TcbDocument) -> dict[str, Levels]:
    """Give the entries of `products` by their names as written."""
    models = {f"{product}/{model:#04x}": levels for (product, model), levels in document.models.items()}
    return {product.value: levels for product, levels in document.products.items()} | models


def _entries_for(document: TcbDocument, boot_info: BootInfo) -> dict[str, Levels]:
    """Give the entries that a minimum is made of: without a CPUID all of the line, else one."""
    entries, product = _entries(document), boot_info.product.value
    if boot_info.cpuid is None:
        return {name: levels for name, levels in entries.items() if name.partition("/")[0] == product}
    exact = f"{product}/{boot_info.cpuid.model:#04x}"
    name = exact if exact in entries else product
    return {name: entries[name]} if name in entries else {}


def _describes(document: ImageDocument, boot_info: BootInfo) -> bool:
    return document.image.os_image_hash == boot_info.os_image_hash


def _machines(image: Image) -> str:
    features = ", ".join(map(hex, image.guest_features))
    types = ", ".join(image.vcpu_types)
    return f"{image.vcpus_minimum} to {image.vcpus_maximum} vCPUs of {types}; features {features}"


def _misfit(document: ImageDocument | None, boot_info: BootInfo) -> str:
    """Give the first member that the machine does not fit."""
    least, most = 1, MAX_VCPUS
    features: tuple[int, ...] = (SNP_ACTIVE,)
    if document is not None:
        image = document.image
        least, most, features = image.vcpus_minimum, image.vcpus_maximum, image.guest_features
    if boot_info.vcpus is None or not least <= boot_info.vcpus <= most:
        return "vcpus"
    return "vcpu_types" if boot_info.guest_features in features else "guest_features"


def _text(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)
