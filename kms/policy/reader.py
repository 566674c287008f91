"""Reads a document's members one by one and finds everything that is wrong with them, not only the first.

A member that cannot be read leaves an empty `Slot`. Opening one is how a document that is not there makes
itself known: the reader of its kind ends, with every finding already made.
"""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Final, Generic, TypeVar

from kms.policy.documents import Allowlist
from kms.policy.findings import Notes
from kms.policy.nodes import Items, Members, Node, Scalar

ANY: Final = "any"

T = TypeVar("T")


class Wrong(Exception):
    """A value is wrong: one or more places, each with a sentence for the operator."""

    def __init__(self, node: Node, message: str) -> None:
        super().__init__(message)
        self.complaints: list[tuple[Node, str]] = [(node, message)]


class Unread(Exception):
    """The document has a member that could not be read. The finding was made."""


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


def closest(word: str, known: Sequence[str]) -> str:
    """Give a question that names the known word nearest to `word`, or all of them where none is near."""
    near = get_close_matches(word.lower().replace("_", "-"), known, n=1, cutoff=0.6)
    near = near or get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f"did you mean `{near[0]}`?"
    return f"known: {', '.join(known) or 'none'}"


class Reader:
    """Reads one mapping. `what` names it in messages; `end` refuses what nobody asked for."""

    def __init__(self, node: Members, notes: Notes, what: str, *, besides: Sequence[str] = ()) -> None:
        self.node = node
        self.notes = notes
        self._what = what
        self._known = list(besides)

    def has(self, name: str) -> bool:
        """Say whether the member was written."""
        return name in self.node.names

    def place(self, name: str) -> Node:
        """Give the member's value for its place, or the mapping where there is none."""
        return self.node.value(name) or self.node

    def within(self, node: Node, what: str) -> "Reader":
        """Give a reader of a mapping inside this one. Raises `Wrong` for anything else."""
        if not isinstance(node, Members):
            raise Wrong(node, f"{what} must be a mapping")
        return Reader(node, self.notes, what)

    def required(self, name: str, parse: Callable[[Node], T], *, why: str = "") -> Slot[T]:
        """Read a member that must be there."""
        self._known.append(name)
        node = self.node.value(name)
        if node is None:
            self.notes.error(self.node, f"`{name}` is missing from {self._what}{why and ': ' + why}")
            return Slot()
        return self._parsed(node, parse)

    def optional(self, name: str, parse: Callable[[Node], T], default: T) -> Slot[T]:
        """Read a member that may be left out; nothing written (`name:`) is not left out."""
        self._known.append(name)
        node = self.node.value(name)
        return Slot(default) if node is None else self._parsed(node, parse)

    def _parsed(self, node: Node, parse: Callable[[Node], T]) -> Slot[T]:
        try:
            return Slot(parse(node))
        except Wrong as wrong:
            for place, message in wrong.complaints:
                self.notes.error(place, message)
        except Unread:
            pass  # a mapping inside, which has made its own findings
        return Slot()

    def listed(self, name: str, parse: Callable[[Node], T], *, empty: str = "") -> Slot[tuple[T, ...]]:
        """Read a required list. `empty` is the warning that an empty one gets."""
        return self.whole_list(name, list_of(parse, name), empty=empty)

    def whole_list(self, name: str, parse: Callable[[Node], T], *, empty: str = "") -> Slot[T]:
        """Read a required list by a parser of all of it."""
        slot = self.required(name, parse)
        self._warn_about_list(name, empty)
        return slot

    def listed_or(
        self, name: str, parse: Callable[[Node], T], default: tuple[T, ...], *, empty: str = ""
    ) -> Slot[tuple[T, ...]]:
        """Read a list that may be left out."""
        slot = self.optional(name, list_of(parse, name), default)
        self._warn_about_list(name, empty)
        return slot

    def allowlist(self, name: str, parse: Callable[[Node], T], *, empty: str) -> Slot[Allowlist[T]]:
        """Read a required list, or the word ``any``."""
        return self.whole_list(name, _allowlist_of(parse, name), empty=empty)

    def allowlist_or_any(self, name: str, parse: Callable[[Node], T], *, empty: str) -> Slot[Allowlist[T]]:
        """Read a list, or the word ``any``, which it also is when left out."""
        if not self.has(name):
            self._known.append(name)
            return Slot(Allowlist(frozenset(), anything=True))
        return self.allowlist(name, parse, empty=empty)

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

    def end(self) -> None:
        """Refuse members that nobody asked for (field lesson 25: ignored ones are rules that do nothing)."""
        for name in self.node.names:
            if name not in self._known:
                unused = [known for known in self._known if not self.has(known)]
                hint = closest(name, unused or self._known)
                self.notes.error(self.node.members[name].key, f"{self._what} has no `{name}`: {hint}")


def _allowlist_of(parse: Callable[[Node], T], name: str) -> Callable[[Node], Allowlist[T]]:
    parse_list = list_of(parse, name)

    def parse_allowlist(node: Node) -> Allowlist[T]:
        if isinstance(node, Scalar) and node.value == ANY:
            return Allowlist(frozenset(), anything=True)
        return Allowlist(frozenset(parse_list(node)))

    return parse_allowlist


def list_of(parse: Callable[[Node], T], name: str) -> Callable[[Node], tuple[T, ...]]:
    """Make a parser of lists from one of items; it complains about every item that is wrong."""

    def parse_list(node: Node) -> tuple[T, ...]:
        if not isinstance(node, Items):
            if isinstance(node, Scalar) and node.value == ANY:
                raise Wrong(node, f"`any` is not legal for `{name}`: list what is allowed")
            raise Wrong(node, f"`{name}` must be a list, as in `{name}: [...]`")
        values: list[T] = []
        wrong: Wrong | None = None
        for item in node.items:
            try:
                if isinstance(item, Scalar) and item.value == ANY:
                    raise Wrong(
                        item, f"`any` is not an item: where it is legal it replaces the list `{name}`"
                    )
                values.append(parse(item))
            except Wrong as error:
                if wrong is None:
                    wrong = error
                else:
                    wrong.complaints += error.complaints
        if wrong is not None:
            raise wrong
        return tuple(values)

    return parse_list
