"""Differences of image documents, and of what they let an app's guests run.

An image document counts only where an app lists it, by name or by hash, and several may describe one launch:
so an app's images are compared as `kms.policy.app_checks` and `kms.evidence.launch` use them, launch by
launch. What these comparisons find and the documents do not show by themselves is said as a difference of
its own. Where two states are too entangled to tell, the answer is that it widens.
"""

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Final, NamedTuple

from kms.identifiers import OsImageHash
from kms.measurement.images import UNDOCUMENTED_ENFORCES, Binding, Image
from kms.measurement.launch import launch_prefix
from kms.measurement.vcpu_types import VCPU_TYPES
from kms.policy.diff_side import ListedImages, Side
from kms.policy.difference import Difference, Effect, Member, effect_of, header, outlasts, short
from kms.policy.documents import AppDocument, ImageDocument

_NO_NAME: Final = ""  # of a guest's image that no listed document has the name of
_UNGUARDED: Final = "no longer holds images that may measure alike to what it enforces"


def image_differences(document: str, old: ImageDocument, new: ImageDocument) -> Iterator[Difference]:
    """Compare two image documents of one name."""
    if old == new:
        return
    yield from header(document, old, new)
    before, after = old.image, new.image
    if before.os_image_hash != after.os_image_hash:
        hashes = short(before.os_image_hash), short(after.os_image_hash)
        yield Member(document, "launch").turned(Effect.WIDENS, "launch", *hashes)
    enforces, new_enforces = set[str](before.enforces), set[str](after.enforces)
    yield from Member(document, "enforces").items("enforced binding", enforces, new_enforces)
    vcpus = before.vcpus_minimum, before.vcpus_maximum
    new_vcpus = after.vcpus_minimum, after.vcpus_maximum
    if vcpus != new_vcpus:
        effect = effect_of(widens=new_vcpus[0] < vcpus[0] or new_vcpus[1] > vcpus[1])
        texts = [f"{least} to {most}" for least, most in (vcpus, new_vcpus)]
        yield Member(document, "vcpus").turned(effect, "vCPUs", *texts)
    yield from _vcpu_type_differences(Member(document, "vcpu_types"), before, after)
    features, new_features = set(before.guest_features), set(after.guest_features)
    yield from Member(document, "guest_features").items(
        "guest features", features, new_features, show=hex, plural="feature sets"
    )


def _vcpu_type_differences(member: Member, old: Image, new: Image) -> Iterator[Difference]:
    """Compare by signature, as measurements do: another name for the same one changes nothing."""
    types, new_types = set(old.vcpu_types), set(new.vcpu_types)
    for values, done, others, effect in (
        (new_types - types, "added", _signatures(old), Effect.WIDENS),
        (types - new_types, "removed", _signatures(new), Effect.NARROWS),
    ):
        effects = {name: Effect.NEITHER if VCPU_TYPES[name] in others else effect for name in values}
        yield from member.graded("vCPU type", effects, done)


def _signatures(image: Image) -> frozenset[int]:
    if not image.description.vmm.shows_vcpu_type:
        return frozenset(VCPU_TYPES.values())
    return frozenset(VCPU_TYPES[name] for name in image.vcpu_types)


@dataclass(frozen=True, slots=True)
class ImageComparison:
    """What an app's images were and are, by launch.

    `added` and `dropped` are launches that more, or fewer, guests may run. `reasons` are for what neither the
    app nor one image document shows by itself: the name of an image, and why it widens what the app allows.
    """

    added: Set[OsImageHash]
    dropped: Set[OsImageHash]
    reasons: Set[tuple[str, str]]


class ImageComparer:
    """Compares the images of apps, once for all apps that list the same."""

    def __init__(self, before: Side, after: Side) -> None:
        self._before = before
        self._after = after
        self._revoked = after.revoked_hashes()
        self._known: dict[object, ImageComparison] = {}
        changed = [
            document
            for name in before.images.keys() | after.images.keys()
            if before.images.get(name) != after.images.get(name)
            for document in (before.images.get(name), after.images.get(name))
            if document is not None
        ]
        self._changed_names = frozenset(each.name for each in changed)
        self._changed_hashes = frozenset(each.image.os_image_hash for each in changed)

    def concerns(self, old: AppDocument, new: AppDocument) -> bool:
        """Say whether the images of an app may have changed."""
        return (
            (old.images, old.image_hashes) != (new.images, new.image_hashes)
            or not new.images.isdisjoint(self._changed_names)
            or not new.image_hashes.isdisjoint(self._changed_hashes)
        )

    def compare(self, old: AppDocument, new: AppDocument) -> ImageComparison:
        """Compare the images that an app listed with those that it lists."""
        key = old.images, old.image_hashes, old.binding, new.images, new.image_hashes, new.binding
        if key not in self._known:
            self._known[key] = self._compare(old, new)
        return self._known[key]

    def _compare(self, old: AppDocument, new: AppDocument) -> ImageComparison:
        before, after = self._before.listed_images(old), self._after.listed_images(new)
        allowed = {each: documents for each, documents in after.items() if each not in self._revoked}
        widened = list(_widened(before, allowed, new.binding))
        unguarded = _unguarded(before, after, new.binding)
        return ImageComparison(
            added=(allowed.keys() - before.keys()).union(each.image_hash for each in widened),
            dropped=(before.keys() - after.keys()).union(
                each.image_hash for each in _widened(after, before, old.binding)
            ),
            reasons={(each.name, each.why) for each in widened}.union(
                (each.name, _UNGUARDED) for each in unguarded
            ),
        )


class _Widened(NamedTuple):
    image_hash: OsImageHash
    name: str
    why: str


def _widened(before: ListedImages, after: ListedImages, binding: frozenset[Binding]) -> Iterator[_Widened]:
    """Find launches that were listed, and that a guest may run now where it might not have."""
    for image_hash in before.keys() & after.keys():
        old, new, launch = before[image_hash], after[image_hash], short(image_hash)
        if old and new:
            names = (*new, *old, _NO_NAME)
            if any(_exceeds(_judging(new, name), _judging(old, name), binding) for name in names):
                why = f"describes {launch} in place of another document, and allows more"
                yield _Widened(image_hash, min(new), why)
        elif new:
            # Not compared further: a guest's own image is also compared with every revoked one.
            yield _Widened(image_hash, min(new), f"describes {launch}, until now allowed by hash alone")
        elif old:
            why = f"no longer describes {launch}, now allowed by hash alone on any machine"
            yield _Widened(image_hash, min(old), why)


def _judging(documents: Mapping[str, ImageDocument], name: str) -> ImageDocument:
    """Give the document that judges a guest on the image of this name, as `kms.policy.app_checks` picks it.

    A stored revision's documents are in the order of their names.
    """
    return documents.get(name) or documents[min(documents)]


def _exceeds(new: ImageDocument, old: ImageDocument, binding: frozenset[Binding]) -> bool:
    """Say whether another document of a launch lets in more; the same one is compared by itself."""
    return new.name != old.name and (
        not _covers(old.image, new.image)
        or not new.image.enforces & binding <= old.image.enforces
        or outlasts(new, old)
    )


def _covers(one: Image, other: Image) -> bool:
    """Say whether one runs on every machine of the other, both of the same launch."""
    return (
        one.vcpus_minimum <= other.vcpus_minimum
        and one.vcpus_maximum >= other.vcpus_maximum
        and _signatures(one) >= _signatures(other)
        and set(one.guest_features) >= set(other.guest_features)
    )


def _unguarded(
    before: ListedImages, after: ListedImages, binding: frozenset[Binding]
) -> Iterator[ImageDocument]:
    """Find documents that held guests of other images to what they enforce, and do no longer.

    Of all listed documents that show a guest's measurement, only what every one enforces counts
    (`kms.evidence.launch`). So one that is gone, or is for fewer machines, may let in a binding that it did
    not enforce; and a guest that describes its own image, where it was itself past its date.
    """
    remaining = [document for documents in after.values() for document in documents.values()]
    by_hash_alone = any(not documents for documents in after.values())
    for image_hash, documents in before.items():
        for old in documents.values():
            unenforced = binding - old.image.enforces
            if any(
                _covers(each.image, old.image) and not each.image.enforces & unenforced
                for each in after.get(image_hash, {}).values()
            ):
                continue
            others = (each.image for each in remaining if each.image.enforces & unenforced)
            if any(_may_measure_alike(old.image, other) for other in others) or (
                by_hash_alone and (unenforced & UNDOCUMENTED_ENFORCES or old.expires_at is not None)
            ):
                yield old


def _may_measure_alike(one: Image, other: Image) -> bool:
    """Say whether two images could show one measurement, written alike or not."""
    cmdlines = [each.description.cmdline or "" for each in (one, other)]
    return _prefix(one) == _prefix(other) and (
        cmdlines[0] == cmdlines[1] or one.has_placeholders or other.has_placeholders
    )


def _prefix(image: Image) -> bytes:
    """Give the digest before any vCPU and without a command line, which may have to be filled in."""
    cmdline = None if image.description.kernel is None else ""
    return launch_prefix(image.description, cmdline=cmdline)
