"""Parsers of single values, each with a helpful sentence for what it refuses."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, TypeVar

from kms.identifiers import ChipId, FixedBytes
from kms.policy.nodes import Items, Members, Node, Scalar
from kms.policy.parser import Parser, Wrong, closest, pattern
from kms.policy.yaml_scalars import AmbiguousScalar, resolve

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+:/-]{0,127}")
_NOT_A_NAME: Final = re.compile(r"any|(?:sha256:)?[0-9a-f]{64}|[0-9a-f]{128}")
_TIME: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?(?:Z|\+00:00)"
)
_MASK: Final = re.compile(r"0x[0-9a-f]{1,16}")
_NO_HEX: Final = re.compile(r"[^0-9a-f]")
_ALGORITHM: Final = re.compile(r"sha(?:256|384|512):")
_MAX_TEXT: Final = 4096
# What people write for the words of a choice.
_NO: Final = frozenset({"no", "off", "false", "deny", "disable", "disabled", "never", "none"})
_YES: Final = frozenset({"yes", "on", "true", "enable", "enabled", "always"})
_MEANT: Final = {"forbid": _NO, "allow": _YES, "any": _NO, "require": _YES}

F = TypeVar("F", bound=FixedBytes)
E = TypeVar("E", bound=StrEnum)
T = TypeVar("T")


def read_text(node: Node, *, at_most: int = _MAX_TEXT) -> str:
    """Read a string. A plain scalar that YAML takes for something else has to be quoted."""
    if not isinstance(node, Scalar):
        raise Wrong(node, f"must be text, not a {'list' if isinstance(node, Items) else _mapping(node)}")
    if isinstance(node.value, str):
        if len(node.value) > at_most:
            raise Wrong(node, f"longer than {at_most} characters")
        return node.value
    if node.value is None:
        raise Wrong(
            node,
            "a value is missing here" if not node.text else f"YAML reads `{node.text}` as nothing: quote it",
        )
    what = "a truth value" if isinstance(node.value, bool) else "a number"
    raise Wrong(node, f'YAML reads `{node.text}` as {what}: quote it ("{node.text}")')


def _mapping(node: Members) -> str:
    """Say "mapping", and where one `: ` made it, how to write it as text."""
    for name, member in node.members.items():
        if len(node.members) == 1 and isinstance(member.value, Scalar):
            return f"mapping: `{name}: ` makes one, leave out the space or quote all of it"
    return "mapping"


text: Final = Parser(read_text, {"type": "string", "maxLength": _MAX_TEXT})


def integer(minimum: int, maximum: int, what: str) -> Parser[int]:
    """Make a parser of integers within bounds; a quoted number is text. `what` is as in "a level"."""

    def read(node: Node) -> int:
        if not isinstance(node, Scalar):
            raise Wrong(node, f"{what} is an integer")
        if type(node.value) is not int:
            is_text = isinstance(node.value, str)
            hint = ": leave the quotes out" if is_text and _is_integer(node.text) else ""
            raise Wrong(node, f"{what} is an integer; `{node.text}` is {'text' if is_text else 'not'}{hint}")
        if not minimum <= node.value <= maximum:
            raise Wrong(node, f"{what} is from {minimum} to {maximum}, not {node.text}")
        return node.value

    return Parser(read, {"type": "integer", "minimum": minimum, "maximum": maximum})


def _is_integer(text: str) -> bool:
    try:
        return type(resolve(text)) is int
    except AmbiguousScalar:
        return False


def _read_name(node: Node) -> str:
    value = read_text(node)
    if not _NAME.fullmatch(value):
        meant = re.sub(r"[^A-Za-z0-9._+:/-]+", "-", value).strip("-")
        hint = f"; did you mean `{meant}`?" if _NAME.fullmatch(meant) else ""
        raise Wrong(
            node, f"a name is 1 to 128 of A-Z a-z 0-9 . _ + : / - and begins with a letter or digit{hint}"
        )
    if _NOT_A_NAME.fullmatch(value):
        raise Wrong(node, "a name that reads as a digest, a chip id or `any` could be taken for one")
    return value


# A document's name: ASCII, at most 128 characters, and nothing that reads as a digest.
name: Final = Parser(_read_name, pattern(_NAME, but=_NOT_A_NAME.pattern))


def hex_of(kind: type[F], what: str) -> Parser[F]:
    """Make a parser of lowercase hex of a length-checked type; `what` is as in "a compose hash"."""
    lengths = [2 * length for length in sorted(kind.lengths)]
    wanted = " or ".join(map(str, lengths))

    def read(node: Node) -> F:
        value = read_text(node)
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
        if algorithm := _ALGORITHM.match(value):
            return f"{what} is written without `{algorithm[0]}`"
        if other := _NO_HEX.search(value):
            found = f"`{other[0]}`, character {other.start() + 1}, is none"
            if not _NO_HEX.search(value.lower()):
                found = "write it in lowercase"
            return f"{what} is {wanted} lowercase hex digits: {found}"
        if len(value) not in lengths:
            return f"{what} is {wanted} hex digits, this has {len(value)}"
        return f"{what} must not be all zero"

    digits = re.compile("|".join(f"[0-9a-f]{{{length}}}" for length in lengths))
    return Parser(read, pattern(digits, but="" if kind.may_be_zero else "0+"))


_chip_id: Final = hex_of(ChipId, "a chip id")
_OTHER_CHIP_IDS: Final = {
    16: "after Turin's 8 bytes write 56 zero bytes",
    64: "this has 64, as a hash of one has: write CHIP_ID itself",
}


def _read_chip_id(node: Node) -> ChipId:
    """Read a CHIP_ID: always 64 bytes, and never the hash of one (field lesson 23)."""
    try:
        return _chip_id.read(node)
    except Wrong:
        value = read_text(node)
        if not _NO_HEX.search(value) and len(value) in _OTHER_CHIP_IDS:
            advice = f"a chip id is 128 hex digits: {_OTHER_CHIP_IDS[len(value)]}"
            raise Wrong(node, advice) from None
        raise


chip_id: Final = Parser(_read_chip_id, _chip_id.schema)


def one_of(kind: type[E], what: str) -> Parser[E]:
    """Make a parser of an enumeration's values; `what` is as in "a binding"."""
    return word({member.value: member for member in kind}, what)


def word(words: Mapping[str, T], what: str) -> Parser[T]:
    """Make a parser of one of many words, each with its meaning; `what` is as in "a binding"."""

    def read(node: Node) -> T:
        value = read_text(node)
        if value not in words:
            raise Wrong(node, f"`{value}` is not {what}: {closest(value, list(words))}")
        return words[value]

    return Parser(read, {"enum": [*words]})


def choice(words: Mapping[str, T], what: str) -> Parser[T]:
    """Make a parser of the few words that one member takes, each with its meaning."""

    def read(node: Node) -> T:
        # Not `read_text`: "quote it" would be the wrong advice for `smt: false`.
        value = node.value if isinstance(node, Scalar) else None
        if not isinstance(value, str) or value not in words:
            shown = f"`{node.text}`{hint(node.text.lower())}" if isinstance(node, Scalar) else "a collection"
            raise Wrong(node, f"{what} is {' or '.join(words)}, not {shown}")
        return words[value]

    def hint(written: str) -> str:
        meant = [each for each in words if written in _MEANT[each]]
        return f": did you mean `{meant[0]}`?" if meant else ""

    return Parser(read, {"enum": [*words]})


def _read_mask(node: Node) -> int:
    value = read_text(node)
    if not _MASK.fullmatch(value):
        raise Wrong(node, 'a mask is written as text, 0x and 1 to 16 lowercase hex digits: "0x1"')
    return int(value, 16)


# ``0x`` text of at most 64 bits; unquoted it would be a number to YAML.
mask: Final = Parser(_read_mask, pattern(_MASK))


def _read_time(node: Node) -> datetime:
    value = read_text(node)
    if not _TIME.fullmatch(value):
        raise Wrong(node, f"a time is RFC 3339 in UTC, {_example_of_time(value)}")
    try:
        return datetime.fromisoformat(value).astimezone(UTC)
    except (ValueError, OverflowError):
        raise Wrong(node, "there is no such day or time") from None


def _example_of_time(value: str) -> str:
    """Give the time that was probably meant, where that can be told."""
    try:
        written = datetime.fromisoformat(value)
        meant = written.replace(tzinfo=written.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):
        return "as in 2027-01-31T00:00:00Z"
    return f"probably {meant:%Y-%m-%dT%H:%M:%SZ}"


# An RFC 3339 time in UTC.
time: Final = Parser(_read_time, pattern(_TIME))
