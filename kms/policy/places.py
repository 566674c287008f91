"""Where a policy says what it says: document, member, and file, line and column where those are known."""

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Final, NamedTuple

from kms.policy.documents import KINDS, Document
from kms.policy.nodes import Items, Member, Members, Node, Scalar, Source, from_json, to_json
from kms.policy.revision import Revision, documents_of
from kms.policy.yaml_documents import parse_documents
from kms.strict_json import JsonValue

_MOST_ITEMS: Final = 5  # shown of a list
_MOST_CHARACTERS: Final = 64  # shown of a text: a SHA-256 in hex is shown whole, a chip id is not
_BEGINNING: Final = 16
_MARKER: Final = b"\n---"  # between two documents of a file
_NAME_ENDS: Final = rb"(?![A-Za-z0-9._+:/-])"  # no character of a name follows
_MOST_OF_ONE_NAME: Final = 16  # documents that are compared: six kinds, and a few that somebody put there


class Place(NamedTuple):
    """A place in a policy: ``app payments``, ``products.milan.microcode``, and where that is written.

    `member` is None for the document as a whole. `line` and `column` are from 1; they and `file` are None
    where only the stored document is known, or nobody wrote it (a built-in document).
    """

    document: str
    member: str | None
    file: str | None = None
    line: int | None = None
    column: int | None = None

    def to_json(self) -> dict[str, JsonValue]:
        """Give it as the member ``says`` of an explanation."""
        return dict(self._asdict())


class WrittenDocument(NamedTuple):
    """One document as it was written: ``app payments``, and the file, None where that is not known."""

    title: str
    root: Members
    file: str | None

    def said(self, member: str) -> str | None:
        """Give the short form of what a member says (``platform.require``); None where it was left out."""
        found = self._member(member)
        return None if found is None else short(found.value)

    def place(self, member: str | None = None, *, item: str | None = None) -> Place:
        """Give the place of a member, or of an item of its list; of one left out, that of the document."""
        found = None if member is None else self._member(member)
        node: Node = self.root if found is None else found.key
        if found is not None and isinstance(found.value, Items):
            node = next((each for each in found.value.items if _reads(each, item)), node)
        if self.file is None:
            return Place(self.title, member)
        return Place(self.title, member, self.file, node.line, node.column)

    def _member(self, path: str) -> Member | None:
        node: Node | None = self.root
        member = None
        for name in path.split("."):
            if not isinstance(node, Members) or name not in node.names:
                return None
            member = node.members[name]
            node = member.value
        return member


class Written:
    """The documents of a revision as they were written.

    `files` are the policy's files, where they are known. They are not believed: a place is given only where a
    file holds exactly the document that the revision holds, so nobody who changes the stored files can make
    an explanation name a rule that did not judge.
    """

    def __init__(self, revision: Revision, files: Mapping[str, bytes] | None = None) -> None:
        self.revision = revision
        self._files = files or {}
        self._stored = {(str(each["kind"]), str(each["name"])): each for each in documents_of(revision)}
        self._found: dict[tuple[str, str], WrittenDocument] = {}

    def document(self, document: Document) -> WrittenDocument:
        """Give a document of the revision as it was written."""
        key = KINDS[type(document)], document.name
        if key not in self._found:
            self._found[key] = self._find(*key)
        return self._found[key]

    def _find(self, kind: str, name: str) -> WrittenDocument:
        title, stored = f"{kind} {name}", self._stored[kind, name]
        for source in islice(self._sources(name), _MOST_OF_ONE_NAME):
            if to_json(source.root) == stored:
                return WrittenDocument(title, source.root, source.file)
        members = {each: Member(Scalar(each, each, 1, 1), from_json(value)) for each, value in stored.items()}
        return WrittenDocument(title, Members(members, 1, 1), None)

    def _sources(self, name: str) -> Iterator[Source]:
        """Parse the documents that seem to have this name: all would take seconds of ten thousand apps."""
        named = re.compile(rb"name[\"']?[ \t]*:[ \t]*[\"']?" + re.escape(name.encode()) + _NAME_ENDS)
        for file, data in self._files.items():
            at = 0
            while at >= 0 and (match := named.search(data, at)):
                start = max(data.rfind(_MARKER, 0, match.start()), 0)
                at = data.find(_MARKER, match.end())
                # Empty lines in place of the documents before it, so that its own keep their numbers.
                above = b"\n" * data.count(b"\n", 0, start)
                yield from parse_documents({file: above + data[start : None if at < 0 else at]}).sources


def short(node: Node) -> str:
    """Give what was written in a short form: long lists end with how many there are, long ids early."""
    if isinstance(node, Items):
        return f"[{_some((short(item) for item in node.items), len(node.items))}]"
    if isinstance(node, Members):
        members = (f"{name}: {short(member.value)}" for name, member in node.members.items())
        return f"{{{_some(members, len(node.members))}}}"
    return f"{node.text[:_BEGINNING]}…" if len(node.text) > _MOST_CHARACTERS else node.text


def _some(shown: Iterator[str], count: int) -> str:
    first = list(islice(shown, _MOST_ITEMS))
    return ", ".join([*first, f"… ({count} in all)"] if count > _MOST_ITEMS else first)


def _reads(node: Node, text: str | None) -> bool:
    return isinstance(node, Scalar) and node.value == text and text is not None
