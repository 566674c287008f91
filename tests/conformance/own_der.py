"""A DER writer small enough to check by eye.

The certificate builders of the usual libraries refuse what AMD really issues (serial number 0, a hwID that
is no DER value) and what an attacker would send (the same extension twice), so these are written by hand.
"""

from datetime import UTC, datetime


def tlv(tag: int, *parts: bytes) -> bytes:
    """One DER element: tag, definite length, contents."""
    contents = b"".join(parts)
    if len(contents) < 0x80:
        return bytes((tag, len(contents))) + contents
    length = len(contents).to_bytes((len(contents).bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + contents


def sequence(*parts: bytes) -> bytes:
    return tlv(0x30, *parts)


def set_of(*parts: bytes) -> bytes:
    return tlv(0x31, *parts)


def explicit(number: int, *parts: bytes) -> bytes:
    """A constructed, context-specific tag around its parts."""
    return tlv(0xA0 | number, *parts)


def integer(value: int) -> bytes:
    """The minimal two's complement form: 0xd9 is written 00 d9, as in a real ucodeSPL."""
    return tlv(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def boolean(value: bool) -> bytes:
    return tlv(0x01, b"\xff" if value else b"\x00")


def null() -> bytes:
    return tlv(0x05)


def octets(value: bytes) -> bytes:
    return tlv(0x04, value)


def bits(value: bytes, unused: int = 0) -> bytes:
    return tlv(0x03, bytes((unused,)), value)


def utf8(text: str) -> bytes:
    return tlv(0x0C, text.encode())


def printable(text: str) -> bytes:
    return tlv(0x13, text.encode("ascii"))


def ia5(text: str) -> bytes:
    return tlv(0x16, text.encode("ascii"))


def utc_time(moment: datetime) -> bytes:
    """RFC 5280, 4.1.2.5.1: dates before 2050."""
    return tlv(0x17, moment.astimezone(UTC).strftime("%y%m%d%H%M%SZ").encode("ascii"))


def oid(dotted: str) -> bytes:
    first, second, *rest = (int(arc) for arc in dotted.split("."))
    encoded = bytearray()
    for arc in (first * 40 + second, *rest):
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(0x80 | arc & 0x7F)
        encoded += bytes(reversed(groups))
    return tlv(0x06, bytes(encoded))
