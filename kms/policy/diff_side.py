"""The documents of one of the two revisions that are compared, by kind and name.

Much less than a compiled policy (`kms.policy.compiled`), which would cost seconds at a hundred thousand chips
and two thousand images: a comparison looks only into what differs.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from kms.identifiers import AppId, OsImageHash
from kms.policy.documents import (
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

D = TypeVar("D", bound=Document)

# An app's images by os_image_hash: the documents that it lists, by name, or none where it allows the hash
# alone and the guest describes the image.
ListedImages: TypeAlias = Mapping[OsImageHash, Mapping[str, ImageDocument]]


@dataclass(frozen=True, slots=True)
class Side:
    """One revision's documents by name, apps by id. `guests` has the built-in ``strict`` too."""

    apps: Mapping[AppId, AppDocument]
    images: Mapping[str, ImageDocument]
    images_by_hash: Mapping[OsImageHash, Mapping[str, ImageDocument]]
    tcbs: Mapping[str, TcbDocument]
    guests: Mapping[str, GuestDocument]
    chips: Mapping[str, ChipsDocument]
    revoked: Mapping[str, RevokedDocument]

    @classmethod
    def of(cls, revision: Revision | None) -> "Side":
        """Sort a revision's documents; None has none, as before the first change."""
        documents = () if revision is None else revision.documents
        images = _named(ImageDocument, documents)
        by_hash: dict[OsImageHash, dict[str, ImageDocument]] = {}
        for name, image in images.items():
            by_hash.setdefault(image.image.os_image_hash, {})[name] = image
        return cls(
            apps={each.id: each for each in documents if isinstance(each, AppDocument)},
            images=images,
            images_by_hash=by_hash,
            tcbs=_named(TcbDocument, documents),
            guests=_named(GuestDocument, documents) | {STRICT: STRICT_GUEST},
            chips=_named(ChipsDocument, documents),
            revoked=_named(RevokedDocument, documents),
        )

    def listed_images(self, app: AppDocument) -> ListedImages:
        """Give the images that one of this revision's apps lists, by name or by hash."""
        listed = {each: dict(self.images_by_hash.get(each, {})) for each in app.image_hashes}
        for name in app.images:
            document = self.images[name]
            listed.setdefault(document.image.os_image_hash, {})[name] = document
        return listed

    def revoked_hashes(self) -> frozenset[OsImageHash]:
        """Give every os_image_hash that is revoked, by itself or by an image's name."""
        found: set[OsImageHash] = set()
        for document in self.revoked.values():
            found |= document.image_hashes
            found.update(self.images[name].image.os_image_hash for name in document.images)
        return frozenset(found)


def _named(kind: type[D], documents: Iterable[AnyDocument]) -> dict[str, D]:
    return {each.name: each for each in documents if isinstance(each, kind)}
