"""Strict DER (ITU-T X.690, section 10): one way to write everything, and anything else is refused.

Only what certificates need: tags of one byte, definite lengths in their shortest form. The work is linear in
the bytes, and nothing recurses: who reads goes down one level at a time.
"""

from datetime import UTC, datetime
from typing import Final, NamedTuple

BOOLEAN: Final = 0x01
INTEGER: Final = 0x02
BIT_STRING: Final = 0x03
OCTET_STRING: Final = 0x04
OBJECT_IDENTIFIER: Final = 0x06
UTF8_STRING: Final = 0x0C
PRINTABLE_STRING: Final = 0x13
UTC_TIME: Final = 0x17
GENERALIZED_TIME: Final = 0x18
SEQUENCE: Final = 0x30
SET: Final = 0x31

_LONG_TAG: Final = 0x1F  # the low bits that announce a tag of several bytes
_LONGEST_LENGTH: Final = 4  # bytes of a length: more than anything here can hold
_LONGEST_OID: Final = 32  # bytes; AMD's have 10 to 12
_LONGEST_ARC: Final = 4  # bytes of one number in an OID
_FIRST_GENERALIZED_YEAR: Final = 2050  # RFC 5280, section 4.1.2.5: UTCTime until then
_PRINTABLE: Final = frozenset(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 '()+,-./:=?"
)  # X.680, section 41.4


class DerError(ValueError):
    """These bytes are not the DER that was expected. The message repeats none of them."""


class Element(NamedTuple):
    """One element: its tag byte, its content, and all of it, header included."""

    tag: int
    content: bytes
    whole: bytes


def elements(content: bytes) -> list[Element]:
    """Split the content of a constructed element, or a whole file, into its elements. Raises `DerError`."""
    found = []
    offset = 0
    while offset < len(content):
        start, end = _span(content, offset)
        found.append(Element(content[offset], content[start:end], content[offset:end]))
        offset = end
    return found


def only(content: bytes, tag: int) -> Element:
    """Give the one element that the content is, of this tag. Raises `DerError`."""
    found = elements(content)
    if len(found) != 1:
        raise DerError("not exactly one element")
    return expect(found[0], tag)


def expect(element: Element, tag: int) -> Element:
    """Give the element back if it has this tag. Raises `DerError`."""
    if element.tag != tag:
        raise DerError(f"tag {element.tag:#04x} where {tag:#04x} belongs")
    return element


def boolean_true(element: Element) -> bool:
    """Read a BOOLEAN that may only say TRUE: DER leaves the default FALSE out. Raises `DerError`."""
    if expect(element, BOOLEAN).content != b"\xff":
        raise DerError("a BOOLEAN that is not TRUE")
    return True


def unsigned(element: Element, *, at_most: int) -> int:
    """Read an INTEGER that is not negative, of at most this many bytes. Raises `DerError`."""
    content = expect(element, INTEGER).content
    if not 1 <= len(content) <= at_most or content[0] >= 0x80:
        raise DerError("an INTEGER that is negative, empty or too long")
    if len(content) > 1 and content[0] == 0 and content[1] < 0x80:
        raise DerError("an INTEGER with a needless zero")
    return int.from_bytes(content, "big")


def whole_bytes(element: Element) -> bytes:
    """Read a BIT STRING of whole bytes. Raises `DerError`."""
    content = expect(element, BIT_STRING).content
    if content[:1] != b"\x00":
        raise DerError("a BIT STRING that is not whole bytes")
    return content[1:]


def object_identifier(element: Element) -> str:
    """Read an OBJECT IDENTIFIER as dotted numbers. Raises `DerError`."""
    content = expect(element, OBJECT_IDENTIFIER).content
    if not 1 <= len(content) <= _LONGEST_OID or content[-1] >= 0x80:
        raise DerError("an OBJECT IDENTIFIER that is empty, too long or cut short")
    numbers: list[int] = []
    number = length = 0
    for byte in content:
        if length == 0 and byte == 0x80:
            raise DerError("an OBJECT IDENTIFIER with a needless zero")
        number = number << 7 | byte & 0x7F
        length += 1
        if length > _LONGEST_ARC:
            raise DerError("an OBJECT IDENTIFIER with a number that is too long")
        if byte < 0x80:
            numbers.append(number)
            number = length = 0
    first = min(numbers[0] // 40, 2)
    return ".".join(map(str, (first, numbers[0] - 40 * first, *numbers[1:])))


def text(element: Element) -> str:
    """Read a UTF8String or PrintableString that is not empty. Raises `DerError`."""
    content = element.content
    good = element.tag == UTF8_STRING or (
        element.tag == PRINTABLE_STRING and all(byte in _PRINTABLE for byte in content)
    )
    if not content or not good:
        raise DerError("not a text")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise DerError("a text that is not UTF-8") from None


def time(element: Element) -> datetime:
    """Read a UTCTime (until 2049) or GeneralizedTime (from 2050), in UTC. Raises `DerError`."""
    content = element.content
    digits = content[:-1]
    lengths = {UTC_TIME: 12, GENERALIZED_TIME: 14}
    if len(digits) != lengths.get(element.tag) or content[-1:] != b"Z" or not digits.isdigit():
        raise DerError("not a time")
    if element.tag == UTC_TIME:
        digits = (b"19" if digits[:2] >= b"50" else b"20") + digits
    parts = [int(digits[:4]), *(int(digits[at : at + 2]) for at in range(4, 14, 2))]
    if element.tag == GENERALIZED_TIME and parts[0] < _FIRST_GENERALIZED_YEAR:
        raise DerError("a GeneralizedTime before 2050")
    year, month, day, hour, minute, second = parts
    try:
        return datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        raise DerError("a time that is not in the calendar") from None


def _span(data: bytes, offset: int) -> tuple[int, int]:
    """Give where the content of the element at `offset` begins and ends."""
    if len(data) - offset < 2 or data[offset] & _LONG_TAG == _LONG_TAG:
        raise DerError("no element")
    first = data[offset + 1]
    if first < 0x80:
        start, length = offset + 2, first
    else:
        octets = first & 0x7F
        start = offset + 2 + octets
        encoded = data[offset + 2 : start]
        if not 1 <= octets <= _LONGEST_LENGTH or len(encoded) != octets or encoded[0] == 0:
            raise DerError("a length that is indefinite, padded or cut short")
        length = int.from_bytes(encoded, "big")
        if length < 0x80:
            raise DerError("a short length in the long form")
    if start + length > len(data):
        raise DerError("an element that ends outside its place")
    return start, start + length
