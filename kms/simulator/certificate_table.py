"""Writes the certificate table that `kms.snp.certificate_table` reads (the kernel's auxblob)."""

import struct
from collections.abc import Sequence
from uuid import UUID

_ENTRY = struct.Struct("<16sII")  # GUID in RFC 4122 order, offset from the start, length


def certificate_table(entries: Sequence[tuple[UUID, bytes]]) -> bytes:
    """Give the table of these blobs in this order; without any, the end marker alone, as on bare metal."""
    offset = (len(entries) + 1) * _ENTRY.size
    header = bytearray()
    for guid, blob in entries:
        header += _ENTRY.pack(guid.bytes, offset, len(blob))
        offset += len(blob)
    header += bytes(_ENTRY.size)
    return bytes(header) + b"".join(blob for _, blob in entries)
