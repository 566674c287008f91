"""A parser of one value: node in, checked value out, and the JSON Schema of what it accepts beside it.

The schema that editors use is made of these (`kms.policy.json_schema`), so it cannot say other than lint.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final, Generic, TypeAlias, TypeVar

from kms.policy.documents import Allowlist
from kms.policy.nodes import Items, Node, Scalar
from kms.strict_json import JsonValue

ANY: Final = "any"

Schema: TypeAlias = dict[str, JsonValue]
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Wrong(Exception):
    """A value is wrong: one or more places, each with a sentence for the operator."""

    def __init__(self, node: Node, message: str) -> None:
        super().__init__(message)
        self.complaints: list[tuple[Node, str]] = [(node, message)]


class Unread(Exception):
    """A mapping has a member that could not be read. The finding was made."""


@dataclass(frozen=True, slots=True)
class Parser(Generic[T_co]):
    """`read` gives the value of a node, or raises `Wrong` or `Unread`; `schema` is draft 2020-12.

    What the schema refuses, `read` refuses. `read` may refuse more: not every rule can be said in a schema.
    """

    read: Callable[[Node], T_co]
    schema: Schema


def pattern(regex: re.Pattern[str], *, but: str = "") -> Schema:
    """Give the schema of text that all of `regex` matches, except what all of the pattern `but` does."""
    exception = f"(?!(?:{but})$)" if but else ""
    return {"type": "string", "pattern": f"^{exception}(?:{regex.pattern})$"}


def nearest(word: str, known: Sequence[str]) -> str | None:
    """Give the known word that was probably meant by `word`, if any is near."""
    near = get_close_matches(word.lower().replace("_", "-"), known, n=1, cutoff=0.6)
    near = near or get_close_matches(word, known, n=1, cutoff=0.6)
    return near[0] if near else None


def closest(word: str, known: Sequence[str]) -> str:
    """Give a question that names the known word nearest to `word`, or all of them where none is near."""
    near = nearest(word, known)
    return f"known: {', '.join(known) or 'none'}" if near is None else f"did you mean `{near}`?"


def allowlist_of(item: Parser[T], name: str) -> Parser[Allowlist[T]]:
    """Make a parser of a list, or the word ``any`` in its place."""
    whole = list_of(item, name)

    def read(node: Node) -> Allowlist[T]:
        if isinstance(node, Scalar) and node.value == ANY:
            return Allowlist(frozenset(), anything=True)
        return Allowlist(frozenset(whole.read(node)))

    return Parser(read, {"anyOf": [{"const": ANY}, whole.schema]})


def list_of(item: Parser[T], name: str) -> Parser[tuple[T, ...]]:
    """Make a parser of lists from one of items; it complains about every item that is wrong."""

    def read(node: Node) -> tuple[T, ...]:
        if not isinstance(node, Items):
            raise Wrong(node, _not_a_list(node, name))
        values: list[T] = []
        wrong: Wrong | Unread | None = None
        for each in node.items:
            try:
                if isinstance(each, Scalar) and each.value == ANY:
                    raise Wrong(
                        each, f"`any` is not an item: where it is legal it replaces the list `{name}`"
                    )
                values.append(item.read(each))
            except Wrong as error:
                if isinstance(wrong, Wrong):
                    wrong.complaints += error.complaints
                else:
                    wrong = error
            except Unread as error:
                wrong = wrong or error
        if wrong is not None:
            raise wrong
        return tuple(values)

    return Parser(read, {"type": "array", "items": item.schema})


def _not_a_list(node: Node, name: str) -> str:
    if isinstance(node, Scalar) and node.value == ANY:
        return f"`any` is not legal for `{name}`: list what is allowed"
    written = node.text if isinstance(node, Scalar) else ""
    return f"`{name}` must be a list, as in `{name}: [{written or '...'}]`"
