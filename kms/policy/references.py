"""What documents say of each other: names that must be unique, references that must resolve, and warnings.

A document that could not be read still counts by its name, so that one mistake is one finding.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from kms.measurement.images import Image
from kms.policy.documents import (
    STRICT,
    AnyDocument,
    AppDocument,
    GuestDocument,
    ImageDocument,
    RevokedDocument,
)
from kms.policy.findings import Finding, Notes
from kms.policy.nodes import Items, Members, Node, Scalar, Source
from kms.policy.reader import closest
from kms.snp.flags import Signer


@dataclass(frozen=True, slots=True)
class Read:
    """One document: the words that identify it, where it is written, and as read where it could be."""

    file: str
    root: Members
    words: Mapping[str, str]
    document: AnyDocument | None

    @classmethod
    def of(cls, source: Source, document: AnyDocument | None, *, root: Members) -> "Read":
        """Take the identifying words; `root` is kept for places."""
        words: dict[str, str] = {}
        for member in ("kind", "name", "id"):
            node = source.root.value(member)
            if isinstance(node, Scalar) and isinstance(node.value, str):
                words[member] = node.value
        return cls(source.file, root, words, document)

    def place(self, member: str) -> Node:
        """Give a member's value for its place, or the document where there is none."""
        return self.root.value(member) or self.root

    def item(self, member: str, text: str) -> Node:
        """Give the item of a list that reads `text`, for its place."""
        node = self.root.value(member)
        for item in node.items if isinstance(node, Items) else ():
            if isinstance(item, Scalar) and item.value == text:
                return item
        return self.place(member)


def check_references(read: Sequence[Read], *, now: datetime | None, warn: bool = True) -> Iterator[Finding]:
    """Find duplicates and references to nothing; warn of what is revoked, expired or can never match."""
    names = _names(read)
    notebooks = [Notes(each.file, with_warnings=warn) for each in read]
    _unique(read, notebooks)
    revoked = [each.document for each in read if isinstance(each.document, RevokedDocument)]
    images = {
        each.document.name: each.document.image for each in read if isinstance(each.document, ImageDocument)
    }
    guests = {each.document.name: each.document for each in read if isinstance(each.document, GuestDocument)}
    for each, notes in zip(read, notebooks, strict=True):
        document = each.document
        if isinstance(document, AppDocument):
            _resolve_app(each, document, names, notes)
            if warn:
                _warn_of_revoked(each, document, revoked, notes)
                _warn_of_nobody(each, document, images, guests.get(document.guest), notes)
        if isinstance(document, RevokedDocument):
            for name in sorted(document.images):
                _resolve(each, "images", name, names["image"], notes, advice=_REVOKE_BY_HASH)
        if document is not None and now is not None and document.expired(now):
            notes.warning(each.place("expires_at"), "expired: it denies whatever relies on it")
    for notes in notebooks:
        yield from notes.findings


_REVOKE_BY_HASH: Final = "an os_image_hash stays revoked when its document is gone"
_KINDS: Final = ("app", "image", "tcb", "guest", "chips", "revoked")


def _names(read: Iterable[Read]) -> dict[str, set[str]]:
    names: dict[str, set[str]] = {kind: set() for kind in _KINDS}
    for each in read:
        kind, name = each.words.get("kind"), each.words.get("name")
        if kind in names and name is not None:
            names[kind].add(name)
    names["guest"].add(STRICT)
    return names


def _unique(read: Iterable[Read], notebooks: Iterable[Notes]) -> None:
    first: dict[tuple[str, str, str], Read] = {}
    for each, notes in zip(read, notebooks, strict=True):
        kind = each.words.get("kind")
        for member in ("name", "id") if kind == "app" else ("name",):
            text = each.words.get(member)
            if kind not in _KINDS or text is None:
                continue
            other = first.setdefault((kind, member, text), each)
            if other is not each:
                place = f"{other.file}:{other.place(member).line}"
                notes.error(
                    each.place(member), f"there is another `{kind}` with {member} `{text}`, at {place}"
                )


def _resolve(each: Read, member: str, name: str, names: set[str], notes: Notes, *, advice: str = "") -> None:
    if name not in names:
        node = each.item(member, name)
        hint = closest(name, sorted(names))
        notes.error(node, f"no document is named `{name}`: {hint}{advice and '; ' + advice}")


def _resolve_app(each: Read, app: AppDocument, names: dict[str, set[str]], notes: Notes) -> None:
    _resolve(each, "tcb", app.tcb, names["tcb"], notes)
    _resolve(each, "guest", app.guest, names["guest"], notes)
    for name in sorted(app.images):
        _resolve(each, "images", name, names["image"], notes)
    for name in sorted(app.chip_sets):
        _resolve(each, "chips", name, names["chips"], notes)


def _warn_of_revoked(each: Read, app: AppDocument, revoked: Iterable[RevokedDocument], notes: Notes) -> None:
    for revocation in revoked:
        by = f"by `{revocation.name}`"
        if app.id in revocation.apps:
            notes.warning(each.place("id"), f"this app is revoked {by}")
        shadowed = [
            *(("compose", value.hex()) for value in app.compose.items & revocation.compose),
            *(("chips", value.hex()) for value in app.chips.items & revocation.chips),
            *(("images", name) for name in app.images & revocation.images),
            *(("images", value.hex()) for value in app.image_hashes & revocation.image_hashes),
        ]
        for member, text in shadowed:
            notes.warning(each.item(member, text), f"revoked {by}: listing it does nothing")


def _warn_of_nobody(
    each: Read, app: AppDocument, images: dict[str, Image], guest: GuestDocument | None, notes: Notes
) -> None:
    """Warn of documents that never allow anybody together, though each is right by itself."""
    listed = [images[name] for name in app.images if name in images]
    if app.binding and listed and not app.image_hashes and app.images <= images.keys():
        enforced = frozenset[object]().union(*(image.enforces for image in listed))
        if not app.binding & enforced:
            notes.warning(
                each.place("binding"), "no image of this app enforces any of these: it allows nobody"
            )
    if guest is not None and Signer.VLEK in guest.signers and not app.chips.anything:
        notes.warning(
            each.place("chips"), "a VLEK report proves no chip: with a list only VCEK guests are let in"
        )
