"""Just enough DER (ITU-T X.690) to write certificates that no library agrees to write.

The simulator needs serial number 0, because AMD's endorsement certificates have it, and every forgery of a
certificate that a test can think of: doubled, missing and misencoded extensions. Values are encoded as
given; nothing is checked.
"""

from datetime import datetime

BOOLEAN = 0x01
INTEGER = 0x02
BIT_STRING = 0x03
OCTET_STRING = 0x04
NULL = 0x05
OBJECT_IDENTIFIER = 0x06
IA5_STRING = 0x16
UTC_TIME = 0x17
GENERALIZED_TIME = 0x18
SEQUENCE = 0x30


def tlv(tag: int, *contents: bytes) -> bytes:
    """Encode one value: tag, definite length in its shortest form, contents."""
    body = b"".join(contents)
    if len(body) < 0x80:
        return bytes([tag, len(body)]) + body
    length = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + body


def context(number: int, *contents: bytes) -> bytes:
    """Encode an explicitly tagged value ``[number]``."""
    return tlv(0xA0 | number, *contents)


def integer(value: int) -> bytes:
    """Encode a non-negative INTEGER in its shortest form: 128 and above start with a zero byte."""
    return tlv(INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def ia5_string(text: str) -> bytes:
    """Encode an IA5String (ASCII)."""
    return tlv(IA5_STRING, text.encode("ascii"))


def object_identifier(dotted: str) -> bytes:
    """Encode an OBJECT IDENTIFIER from its dotted form."""
    first, second, *rest = (int(arc) for arc in dotted.split("."))
    body = bytearray()
    for arc in (first * 40 + second, *rest):
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(arc & 0x7F | 0x80)
        body += bytes(reversed(groups))
    return tlv(OBJECT_IDENTIFIER, bytes(body))


def time(moment: datetime) -> bytes:
    """Encode a UTC time in whole seconds: UTCTime before 2050, then GeneralizedTime (RFC 5280, 4.1.2.5)."""
    text = moment.strftime("%Y%m%d%H%M%SZ")
    if moment.year < 2050:
        return tlv(UTC_TIME, text[2:].encode("ascii"))
    return tlv(GENERALIZED_TIME, text.encode("ascii"))
