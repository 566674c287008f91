"""Parsers of single values: node in, checked value out, `Wrong` with a helpful sentence otherwise."""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, TypeVar

from kms.identifiers import ChipId, FixedBytes
from kms.policy.nodes import Items, Node, Scalar
from kms.policy.reader import Wrong, closest

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+:/-]{0,127}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}|[0-9a-f]{128}")
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?(?:Z|\+00:00)", re.ASCII)
_MASK: Final = re.compile(r"0x[0-9a-f]{1,16}")
_HEX: Final = re.compile(r"[0-9a-f]*")
_MAX_TEXT: Final = 4096

F = TypeVar("F", bound=FixedBytes)
E = TypeVar("E", bound=StrEnum)
T = TypeVar("T")


def text(node: Node) -> str:
    """Read a string. A plain scalar that YAML takes for something else has to be quoted."""
    if not isinstance(node, Scalar):
        raise Wrong(node, f"must be text, not a {'list' if isinstance(node, Items) else 'mapping'}")
    if isinstance(node.value, str):
        if len(node.value) > _MAX_TEXT:
            raise Wrong(node, f"longer than {_MAX_TEXT} characters")
        return node.value
    if node.value is None:
        raise Wrong(
            node, "has no value" if not node.text else f"YAML reads `{node.text}` as nothing: quote it"
        )
    what = "a truth value" if isinstance(node.value, bool) else "a number"
    raise Wrong(node, f'YAML reads `{node.text}` as {what}: quote it ("{node.text}")')


def integer(minimum: int, maximum: int) -> Callable[[Node], int]:
    """Make a parser of integers within bounds; a quoted number is text."""

    def parse(node: Node) -> int:
        if not isinstance(node, Scalar):
            raise Wrong(node, "must be an integer")
        if type(node.value) is not int:
            is_text = isinstance(node.value, str)
            hint = ": leave the quotes out" if is_text and node.text.isdecimal() else ""
            raise Wrong(node, f"must be an integer; `{node.text}` is {'text' if is_text else 'not'}{hint}")
        if not minimum <= node.value <= maximum:
            raise Wrong(node, f"must be from {minimum} to {maximum}, not {node.text}")
        return node.value

    return parse


def name(node: Node) -> str:
    """Read a document's name: ASCII, at most 128 characters, and nothing that reads as a digest."""
    value = text(node)
    if not _NAME.fullmatch(value):
        raise Wrong(node, "a name is 1 to 128 of A-Z a-z 0-9 . _ + : / - and begins with a letter or digit")
    if value == "any" or (len(value) >= 64 and _DIGEST.fullmatch(value)):
        raise Wrong(node, "a name that reads as a digest, a chip id or `any` could be taken for one")
    return value


def hex_of(kind: type[F], what: str) -> Callable[[Node], F]:
    """Make a parser of lowercase hex of a length-checked type; `what` is as in "a compose hash"."""
    lengths = sorted(kind.lengths)
    wanted = " or ".join(str(2 * length) for length in lengths)

    def parse(node: Node) -> F:
        value = text(node)
        try:
            data = bytes.fromhex(value)
            if data.hex() == value:
                return kind(data)
        except ValueError:
            pass
        raise Wrong(node, complaint(value))

    def complaint(value: str) -> str:
        if value.startswith("0x"):
            return f"{what} is written without 0x"
        if not _HEX.fullmatch(value):
            upper = _HEX.fullmatch(value.lower())
            found = "write it in lowercase" if upper else "there are other characters in it"
            return f"{what} is {wanted} lowercase hex digits: {found}"
        if len(value) % 2 or len(value) // 2 not in kind.lengths:
            return f"{what} is {wanted} hex digits, this has {len(value)}"
        return f"{what} must not be all zero"

    return parse


_chip_id: Final = hex_of(ChipId, "a chip id")


def chip_id(node: Node) -> ChipId:
    """Read a CHIP_ID: always 64 bytes, and never the hash of one (field lesson 23)."""
    try:
        return _chip_id(node)
    except Wrong:
        if len(text(node)) == 16:
            advice = "a chip id is 128 hex digits: after Turin's 8 bytes write 56 zero bytes"
            raise Wrong(node, advice) from None
        raise


def one_of(kind: type[E], what: str) -> Callable[[Node], E]:
    """Make a parser of an enumeration's values; `what` is as in "a binding"."""
    values = [member.value for member in kind]

    def parse(node: Node) -> E:
        value = text(node)
        if value not in values:
            raise Wrong(node, f"`{value}` is not {what}: {closest(value, values)}")
        return kind(value)

    return parse


def choice(words: Mapping[str, T], what: str) -> Callable[[Node], T]:
    """Make a parser of the words that one member takes, each with its meaning."""

    def parse(node: Node) -> T:
        # Not `text`: "quote it" would be the wrong advice for `smt: false`.
        value = node.value if isinstance(node, Scalar) else None
        if not isinstance(value, str) or value not in words:
            shown = f"`{node.text}`" if isinstance(node, Scalar) else "a collection"
            raise Wrong(node, f"{what} is {' or '.join(words)}, not {shown}")
        return words[value]

    return parse


def mask(node: Node) -> int:
    """Read ``0x`` text of at most 64 bits; unquoted it would be a number to YAML."""
    value = text(node)
    if not _MASK.fullmatch(value):
        raise Wrong(node, 'a mask is written as text, 0x and 1 to 16 lowercase hex digits: "0x1"')
    return int(value, 16)


def time(node: Node) -> datetime:
    """Read an RFC 3339 time in UTC."""
    value = text(node)
    if not _TIME.fullmatch(value):
        raise Wrong(node, "a time is RFC 3339 in UTC, as in 2027-01-31T00:00:00Z")
    try:
        return datetime.fromisoformat(value).astimezone(UTC)
    except (ValueError, OverflowError):
        raise Wrong(node, "there is no such day or time") from None
