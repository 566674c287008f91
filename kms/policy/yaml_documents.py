"""YAML files to trees with places, by YAML's events and our own rules.

A loader would resolve YAML 1.1 (``no`` is false, ``12e45`` a number), let the last of two equal keys win
and follow aliases, so that a reviewer and the server could read one file differently. Here each of those
is a finding.
"""

import codecs
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import yaml

from kms.policy.findings import Finding, Notes, in_order
from kms.policy.nodes import Items, Member, Members, Node, Scalar, Source
from kms.policy.yaml_scalars import AmbiguousScalar, resolve
from kms.policy.yaml_syntax import complaint_of

MAX_DEPTH: Final = 16  # the deepest document of the protocol has 5 levels
MAX_FILE_BYTES: Final = 32 << 20  # 100 000 chip ids are 13 MiB
_LOADER: Final = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


@dataclass(frozen=True, slots=True)
class _Place:
    line: int
    column: int


_START: Final = _Place(1, 1)
_NOTHING: Final = Scalar(None, "", 1, 1)


class _Stop(Exception):
    """The rest of this file cannot be read; the finding was made."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """What was read. Not `whole`: of some file the rest could not be read, so documents are missing."""

    sources: tuple[Source, ...]
    findings: tuple[Finding, ...]
    whole: bool


def parse_documents(files: Mapping[str, bytes]) -> Parsed:
    """Parse files (name to contents) into documents, in the order of names; empty documents are left out.

    It never raises: what cannot be read is a finding. A file with a syntax error gives the documents before
    the error.
    """
    sources: list[Source] = []
    findings: list[Finding] = []
    whole = True
    for name in sorted(files):
        notes = Notes(name)
        try:
            sources.extend(_documents(name, files[name], notes))
        except _Stop:
            whole = False
        findings.extend(notes.findings)
    return Parsed(tuple(sources), in_order(findings), whole)


def _documents(name: str, data: bytes, notes: Notes) -> Iterator[Source]:
    for node in _trees(_decode(data, notes), notes):
        if isinstance(node, Members):
            yield Source(name, node)
        elif not (isinstance(node, Scalar) and node.value is None and not node.text):
            notes.error(node, "a document is a mapping that begins with `kind:`")


def _decode(data: bytes, notes: Notes) -> str:
    if len(data) > MAX_FILE_BYTES:
        notes.error(_START, f"the file is longer than {MAX_FILE_BYTES >> 20} MiB")
        raise _Stop
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8")
        place = _Place(before.count("\n") + 1, len(before) - before.rfind("\n"))
        utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        notes.error(
            place, f"the file is not UTF-8 from here on: {'it is UTF-16' if utf_16 else 'save it as UTF-8'}"
        )
        raise _Stop from None


@dataclass(slots=True)
class _Open:
    """A collection that is being read; `key` is None while the value that follows is to be dropped."""

    place: _Place
    is_mapping: bool
    is_document: bool
    items: list[Node] = field(default_factory=list)
    members: dict[str, Member] = field(default_factory=dict)
    key: Scalar | None = None
    wants_value: bool = False


def _trees(text: str, notes: Notes) -> Iterator[Node]:
    """Build one tree for each YAML document, without recursion: the depth is the sender's choice."""
    stack: list[_Open] = []
    node: Node = _NOTHING
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            if isinstance(event, yaml.ScalarEvent):  # most of them, in a large policy
                node = _scalar(event, notes)
            elif isinstance(event, yaml.CollectionEndEvent):
                node = _closed(stack.pop())
            elif isinstance(event, yaml.CollectionStartEvent):
                _refuse_decoration(event, notes)
                if len(stack) == MAX_DEPTH:
                    notes.error(_place(event), f"nested more than {MAX_DEPTH} levels deep")
                    raise _Stop
                is_mapping = isinstance(event, yaml.MappingStartEvent)
                stack.append(_Open(_place(event), is_mapping, is_document=not stack))
                continue
            elif isinstance(event, yaml.DocumentEndEvent):
                # Not at the end of its node: the parser may find that the document does not end there.
                yield node
                continue
            elif isinstance(event, yaml.DocumentStartEvent):
                _refuse_directives(event, notes)
                continue
            elif isinstance(event, yaml.AliasEvent):
                place = _place(event)
                notes.fault(place, f"`*{event.anchor}`: aliases are refused, write the value out")
                node = Scalar(None, "*", place.line, place.column)
            else:
                continue
            if stack:
                _put(stack[-1], node, notes)
    except yaml.YAMLError as error:
        complaint = complaint_of(error, text)
        notes.error(complaint, complaint.message)
        raise _Stop from None


def _put(parent: _Open, node: Node, notes: Notes) -> None:
    if not parent.is_mapping:
        parent.items.append(node)
    elif not parent.wants_value:
        parent.wants_value = True
        parent.key = _key(parent, node, notes)
    else:
        parent.wants_value = False
        if parent.key is not None:
            parent.members[parent.key.text] = Member(parent.key, node)


def _key(parent: _Open, node: Node, notes: Notes) -> Scalar | None:
    """Give the key, or None where its value is to be dropped, because the key was refused."""
    if not isinstance(node, Scalar):
        notes.error(node, "a key must be a word, not a list or mapping")
        return None
    if not isinstance(node.value, str):
        notes.error(node, f"the key `{node.text}` is not text to YAML: quote it")
        return None
    if node.text in parent.members:
        again = f"`{node.text}` is already given at line {parent.members[node.text].key.line}"
        if parent.is_document and node.text == "kind":
            # What follows would be taken for members of the document before it, each a finding.
            notes.error(node, f"{again}: the line `---` is missing before the next document")
            raise _Stop
        notes.error(node, again)
        return None
    return node


def _closed(collection: _Open) -> Node:
    place = collection.place
    if collection.is_mapping:
        return Members(collection.members, place.line, place.column)
    return Items(tuple(collection.items), place.line, place.column)


def _scalar(event: yaml.ScalarEvent, notes: Notes) -> Scalar:
    if event.anchor is not None or event.tag is not None:
        _refuse_decoration(event, notes)
    mark, text = event.start_mark, event.value
    line, column = (1, 1) if mark is None else (mark.line + 1, mark.column + 1)
    if not text.isascii() and not _has_utf_8(text):
        notes.fault(_Place(line, column), "a lone surrogate: it has no UTF-8 form")
        return Scalar("", "", line, column)
    if event.style:  # quoted or block: a string, whatever it looks like
        return Scalar(text, text, line, column)
    try:
        return Scalar(resolve(text), text, line, column)
    except AmbiguousScalar as error:
        notes.fault(_Place(line, column), str(error))
        return Scalar(text, text, line, column)


def _has_utf_8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _refuse_directives(event: yaml.DocumentStartEvent, notes: Notes) -> None:
    if event.version is not None and tuple(event.version) != (1, 2):
        notes.error(_place(event), "policies are YAML 1.2: leave the %YAML directive out")
    if event.tags:
        notes.error(_place(event), "tags are refused: leave the %TAG directive out")


def _refuse_decoration(event: yaml.ScalarEvent | yaml.CollectionStartEvent, notes: Notes) -> None:
    if event.anchor is not None:
        notes.fault(_place(event), f"`&{event.anchor}`: anchors are refused, there are no aliases")
    if event.tag is not None:
        notes.fault(_place(event), f"the tag {event.tag} is refused: quote a value that must be text")


def _place(event: yaml.Event) -> _Place:
    mark = event.start_mark
    return _START if mark is None else _Place(mark.line + 1, mark.column + 1)
