"""What a policy file says, with the place of every word: the tree between YAML text and documents."""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias, overload

from typing_extensions import override

from kms.strict_json import JsonValue

ScalarValue: TypeAlias = str | int | float | bool | None


class Scalar(NamedTuple):
    """A string, number, truth value or nothing. `text` is how it was written.

    A named tuple: half a million are made of a large revision, three times as fast as a frozen dataclass.
    """

    value: ScalarValue
    text: str
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Items:
    """A list."""

    items: Sequence["Node"]
    line: int
    column: int

    def texts(self) -> list[str] | None:
        """Give the items if each of them is text."""
        if isinstance(self.items, _JsonItems):
            values = self.items.json
        else:
            values = [item.value if isinstance(item, Scalar) else None for item in self.items]
        texts = [value for value in values if isinstance(value, str)]
        return texts if len(texts) == len(values) else None


class Member(NamedTuple):
    """A key and its value."""

    key: Scalar
    value: "Node"


@dataclass(frozen=True, slots=True)
class Members:
    """A mapping with string keys, each once."""

    members: Mapping[str, Member]
    line: int
    column: int

    @property
    def names(self) -> Set[str]:
        """The keys."""
        return self.members.keys()

    def value(self, name: str) -> "Node | None":
        """Give the value of a member, if it is there."""
        member = self.members.get(name)
        return None if member is None else member.value


Node: TypeAlias = Scalar | Items | Members


@dataclass(frozen=True, slots=True)
class Source:
    """One document as written: the file that it is in, and its mapping."""

    file: str
    root: Members


def to_json(node: Node) -> JsonValue:
    """Give what was written as JSON: no defaults, nothing added."""
    if isinstance(node, Scalar):
        return node.value
    if isinstance(node, _JsonMembers):
        return node.json
    if isinstance(node, Items):
        return [to_json(item) for item in node.items]
    return {name: to_json(member.value) for name, member in node.members.items()}


class _JsonMembers(Members):
    """A JSON object, whose nodes are made when they are read."""

    __slots__ = ("json",)

    json: dict[str, JsonValue]

    def __init__(self, value: dict[str, JsonValue]) -> None:
        # The slots of a frozen class; `members` is not one of them here.
        for name, content in (("json", value), ("line", 1), ("column", 1)):
            object.__setattr__(self, name, content)

    @property
    @override
    def members(self) -> Mapping[str, Member]:
        return {name: Member(Scalar(name, name, 1, 1), from_json(value)) for name, value in self.json.items()}

    @property
    @override
    def names(self) -> Set[str]:
        return self.json.keys()

    @override
    def value(self, name: str) -> Node | None:
        return from_json(self.json[name]) if name in self.json else None


class _JsonItems(Sequence[Node]):
    """Nodes of a JSON list, made when they are read: of a hundred thousand chips one at a time is alive."""

    __slots__ = ("json",)

    def __init__(self, value: list[JsonValue]) -> None:
        self.json = value

    @override
    def __len__(self) -> int:
        return len(self.json)

    @overload
    def __getitem__(self, index: int) -> Node: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Node]: ...
    @override
    def __getitem__(self, index: int | slice) -> Node | Sequence[Node]:
        if isinstance(index, slice):
            return _JsonItems(self.json[index])
        return from_json(self.json[index])

    @override
    def __iter__(self) -> Iterator[Node]:
        return map(from_json, self.json)


def from_json(value: JsonValue) -> Node:
    """Make a tree of JSON, all at line 1, column 1: a stored revision has no places to point at."""
    if isinstance(value, str):
        return Scalar(value, value, 1, 1)
    if isinstance(value, list):
        return Items(_JsonItems(value), 1, 1)
    if isinstance(value, dict):
        return _JsonMembers(value)
    return Scalar(value, str(value), 1, 1)
