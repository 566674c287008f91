"""Evidence whose certificates cannot be read at all: a stranger writes every byte of them (field lesson 13).

The certificates themselves are genuine; only how they are sent is not.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from struct import pack

from kms.encoding import b64url
from kms.simulator.certificate_table import certificate_table
from kms.strict_json import JsonValue
from tests.golden.forged.controls import table_entries
from tests.golden.forged.draft import Draft, Evidence
from tests.golden.forged.recipes import Book

_HEADER = 4 * 24  # three entries and their end


def hostile_wire(book: Book) -> None:
    """Add them."""
    _tables(book)
    _certificates(book)


def _tables(book: Book) -> None:
    def placed(offset: int, length: int) -> Callable[[bytes], bytes]:
        return lambda table: table[:16] + pack("<II", offset, length) + table[24:]

    def crowded(table: bytes) -> bytes:
        return b"".join(bytes([number + 1]) + table[1:24] for number in range(17)) + bytes(24)

    changes: dict[str, Callable[[bytes], bytes]] = {
        "cut-in-its-header": lambda table: table[:40],
        "cut-in-its-last-blob": lambda table: table[:-1],
        "without-an-end": lambda table: table[:72],
        "entry-beyond-the-end": lambda table: placed(len(table), 1)(table),
        "entry-ends-beyond-the-end": lambda table: placed(_HEADER, len(table))(table),
        # As 32-bit numbers, the two add up to less than the table has.
        "entry-that-wraps": placed(0xFFFFFFF0, 0x80),
        "entry-at-the-last-offset": placed(0xFFFFFFFF, 1),
        "entry-of-the-greatest-length": placed(_HEADER, 0xFFFFFFFF),
        "entry-in-the-header": placed(0, 24),
        "entry-of-no-length": placed(_HEADER, 0),
        "entries-overlap": placed(_HEADER + 1, 1200),
        "guid-twice": lambda table: table[:24] + table[:16] + table[40:],
        "seventeen-entries": crowded,
    }
    for name, change in changes.items():
        book.malformed(f"table-{name}", partial(_with_table, change=change), "certificate-table")
    book.malformed(
        "table-of-no-certificates",
        partial(_with_table, change=lambda table: table[:_HEADER] + bytes(len(table) - _HEADER)),
        "certificate-unreadable",
    )


def _with_table(draft: Draft, change: Callable[[bytes], bytes]) -> Draft:
    def members(evidence: Evidence) -> dict[str, JsonValue]:
        table = change(certificate_table(table_entries(evidence)))
        return {"certificate_table": b64url(table), "certificates": None}

    return replace(draft, members=members)


def _certificates(book: Book) -> None:
    garbage: dict[str, bytes] = {
        "of-no-bytes": b"",
        "of-garbage": b"garbage",
        "of-zeros": bytes(1200),
        "that-nests-without-end": b"\x30\x80" * 400,
        "longer-than-16-kib": b"\x30\x82\xff\xff" + bytes(0x4000),
    }
    for name, data in garbage.items():
        book.malformed(f"certificate-{name}", partial(_beside, data=data), "certificate-unreadable")
    edits: dict[str, Callable[[bytes], bytes]] = {
        "cut-short": lambda der: der[:-1],
        "followed-by-a-byte": lambda der: der + b"\x00",
        "without-its-first-byte": lambda der: der[1:],
    }
    for name, edit in edits.items():
        change = partial(Draft.edited, label="leaf", edit=edit)
        book.malformed(f"certificate-{name}", change, "certificate-unreadable")
    pem = "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n"
    for name, text in {
        "of-nothing": pem.format(""),
        "of-garbage": pem.format("AAAA"),
        "cut-short": pem[:30],
    }.items():
        book.malformed(
            f"pem-{name}", partial(_saying, members={"certificates": [text]}), "certificate-unreadable"
        )
    book.malformed(
        "certificates-too-many",
        lambda draft: replace(draft, sent=("leaf", *["authority", "ark"] * 7), members=_with_table_too),
        "certificates-too-many",
    )
    book.malformed(
        "certificates-too-many-in-the-list",
        lambda draft: replace(draft, sent=("leaf", *["authority", "ark"] * 8)),
        "malformed-evidence",
    )
    book.malformed("tee-unknown", partial(_saying, members={"tee": "tdx"}), "tee-unknown")


def _with_table_too(evidence: Evidence) -> dict[str, JsonValue]:
    return {"certificate_table": b64url(certificate_table(table_entries(evidence)[:3]))}


def _beside(draft: Draft, data: bytes) -> Draft:
    return replace(draft, more=(data,))


def _saying(draft: Draft, members: dict[str, JsonValue]) -> Draft:
    return replace(draft, members=lambda _: members)
