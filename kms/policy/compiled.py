"""A policy compiled for look-ups: a decision costs the same at ten apps and at ten thousand.

Named sets stay shared: an app refers to its chips documents, it does not copy them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from kms.identifiers import AppId, ChipId, OsImageHash
from kms.measurement.images import Image
from kms.policy.documents import (
    KINDS,
    STRICT,
    STRICT_GUEST,
    AnyDocument,
    AppDocument,
    ChipsDocument,
    Document,
    GuestDocument,
    ImageDocument,
    RevokedDocument,
    TcbDocument,
)
from kms.policy.revision import Revision
from kms.policy.revocation import Revocations

D = TypeVar("D", bound=Document)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledApp:
    """An app with the documents that judge it."""

    document: AppDocument
    tcb: TcbDocument
    guest: GuestDocument


class Policy:
    """One revision, ready to decide."""

    __slots__ = (
        "_apps", "_by_hash", "_chip_sets", "_chips", "_images", "_undocumented", "expiries", "revision",
        "revocations",
    )  # fmt: skip

    def __init__(self, revision: Revision) -> None:
        documents = revision.documents
        self.revision: str = revision.digest
        # When documents expire, by kind, for who watches over it.
        self.expiries: Mapping[str, tuple[datetime, ...]] = _expiries(documents)
        self._chips = {each.name: each for each in _of(ChipsDocument, documents)}
        self._chip_sets = _sets_by_chip(self._chips.values())
        self._images = {each.name: each for each in _of(ImageDocument, documents)}
        self._by_hash: dict[OsImageHash, list[ImageDocument]] = {}
        for image in self._images.values():
            self._by_hash.setdefault(image.image.os_image_hash, []).append(image)
        tcbs = {each.name: each for each in _of(TcbDocument, documents)}
        guests = {each.name: each for each in _of(GuestDocument, documents)} | {STRICT: STRICT_GUEST}
        self._apps = {
            app.id: CompiledApp(document=app, tcb=tcbs[app.tcb], guest=guests[app.guest])
            for app in _of(AppDocument, documents)
        }
        self._undocumented = frozenset(
            listed
            for compiled in self._apps.values()
            for listed in compiled.document.image_hashes
            if listed not in self._by_hash
        )
        self.revocations = Revocations.unite(
            _of(RevokedDocument, documents), {name: each.image for name, each in self._images.items()}
        )

    @property
    def images(self) -> tuple[Image, ...]:
        """Every documented image, revoked and expired ones too: a refusal should name what it refuses."""
        return tuple(each.image for each in self._images.values())

    @property
    def apps(self) -> tuple[AppDocument, ...]:
        """Every app document."""
        return tuple(compiled.document for compiled in self._apps.values())

    def app(self, app_id: AppId) -> AppDocument | None:
        """Give the app's document; None when the policy does not list the app."""
        compiled = self._apps.get(app_id)
        return None if compiled is None else compiled.document

    def compiled_app(self, app_id: AppId) -> CompiledApp | None:
        """Give the app with the documents that it refers to."""
        return self._apps.get(app_id)

    def images_of(self, app_id: AppId) -> tuple[Image, ...]:
        """Give the documented images that the app lists, by name or by hash."""
        compiled = self._apps.get(app_id)
        if compiled is None:
            return ()
        listed = {name: self._images[name] for name in sorted(compiled.document.images)}
        for image_hash in sorted(compiled.document.image_hashes):
            listed |= {each.name: each for each in self._by_hash.get(image_hash, ())}
        return tuple(each.image for each in listed.values())

    def image(self, name_or_hash: str) -> Image | None:
        """Give the documented image of this name, or else one of this os_image_hash in hex."""
        document = self._images.get(name_or_hash)
        if document is None:
            try:
                described = self._by_hash.get(OsImageHash.from_hex(name_or_hash))
            except ValueError:
                return None
            document = described[0] if described else None
        return None if document is None else document.image

    def image_documents(self, os_image_hash: OsImageHash) -> tuple[ImageDocument, ...]:
        """Give the image documents of this hash: they differ in name, machines and what they enforce."""
        return tuple(self._by_hash.get(os_image_hash, ()))

    def lists_image_hash(self, os_image_hash: OsImageHash) -> bool:
        """Say whether some app lists this hash and no document describes it: then a guest may."""
        return os_image_hash in self._undocumented

    def chip_sets_with(self, chip: ChipId) -> tuple[ChipsDocument, ...]:
        """Give the chips documents that hold the chip."""
        return tuple(self._chips[name] for name in self._chip_sets.get(chip, ()))


def _of(kind: type[D], documents: Iterable[AnyDocument]) -> list[D]:
    return [each for each in documents if isinstance(each, kind)]


def _expiries(documents: Iterable[AnyDocument]) -> dict[str, tuple[datetime, ...]]:
    found: dict[str, list[datetime]] = {}
    for each in documents:
        if each.expires_at is not None:
            found.setdefault(KINDS[type(each)], []).append(each.expires_at)
    return {kind: tuple(sorted(dates)) for kind, dates in found.items()}


def _sets_by_chip(sets: Iterable[ChipsDocument]) -> dict[bytes, tuple[str, ...]]:
    found: dict[bytes, tuple[str, ...]] = {}
    for each in sets:
        # One tuple for all chips that are in this set alone, however many they are.
        alone = (each.name,)
        for chip in each.chips.plain():
            found[chip] = (*found[chip], each.name) if chip in found else alone
    return found
