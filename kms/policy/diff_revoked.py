"""Differences of what is revoked: united over all `revoked` documents, as it counts.

To write a revocation into another document is neither, and so is to write an image's hash for its name.
"""

from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any, Final

from kms.identifiers import OsImageHash
from kms.policy.diff_side import Side
from kms.policy.difference import Difference, Effect, Member, names_of, short
from kms.policy.documents import ImageDocument, RevokedDocument
from kms.policy.revocation import Revocations

_NOTHING: Final = RevokedDocument(
    name="nothing",
    chips=frozenset(),
    measurements=frozenset(),
    images=frozenset(),
    image_hashes=frozenset(),
    apps=frozenset(),
    compose=frozenset(),
    products=frozenset(),
)


@dataclass(frozen=True, slots=True)
class _List:
    """One list of `revoked` documents: the member of the document, and how its values are called."""

    attribute: str
    member: str
    noun: str
    show: Callable[[Any], str]
    plural: str | None = None

    def values(self, document: RevokedDocument | None) -> Set[Any]:
        """Give the values of a document; one that is not there has none."""
        found: Set[Any] = getattr(document or _NOTHING, self.attribute)
        return found

    def revoked(self, side: Side) -> Set[Any]:
        """Give all that is revoked of this kind, images by their hashes."""
        if self.member == "images":
            return side.revoked_hashes()
        return frozenset().union(*(self.values(each) for each in side.revoked.values()))

    def meaning(self, side: Side, value: Any) -> Any:
        """Give what is revoked by a value of one side's document: an image's name means its launch."""
        return side.images[value].image.os_image_hash if self.attribute == "images" else value


_LISTS: Final = (
    _List("chips", "chips", "chip", short),
    _List("measurements", "measurements", "measurement", short),
    _List("images", "images", "image", str),
    _List("image_hashes", "images", "image", short),
    _List("apps", "apps", "app", bytes.hex),
    _List("compose", "compose", "compose", short, "compose hashes"),
    _List("products", "products", "product", str),
)


def revocation_differences(before: Side, after: Side) -> Iterator[Difference]:
    """Compare every `revoked` document, minding what the others revoke too."""
    names = before.revoked.keys() | after.revoked.keys()
    pairs = [(name, before.revoked.get(name), after.revoked.get(name)) for name in names]
    changed = [pair for pair in pairs if pair[1] != pair[2]]
    for each in _LISTS if changed else ():
        was, now = each.revoked(before), each.revoked(after)
        for name, old, new in changed:
            more, fewer = each.values(new) - each.values(old), each.values(old) - each.values(new)
            known = {value for value in more if each.meaning(after, value) in was}
            kept = {value for value in fewer if each.meaning(before, value) in now}
            for effect, values, done in (
                (Effect.NARROWS, more - known, "revoked"),
                (Effect.NEITHER, known, "added, and revoked already"),
                (Effect.WIDENS, fewer - kept, "no longer revoked"),
                (Effect.NEITHER, kept, "removed, and still revoked"),
            ):
                yield from Member(f"revoked {name}", each.member).lines(
                    effect, each.noun, values, done, show=each.show, plural=each.plural
                )
    yield from _look_alike_differences(before, after)


def _look_alike_differences(before: Side, after: Side) -> Iterator[Difference]:
    """Find what is allowed again because a revoked image is not described any more.

    A revoked image takes along whatever measures as it does, but only by its document can that be told
    (`kms.policy.revocation`): with its hash alone, the same launch written with other bytes comes back.
    """
    revoked = after.revoked_hashes()
    gone = {
        image_hash: next(iter(before.images_by_hash[image_hash].values()))
        for image_hash in before.revoked_hashes() & revoked
        if image_hash in before.images_by_hash and image_hash not in after.images_by_hash
    }
    if not gone:
        return
    freed = _measuring_alike(gone, after) - revoked
    for image_hash in freed:
        for name in after.images_by_hash[image_hash]:
            text = "may measure as a revoked image does, which now is revoked by its hash alone"
            yield Difference(f"image {name}", None, Effect.WIDENS, text)
    by_hash_alone = [
        app.name
        for app in after.apps.values()
        if not app.image_hashes <= revoked | after.images_by_hash.keys()
    ]
    if by_hash_alone:
        text = "is revoked by its hash alone now: no image that a guest describes is compared with it"
        for document in gone.values():
            yield Difference(
                f"image {document.name}", None, Effect.WIDENS, f"{text} ({names_of(by_hash_alone)})"
            )


def _measuring_alike(gone: Mapping[OsImageHash, ImageDocument], after: Side) -> Set[OsImageHash]:
    images = {document.name: document.image for document in after.images.values()}
    images |= {image_hash.hex(): document.image for image_hash, document in gone.items()}
    alike = Revocations.unite([replace(_NOTHING, image_hashes=frozenset(gone))], images)
    return (alike.image_hashes | alike.look_alikes.keys()) & after.images_by_hash.keys()
