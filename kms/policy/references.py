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
from kms.policy.parser import closest
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


def check_references(
    read: Sequence[Read], *, now: datetime | None, warn: bool = True, whole: bool = True
) -> Iterator[Finding]:
    """Find duplicates and references to nothing; warn of what is revoked, expired or can never match.

    Not `whole`: documents are missing that could not be read, so of references nothing is said.
    """
    names = _Names(read, whole=whole)
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
                names.resolve(each, "images", name, "image", notes, advice=_REVOKE_BY_HASH)
        if document is not None and now is not None and document.expired(now):
            notes.warning(each.place("expires_at"), "expired: it denies whatever relies on it")
    for notes in notebooks:
        yield from notes.findings


_REVOKE_BY_HASH: Final = "an os_image_hash stays revoked when its document is gone"
_KINDS: Final = ("app", "image", "tcb", "guest", "chips", "revoked")


class _Names:
    """The names of all documents, by kind.

    What could not be read may have any name, so that one mistake is one finding: a document without `name`
    any of its kind, and one without a known `kind` its name in every kind.
    """

    def __init__(self, read: Iterable[Read], *, whole: bool) -> None:
        self._names: dict[str, set[str]] = {kind: set() for kind in _KINDS}
        self._unknown = set() if whole else set(_KINDS)
        for each in read:
            kind, name = each.words.get("kind"), each.words.get("name")
            for among in _KINDS if kind not in _KINDS else (kind,):
                if name is None:
                    self._unknown.add(among)
                else:
                    self._names[among].add(name)
        self._names["guest"].add(STRICT)

    def resolve(
        self, each: Read, member: str, name: str, kind: str, notes: Notes, *, advice: str = ""
    ) -> None:
        """Complain of a name that no document of the kind has."""
        if name in self._names[kind] or kind in self._unknown:
            return
        others = [f"`{other}`" for other in _KINDS if name in self._names[other]]
        hint = closest(name, sorted(self._names[kind]))
        if others:
            hint = f"that is a document of kind {' and '.join(others)}"
        notes.error(
            each.item(member, name),
            f"no document of kind `{kind}` is named `{name}`: {hint}{advice and '; ' + advice}",
        )


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


def _resolve_app(each: Read, app: AppDocument, names: _Names, notes: Notes) -> None:
    names.resolve(each, "tcb", app.tcb, "tcb", notes)
    names.resolve(each, "guest", app.guest, "guest", notes)
    for name in sorted(app.images):
        names.resolve(each, "images", name, "image", notes)
    for name in sorted(app.chip_sets):
        names.resolve(each, "chips", name, "chips", notes)


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
