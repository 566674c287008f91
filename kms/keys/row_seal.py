"""MACs of database rows that give power, so that owning the database is not owning the KMS.

A policy change, an operator, an epoch: each such row carries HMAC-SHA-256 under a key that the root derives,
over the table's name and every field that matters. A row that was written or altered by hand does not
verify: it is ignored, and said.
"""

import hmac
from hashlib import sha256
from typing import Final

from typing_extensions import override

from kms.keys.root_messages import require_prf_output
from kms.labels import ROW, frame, labelled

MAC_LENGTH: Final = 32
_KEY_LENGTH: Final = 32


def optional(value: str | None) -> bytes:
    """Give a text or its absence as a field: the two never look alike."""
    return b"\x00" if value is None else b"\x01" + value.encode("utf-8")


class RowSeal:
    """Makes and checks the MACs of rows."""

    __slots__ = ("_key",)

    def __init__(self, output: bytes) -> None:
        """Take the root PRF's 64 bytes for `root_messages.rows_message`; the key is the first 32.

        Raises:
            ValueError: not 64 bytes.

        """
        self._key = require_prf_output(output)[:_KEY_LENGTH]

    def mac(self, table: str, *fields: bytes) -> bytes:
        """Give the MAC (32 bytes) over the table's name and the fields, framed by length."""
        message = labelled(ROW, frame(table.encode("ascii"), *fields))
        return hmac.new(self._key, message, sha256).digest()

    def verifies(self, mac: bytes, table: str, *fields: bytes) -> bool:
        """Say whether the MAC is of these fields; in constant time."""
        return hmac.compare_digest(mac, self.mac(table, *fields))

    @override
    def __repr__(self) -> str:
        return "RowSeal()"
