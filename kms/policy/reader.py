"""Reads a document's members one by one and finds everything that is wrong with them, not only the first.

A member that cannot be read leaves an empty `Slot`. Opening one is how a document that is not there makes
itself known: the reader of its kind ends, with every finding already made.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, Generic, TypeVar

from kms.policy.documents import Allowlist
from kms.policy.findings import Notes
from kms.policy.nodes import Items, Members, Node, Scalar
from kms.policy.parser import Parser, Schema, Unread, Wrong, allowlist_of, closest, list_of, nearest

T = TypeVar("T")

_NOTHING: Final = Members({}, 1, 1)


class Slot(Generic[T]):
    """A member's value, if it could be read."""

    __slots__ = ("_values",)

    def __init__(self, *values: T) -> None:
        self._values = values

    @property
    def value(self) -> T:
        """The value. Raises `Unread` if there is none."""
        if not self._values:
            raise Unread
        return self._values[0]


class Reader:
    """Reads one mapping. `what` names it in messages; `end` refuses what nobody asked for.

    All members are asked for before the first slot is opened, so that every finding is made, and so that
    `schema_of` sees all of them.
    """

    def __init__(self, node: Members, notes: Notes, what: str, *, besides: Sequence[str] = ()) -> None:
        self.node = node
        self.notes = notes
        self._what = what
        self._besides = besides
        self._schemas: dict[str, Schema | Callable[[], Schema]] = {}
        self._missing: dict[str, str] = {}

    def has(self, name: str) -> bool:
        """Say whether the member was written."""
        return name in self.node.names

    def place(self, name: str) -> Node:
        """Give the member's value for its place, or the mapping where there is none."""
        return self.node.value(name) or self.node

    def required(self, name: str, parser: Parser[T], *, why: str = "") -> Slot[T]:
        """Read a member that must be there; `end` complains if it is not."""
        self._schemas[name] = parser.schema
        return self._required(name, parser.read, why)

    def optional(self, name: str, parser: Parser[T], default: T) -> Slot[T]:
        """Read a member that may be left out; nothing written (`name:`) is not left out."""
        self._schemas[name] = parser.schema
        node = self.node.value(name)
        return Slot(default) if node is None else self._read(node, parser.read)

    def mapping(self, name: str, read: Callable[["Reader"], T], *, example: str) -> Slot[T]:
        """Read a required mapping by a reader of its own."""
        self._schemas[name] = lambda: schema_of(read)
        return self._required(name, lambda node: read(self.within(node, name, example=example)), "")

    def mapping_or(self, name: str, read: Callable[["Reader"], T], default: T, *, example: str) -> Slot[T]:
        """Read a mapping that may be left out."""
        if self.has(name):
            return self.mapping(name, read, example=example)
        self._schemas[name] = lambda: schema_of(read)
        return Slot(default)

    def within(self, node: Node, name: str, *, example: str) -> "Reader":
        """Give a reader of a mapping inside this one. Raises `Wrong`, with an example, for anything else."""
        if not isinstance(node, Members):
            found = ", not a list" if isinstance(node, Items) else ""
            raise Wrong(node, f"`{name}` must be a mapping{found}, as in `{name}: {example}`")
        return Reader(node, self.notes, f"`{name}`")

    def _required(self, name: str, read: Callable[[Node], T], why: str) -> Slot[T]:
        node = self.node.value(name)
        if node is None:
            self._missing[name] = why
            return Slot()
        return self._read(node, read)

    def _read(self, node: Node, read: Callable[[Node], T]) -> Slot[T]:
        try:
            return Slot(read(node))
        except Wrong as wrong:
            for place, message in wrong.complaints:
                self.notes.error(place, message)
        except Unread:
            pass  # a mapping inside, which has made its own findings
        return Slot()

    def listed(self, name: str, item: Parser[T], *, empty: str = "") -> Slot[tuple[T, ...]]:
        """Read a required list. `empty` is the warning that an empty one gets."""
        return self.whole_list(name, list_of(item, name), empty=empty)

    def listed_or(
        self, name: str, item: Parser[T], default: tuple[T, ...], *, empty: str = ""
    ) -> Slot[tuple[T, ...]]:
        """Read a list that may be left out."""
        return self.whole_list_or(name, list_of(item, name), default, empty=empty)

    def whole_list(self, name: str, parser: Parser[T], *, empty: str = "") -> Slot[T]:
        """Read a required list by a parser of all of it."""
        self._warn_about_list(name, empty)
        return self.required(name, parser)

    def whole_list_or(self, name: str, parser: Parser[T], default: T, *, empty: str = "") -> Slot[T]:
        """Read a list that may be left out by a parser of all of it."""
        self._warn_about_list(name, empty)
        return self.optional(name, parser, default)

    def allowlist(self, name: str, item: Parser[T], *, empty: str) -> Slot[Allowlist[T]]:
        """Read a required list, or the word ``any``."""
        return self.whole_list(name, allowlist_of(item, name), empty=empty)

    def allowlist_or_any(self, name: str, item: Parser[T], *, empty: str) -> Slot[Allowlist[T]]:
        """Read a list, or the word ``any``, which it also is when left out."""
        anything: Allowlist[T] = Allowlist(frozenset(), anything=True)
        return self.whole_list_or(name, allowlist_of(item, name), anything, empty=empty)

    def _warn_about_list(self, name: str, empty: str) -> None:
        node = self.node.value(name) if self.notes.with_warnings else None
        if not isinstance(node, Items):
            return
        if not node.items and empty:
            self.notes.warning(node, f"`{name}` is empty: {empty}")
        seen: set[object] = set()
        for item in node.items:
            if isinstance(item, Scalar) and item.value is not None:
                if item.value in seen:
                    self.notes.warning(item, f"`{item.text}` is listed twice in `{name}`")
                seen.add(item.value)

    def refuse(self, name: str, why: str) -> None:
        """Complain of a member that others of its sort have and this mapping must not."""
        self._besides = (*self._besides, name)
        if self.has(name):
            self.notes.error(self.place(name), why)

    def end(self) -> bool:
        """Refuse members that nobody asked for (field lesson 25: ignored ones are rules that do nothing).

        A missing member that one of them was meant for is not reported besides. Gives whether all are known.
        """
        known = True
        for name in self.node.names:
            if name not in self._schemas and name not in self._besides:
                known = False
                unused = [each for each in self._schemas if not self.has(each)]
                self._missing.pop(nearest(name, unused) or "", None)
                hint = closest(name, unused or list(self._schemas))
                self.notes.error(self.node.members[name].key, f"{self._what} has no `{name}`: {hint}")
        for name, why in self._missing.items():
            self.notes.error(self.node, f"`{name}` is missing from {self._what}{why and ': ' + why}")
        return known

    def schema(self) -> Schema:
        """Give the JSON Schema of what was asked for. Of an empty mapping: what is missing is required."""
        properties = {
            name: schema() if callable(schema) else schema for name, schema in self._schemas.items()
        }
        return {
            "type": "object",
            "properties": {**properties},
            "required": [*self._missing],
            "additionalProperties": False,
        }


def schema_of(read: Callable[[Reader], object]) -> Schema:
    """Give the JSON Schema of what a reader accepts, by having it read nothing."""
    reader = Reader(_NOTHING, Notes("", with_warnings=False), "")
    with suppress(Unread):
        read(reader)
    return reader.schema()
