"""Revocations that stand: what was revoked stays revoked until somebody says that it is not."""

from hashlib import sha256
from typing import Final, TypeAlias

from kms.policy.documents import ImageDocument, RevokedDocument
from kms.policy.revision import Revision, documents_of, with_documents
from kms.strict_json import JsonValue

Documents: TypeAlias = list[dict[str, JsonValue]]

_STANDING: Final = "-standing"
# The lists of a `revoked` document, and what one of their items is called.
_LISTS: Final = {
    "chips": "chip",
    "measurements": "measurement",
    "images": "image",
    "apps": "app",
    "compose": "compose",
    "products": "product",
}
REVOCABLE: Final = tuple(_LISTS.values())


def with_standing_revocations(target: Revision, in_force: Revision, last_folder: Revision | None) -> Revision:
    """Give a revision together with the revocations in force that it does not have.

    So what was revoked by command stays revoked when somebody edits an unrelated file, or goes back to an
    older revision. `last_folder` is what the watched folder was when it was applied last: what it revoked
    itself, it may take back. A kept document whose name the target uses too is renamed; an image that the
    target does not have, or has otherwise, is kept revoked by its hash.
    """
    own, written = _revoked(last_folder), _revoked(target)
    kept = [value for value in _revoked(in_force) if value not in own and value not in written]
    if not kept:
        return target
    names, images = {value["name"] for value in written}, _image_hashes(target)
    before = _image_hashes(in_force)
    for value in kept:
        while value["name"] in names:
            value["name"] = f"{value['name']}{_STANDING}"
        names.add(value["name"])
        listed = value.get("images")
        if isinstance(listed, list):
            gone = {
                each: before[each] for each in listed if each in before and images.get(each) != before[each]
            }
            value["images"] = list(dict.fromkeys(gone.get(each, each) for each in listed))
    return with_documents(target, kept)


def kept_revocations(target: Revision, united: Revision) -> Documents:
    """Give the documents that `with_standing_revocations` added."""
    own = _revoked(target)
    return [value for value in _revoked(united) if value not in own]


def with_revocation(in_force: Revision, kind: str, value: str, *, reason: str) -> tuple[Revision, Documents]:
    """Give what is in force with one more revocation, and the document that was added; none if it stands.

    `kind` is one of `REVOCABLE`. The same revocation of the same revision is always the same document.

    Raises:
        PolicyInvalid: the value is none of its kind.

    """
    member = next(name for name, singular in _LISTS.items() if singular == kind)
    # By its hash: a name may mean another launch tomorrow.
    revoked = _image_hashes(in_force).get(value, value) if kind == "image" else value
    if (member, revoked) in _items(in_force):
        return in_force, []
    names = {each["name"] for each in _revoked(in_force)}
    # Names may share their beginning; the whole value would be too long.
    name = f"revoked-{kind}-{sha256(value.encode('utf-8', 'replace')).hexdigest()[:16]}"
    while name in names:
        name += _STANDING
    document: dict[str, JsonValue] = {"kind": "revoked", "name": name, member: [revoked]}
    if reason:
        document["description"] = reason
    return with_documents(in_force, [document]), [document]


def lifted_revocations(before: Revision, after: Revision) -> tuple[str, ...]:
    """Name everything that is revoked before and not after, as in "chip 38d1…"; sorted."""
    gone = _items(before) - _items(after)
    return tuple(sorted(f"{_LISTS[member]} {value}" for member, value in gone))


def _items(revision: Revision) -> set[tuple[str, str]]:
    """Give what the `revoked` documents hold; a documented image by its hash, whatever it is called."""
    hashes, found = _image_hashes(revision), set[tuple[str, str]]()
    for document in revision.documents:
        if isinstance(document, RevokedDocument):
            for member in ("chips", "measurements", "apps", "compose"):
                found.update((member, value.hex()) for value in getattr(document, member))
            found.update(("products", product.value) for product in document.products)
            found.update(("images", value.hex()) for value in document.image_hashes)
            found.update(("images", hashes[name]) for name in document.images)
    return found


def _image_hashes(revision: Revision) -> dict[JsonValue, str]:
    images = (each for each in revision.documents if isinstance(each, ImageDocument))
    return {each.name: each.image.os_image_hash.hex() for each in images}


def _revoked(revision: Revision | None) -> list[dict[str, JsonValue]]:
    documents = [] if revision is None else documents_of(revision)
    return [each for each in documents if each["kind"] == "revoked"]
