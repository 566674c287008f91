"""What a policy file says, with the place of every word: the tree between YAML text and documents."""

from collections.abc import Iterator, Mapping, Sequence
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
    if isinstance(node, Items):
        return [to_json(item) for item in node.items]
    return {name: to_json(member.value) for name, member in node.members.items()}


class _JsonItems(Sequence[Node]):
    """Nodes of a JSON list, made when they are read: of a hundred thousand chips one at a time is alive."""

    __slots__ = ("_values",)

    def __init__(self, values: list[JsonValue]) -> None:
        self._values = values

    @override
    def __len__(self) -> int:
        return len(self._values)

    @overload
    def __getitem__(self, index: int) -> Node: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Node]: ...
    @override
    def __getitem__(self, index: int | slice) -> Node | Sequence[Node]:
        if isinstance(index, slice):
            return _JsonItems(self._values[index])
        return from_json(self._values[index])

    @override
    def __iter__(self) -> Iterator[Node]:
        return map(from_json, self._values)


def from_json(value: JsonValue) -> Node:
    """Make a tree of JSON, all at line 1, column 1: a stored revision has no places to point at."""
    if isinstance(value, str):
        return Scalar(value, value, 1, 1)
    if isinstance(value, list):
        return Items(_JsonItems(value), 1, 1)
    if isinstance(value, dict):
        members = {key: Member(Scalar(key, key, 1, 1), from_json(item)) for key, item in value.items()}
        return Members(members, 1, 1)
    return Scalar(value, str(value), 1, 1)
