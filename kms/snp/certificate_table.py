"""The certificate table that a host hands its guest (kernel `auxblob`, GHCB extended report).

Layout: GHCB specification 56421, "SNP Extended Guest Request": 24-byte entries {GUID 16, u32 LE offset
from the start, u32 LE length}, ended by an all-zero entry, then the blobs. A stranger writes every byte
of it (field lesson 13), so each offset and length is checked in integers that cannot wrap.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from kms.errors import MalformedEvidence

_ENTRY = 24
MAX_ENTRIES = 16

VCEK = UUID("63da758d-e664-4564-adc5-f4b93be8accd")
VLEK = UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1")
ASK = UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782")  # also the ASVK
ARK = UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae")
CERTIFICATES = (VCEK, VLEK, ASK, ARK)
REVOCATION_LIST = UUID("92f81bc3-5811-4d3d-97ff-d19f88dc67ea")


@dataclass(frozen=True, slots=True)
class TableEntry:
    """One blob of the table. GUIDs are stored big-endian (RFC 4122), unlike those of OVMF."""

    guid: UUID
    data: bytes


def parse_table(data: bytes) -> tuple[TableEntry, ...]:
    """Parse a certificate table; empty bytes and a table of no entries are normal on bare metal.

    Raises:
        MalformedEvidence: cut short, more than `MAX_ENTRIES` entries, an entry outside the table or
            inside its header, a GUID that occurs twice, or overlapping blobs.

    """
    if not data:
        return ()
    header = list(_header(data))
    start_of_blobs = (len(header) + 1) * _ENTRY
    entries: list[TableEntry] = []
    spans: list[tuple[int, int]] = []
    for guid, offset, length in header:
        end = offset + length
        if offset < start_of_blobs or end > len(data) or length == 0:
            raise _malformed("an entry lies outside the table")
        if any(guid == entry.guid for entry in entries):
            raise _malformed("a GUID occurs twice")
        if any(offset < other_end and other_start < end for other_start, other_end in spans):
            raise _malformed("two entries overlap")
        entries.append(TableEntry(guid, data[offset:end]))
        spans.append((offset, end))
    return tuple(entries)


def _header(data: bytes) -> Iterator[tuple[UUID, int, int]]:
    for number in range(MAX_ENTRIES + 1):
        entry = data[number * _ENTRY : (number + 1) * _ENTRY]
        if len(entry) < _ENTRY:
            raise _malformed("no end of the entries")
        if not any(entry):
            return
        yield (
            UUID(bytes=entry[:16]),
            int.from_bytes(entry[16:20], "little"),
            int.from_bytes(entry[20:24], "little"),
        )
    raise _malformed(f"more than {MAX_ENTRIES} entries")


def _malformed(detail: str) -> MalformedEvidence:
    return MalformedEvidence(f"certificate table: {detail}", reason="certificate-table")
