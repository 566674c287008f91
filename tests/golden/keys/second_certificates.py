"""The certificates of docs/reference/keys.md, byte for byte, built again from that page and RFC 5280 alone.

Nothing of `kms` is imported here, and no library for certificates: DER is written out.
"""

import base64
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from tests.golden.keys import second_implementation as second
from tests.golden.keys import second_p256 as p256

BOOT_INFO = "2.25.142474103620529662591416442187402621289"


# --- DER (X.690) ---


def der(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    if len(content) < 128:
        return bytes([tag, len(content)]) + content
    length = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def sequence(*parts: bytes) -> bytes:
    return der(0x30, *parts)


def integer(number: int) -> bytes:
    return der(0x02, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def octets(content: bytes) -> bytes:
    return der(0x04, content)


def oid(dotted: str) -> bytes:
    first, second_arc, *others = map(int, dotted.split("."))
    out = b""
    for arc in (40 * first + second_arc, *others):
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(arc & 0x7F | 0x80)
        out += bytes(reversed(groups))
    return der(0x06, out)


def bits(content: bytes, unused: int = 0) -> bytes:
    return der(0x03, bytes([unused]), content)


TRUE = der(0x01, b"\xff")
ECDSA_WITH_SHA256 = sequence(oid("1.2.840.10045.4.3.2"))
P256_KEY = sequence(oid("1.2.840.10045.2.1"), oid("1.2.840.10045.3.1.7"))


# --- RFC 5280 ---


def attribute(kind: str, tag: int, text: str) -> bytes:
    return der(0x31, sequence(oid(kind), der(tag, text.encode())))


def time(moment: datetime) -> bytes:
    if moment.year < 2050:
        return der(0x17, moment.strftime("%y%m%d%H%M%SZ").encode())
    return der(0x18, moment.strftime("%Y%m%d%H%M%SZ").encode())


def extension(kind: str, value: bytes, *, critical: bool = False) -> bytes:
    return sequence(oid(kind), TRUE if critical else b"", octets(value))


def spki(point: bytes) -> bytes:
    return sequence(P256_KEY, bits(point))


def key_id(point: bytes) -> bytes:
    return hashlib.sha1(point).digest()  # noqa: S324 -- what RFC 5280 calls a key by


def subject_key_identifier(point: bytes) -> bytes:
    return extension("2.5.29.14", octets(key_id(point)))


def authority_key_identifier(point: bytes) -> bytes:
    return extension("2.5.29.35", sequence(der(0x80, key_id(point))))


@dataclass(frozen=True)
class Ca:
    private: int
    name: bytes
    certificate: bytes

    @property
    def point(self) -> bytes:
        return p256.point(self.private)


def certificate(
    issuer_name: bytes,
    issuer_key: int,
    subject: bytes,
    point: bytes,
    *,
    serial: int,
    start: str,
    end: str,
    extensions: Iterable[bytes],
) -> bytes:
    """`start` and `end` are RFC 3339."""
    body = sequence(
        der(0xA0, integer(2)),
        integer(serial),
        ECDSA_WITH_SHA256,
        issuer_name,
        sequence(*(time(datetime.fromisoformat(each)) for each in (start, end))),
        subject,
        spki(point),
        der(0xA3, sequence(*extensions)),
    )
    r, s = p256.sign(issuer_key, body)
    return sequence(body, ECDSA_WITH_SHA256, bits(sequence(integer(r), integer(s))))


# --- docs/reference/keys.md ---


def key_hash(point: bytes) -> bytes:
    return hashlib.sha256(spki(point)).digest()


def ca_certificate(
    issuer_name: bytes, issuer_key: int, name: bytes, point: bytes, path_length: int, *more: bytes
) -> bytes:
    constraints = sequence(TRUE, integer(path_length))
    return certificate(
        issuer_name,
        issuer_key,
        name,
        point,
        serial=int.from_bytes(key_hash(point)[:16], "big"),
        start="2020-01-01T00:00:00Z",
        end="9999-12-31T23:59:59Z",
        extensions=(
            extension("2.5.29.19", constraints, critical=True),
            extension("2.5.29.15", bits(b"\x06", 1), critical=True),
            subject_key_identifier(point),
            *more,
        ),
    )


def apps_ca(root: bytes) -> Ca:
    private = second.apps_ca_scalar(root)
    point = p256.point(private)
    mark = attribute("2.5.4.11", 0x0C, key_hash(point)[:8].hex())
    name = sequence(mark, attribute("2.5.4.3", 0x0C, "Attested KMS apps CA"))
    return Ca(private, name, ca_certificate(name, private, name, point, 1))


def app_ca(above: Ca, root: bytes, app_id: bytes, epoch: int) -> Ca:
    private = second.app_ca_scalar(root, app_id, epoch)
    point = p256.point(private)
    name = sequence(
        attribute("2.5.4.11", 0x0C, key_hash(above.point)[:8].hex()),
        attribute("2.5.4.3", 0x0C, f"Attested KMS app CA epoch {epoch}"),
        attribute("2.5.4.5", 0x13, app_id.hex()),
    )
    identifier = authority_key_identifier(above.point)
    return Ca(private, name, ca_certificate(above.name, above.private, name, point, 0, identifier))


def leaf(
    ca: Ca, point: bytes, *, names: list[str], days: int, boot_info: bytes, now: str, random: bytes
) -> bytes:
    """`boot_info` is its digest; `random` are the 20 bytes that the serial number is made of."""
    start = datetime.fromisoformat(now).replace(microsecond=0) - timedelta(minutes=5)
    end = start + timedelta(days=days, seconds=-1)
    return certificate(
        ca.name,
        ca.private,
        sequence(),
        point,
        serial=int.from_bytes(random, "big") >> 1,
        start=start.isoformat(),
        end=end.isoformat(),
        extensions=(
            extension("2.5.29.17", sequence(*(der(0x82, each.encode()) for each in names)), critical=True),
            extension("2.5.29.19", sequence(), critical=True),
            extension("2.5.29.15", bits(b"\x80", 7), critical=True),
            extension("2.5.29.37", sequence(oid("1.3.6.1.5.5.7.3.1"), oid("1.3.6.1.5.5.7.3.2"))),
            subject_key_identifier(point),
            extension(BOOT_INFO, octets(boot_info)),
            authority_key_identifier(ca.point),
        ),
    )


def pem(content: bytes) -> str:
    text = base64.b64encode(content).decode()
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return "\n".join(["-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----", ""])
