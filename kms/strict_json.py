"""JSON as strangers may send it: one meaning, or an error; and the one form of what we sign.

`parse` refuses duplicate keys, NaN and infinities, lone surrogates, bad UTF-8, numbers outside the exact
range of an IEEE double, deep nesting, and more values than anything of ours has. `Fields` then reads an
object member by member and refuses what nobody asked for. Messages name the member and never repeat its
value (field lesson 34).
"""

import json
import re
from collections.abc import Callable
from itertools import chain
from typing import Any, Final, NoReturn, TypeAlias, TypeVar

import orjson
import rfc8785

from kms.encoding import from_base64, from_hex

JsonValue: TypeAlias = "dict[str, JsonValue] | list[JsonValue] | str | int | float | bool | None"

MAX_DEPTH = 32
MAX_VALUES = 20_000
_TOKENS_OF_A_VALUE = 4  # two quotes and two of its key; or two brackets, a comma and a key
# Brackets, commas, and strings whole, so that those inside them do not count. A string without an end runs to
# the end of the text: looking for its end again and again would be quadratic.
_STRUCTURE = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[\[\]{},]', re.DOTALL)
_MAX_EXACT_INTEGER = 2**53 - 1  # RFC 7493 (I-JSON) section 2.2
_MAX_INTEGER_DIGITS = 16
_FLAT: Final = frozenset({str, bool, int, type(None)})
_PLAIN: Final = _FLAT | {dict, list}

T = TypeVar("T")


_COMPACT = json.JSONEncoder(separators=(",", ":"))
_NOTHING_SPECIAL: Final = (
    orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS
)
_CANONICAL: Final = orjson.OPT_SORT_KEYS | orjson.OPT_STRICT_INTEGER


class JsonError(ValueError):
    """The text is not acceptable JSON, or a member is not what it must be. Never repeats its input."""


def compact_json(document: object) -> bytes:
    """Give JSON without spaces, members in their order, ASCII only: the form of the texts that we sign."""
    try:
        encoded = orjson.dumps(document, option=_NOTHING_SPECIAL)
    except TypeError:
        return _COMPACT.encode(document).encode("ascii")
    # The two differ where something has to be escaped for ASCII: the slower one does that.
    return encoded if encoded.isascii() else _COMPACT.encode(document).encode("ascii")


def canonical_json(document: "dict[str, JsonValue]") -> bytes:
    """Give the RFC 8785 form of a document whose names are ASCII and whose numbers are integers.

    For such documents, and every one that we write is one, it is what `orjson` gives with its names in
    order, in a fraction of the time that `rfc8785` takes. What is no such document is left to `rfc8785`,
    which knows the order of other names and the forms of other numbers.

    Raises:
        ValueError: it has no canonical form: a lone surrogate, NaN, an integer beyond 2^53 - 1 either way.

    """
    if _is_plain(document):
        try:
            encoded = orjson.dumps(document, option=_CANONICAL)
        except orjson.JSONEncodeError:  # rfc8785 says what it has no form for
            return rfc8785.dumps(document)
        # Without a byte above 127 all names are ASCII. Else that is looked at, for it hardly ever happens.
        if encoded.isascii() or _has_ascii_names(document):
            return encoded
    return rfc8785.dumps(document)


def dump_json(document: object) -> bytes:
    """Give JSON without spaces, members in their order, in UTF-8: for answers and log lines. Fast.

    Raises:
        TypeError: it holds something that has no JSON, or a lone surrogate.

    """
    return orjson.dumps(document, option=_NOTHING_SPECIAL)


def _is_plain(value: Any) -> bool:
    """Say whether an object or array holds nothing but such, texts, truth values, nulls and integers.

    Most of what a release writes is one array of flat objects, its checks: so both loops are left to C.
    """
    items = value.values() if isinstance(value, dict) else value
    kinds = set(map(type, items))
    if kinds <= _FLAT:
        return True
    if kinds == {dict} and _FLAT.issuperset(map(type, chain.from_iterable(map(dict.values, items)))):
        return True
    return kinds <= _PLAIN and all(_is_plain(each) for each in items if type(each) not in _FLAT)


def _has_ascii_names(value: object) -> bool:
    if isinstance(value, dict):
        return all(name.isascii() and _has_ascii_names(member) for name, member in value.items())
    return not isinstance(value, list) or all(map(_has_ascii_names, value))


def parse(data: bytes | bytearray, *, most_values: int = MAX_VALUES, long_texts: bool = False) -> JsonValue:
    """Parse UTF-8 JSON strictly. With `long_texts`, what stands inside strings does not count as values.

    Raises:
        JsonError: not JSON, duplicate keys, NaN, non-UTF-8, nesting beyond `MAX_DEPTH`, or more than
            `most_values` values.

    """
    _refuse_size(data, most_values, long_texts=long_texts)
    try:
        value: JsonValue = _STRICT.decode(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise JsonError("not UTF-8") from None
    except json.JSONDecodeError as error:
        raise JsonError(f"not JSON (at character {error.pos})") from None
    except RecursionError:
        raise JsonError("nested too deeply") from None
    if b"\\u" in data:
        # Only an escape can make one: they have no UTF-8 of their own.
        _refuse_surrogates(value)
    return value


def parse_object(data: bytes | bytearray) -> dict[str, JsonValue]:
    """Parse strictly; the top must be an object."""
    value = parse(data)
    if not isinstance(value, dict):
        raise JsonError("not a JSON object")
    return value


def _unique(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise JsonError("a key appears twice")
    return members


def _no_constant(_: str) -> NoReturn:
    raise JsonError("NaN and Infinity are not JSON")


def _exact_integer(text: str) -> int:
    # Bounded before int(): Python's own limit on digits would raise from inside the parser.
    if len(text.lstrip("-")) > _MAX_INTEGER_DIGITS or abs(int(text)) > _MAX_EXACT_INTEGER:
        raise JsonError("an integer beyond 2^53 - 1")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if value in {float("inf"), float("-inf")}:
        raise JsonError("a number beyond the range of a double")
    return value


_STRICT: Final = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=_exact_integer, parse_float=_finite
)


def _refuse_size(data: bytes | bytearray, most_values: int, *, long_texts: bool) -> None:
    """Refuse deep nesting before the parser recurses, and many values before it builds them.

    A body of a mebibyte can hold half a million values, which would keep the event loop for as long as a
    thousand honest requests.
    """
    brackets = data.count(b"[") + data.count(b"{")
    # What is no longer than that cannot have more, so a usual body is not searched for them.
    if (
        not long_texts
        and len(data) > most_values
        and (brackets + data.count(b",") > most_values or data.count(b'"') > _TOKENS_OF_A_VALUE * most_values)
    ):
        raise JsonError("too many values")
    if brackets <= MAX_DEPTH and not long_texts:
        return
    depth = 0
    for count, token in enumerate(_STRUCTURE.finditer(data)):
        if count >= _TOKENS_OF_A_VALUE * most_values:
            raise JsonError("too many values")
        character = data[token.start()]
        if character in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise JsonError("nested too deeply")
        elif character in b"]}":
            depth -= 1


def _refuse_surrogates(value: JsonValue) -> None:
    """Refuse lone surrogates: they have no UTF-8 form, so nothing downstream could hash or store them."""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise JsonError("a lone surrogate") from None
    elif isinstance(value, list):
        for item in value:
            _refuse_surrogates(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            _refuse_surrogates(key)
            _refuse_surrogates(item)


class Fields:
    """Reads a JSON object once, member by member; `end` refuses what was not asked for.

    `error` makes the exception to raise from a message, so that each edge gets its own type.
    """

    def __init__(self, value: JsonValue, where: str, error: Callable[[str], Exception] = JsonError) -> None:
        self._where = where
        self._error = error
        if not isinstance(value, dict):
            raise error(f"{where} must be an object")
        self._members: dict[str, JsonValue] = dict(value)

    def fail(self, message: str) -> NoReturn:
        """Raise the edge's error about this object."""
        raise self._error(f"{self._where}: {message}")

    def has(self, name: str) -> bool:
        """Say whether the member is present and not yet read."""
        return name in self._members

    def take(self, name: str) -> JsonValue:
        """Read a required member of any type."""
        if name not in self._members:
            self.fail(f"`{name}` is missing")
        return self._members.pop(name)

    def text(self, name: str, *, at_most: int = 1 << 20) -> str:
        """Read a required string of at most `at_most` characters."""
        value: str = self._typed(name, str, "a string", at_most)
        return value

    def integer(self, name: str, *, minimum: int = 0, maximum: int = _MAX_EXACT_INTEGER) -> int:
        """Read a required integer within bounds; `true` is not 1, and 1.0 is not 1."""
        value = self.take(name)
        if type(value) is not int:
            self.fail(f"`{name}` must be an integer")
        if not minimum <= value <= maximum:
            self.fail(f"`{name}` must be from {minimum} to {maximum}")
        return value

    def boolean(self, name: str) -> bool:
        """Read a required `true` or `false`."""
        value: bool = self._typed(name, bool, "true or false")
        return value

    def nullable(self, name: str, read: Callable[[str], T]) -> T | None:
        """Read a required member that may be null; `read` is one of these methods."""
        if self._members.get(name, ...) is not None:
            return read(name)
        del self._members[name]
        return None

    def object(self, name: str) -> "Fields":
        """Read a required object."""
        return Fields(self.take(name), f"{self._where}.{name}", self._error)

    def members(self, name: str) -> dict[str, JsonValue]:
        """Read a required object without looking into it."""
        value: dict[str, JsonValue] = self._typed(name, dict, "an object", MAX_VALUES)
        return value

    def array(self, name: str, *, at_least: int = 0, at_most: int) -> list[JsonValue]:
        """Read a required array of `at_least` to `at_most` items."""
        value: list[JsonValue] = self._typed(name, list, "an array", at_most)
        if len(value) < at_least:
            self.fail(f"`{name}` must have at least {at_least} item(s)")
        return value

    def texts(self, name: str, *, at_most: int) -> tuple[str, ...]:
        """Read a required array of at most `at_most` strings."""
        values = self.array(name, at_most=at_most)
        return tuple(
            value if isinstance(value, str) else self.fail(f"`{name}` must be texts") for value in values
        )

    def base64(self, name: str, *, at_most: int) -> bytes:
        """Read a required base64url (or base64) string of at most `at_most` decoded bytes."""
        # 4/3 and padding: refuse long texts before decoding them.
        text = self.text(name, at_most=at_most // 3 * 4 + 8)
        data = self.convert(name, text, from_base64)
        if len(data) > at_most:
            self.fail(f"`{name}` is longer than {at_most} bytes")
        return data

    def hex(self, name: str, kind: Callable[[bytes], T]) -> T:
        """Read a required lowercase hex string as a length-checked type."""
        text = self.text(name, at_most=1024)
        return self.convert(name, text, lambda value: kind(from_hex(value)))

    def convert(self, name: str, text: str, kind: Callable[[str], T]) -> T:
        """Apply a converter that raises ValueError, and say which member was wrong without its value."""
        try:
            return kind(text)
        except ValueError as error:
            self.fail(f"`{name}`: {error}")

    def end(self) -> None:
        """Refuse members that nobody asked for (their names are the sender's, so they are not repeated)."""
        if self._members:
            self.fail(f"{len(self._members)} unknown member(s)")

    def _typed(self, name: str, kind: type[Any], wanted: str, at_most: int | None = None) -> Any:
        value = self.take(name)
        if not isinstance(value, kind):
            self.fail(f"`{name}` must be {wanted}")
        if at_most is not None and len(value) > at_most:
            self.fail(f"`{name}` is too long")
        return value
