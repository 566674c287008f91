"""An entry on its way into the ledger, with the MAC of the server that made it.

The database holds entries before and after they are in the tree. Its owner can write rows; without the root
key nobody can write one that is sequenced.
"""

import hmac
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from typing_extensions import override

from kms.keys.root_messages import require_prf_output
from kms.labels import ENTRY, frame, labelled
from kms.ledger.entries import SALT_LENGTH, entry_digest

MAC_LENGTH: Final = 32
# The server of entries of before there was a ledger, sealed when it was founded (kms/database/founding.py).
NO_SERVER: Final = ""
_KEY_LENGTH: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedEntry:
    """An entry (canonical bytes), what it is, which server made it, its salt (16 bytes), the MAC over all.

    `kind` and `id` say what and which it is (a decision's release id, an action's id).
    """

    kind: str
    id: str
    server: str
    salt: bytes
    entry: bytes
    mac: bytes

    @property
    def digest(self) -> bytes:
        """What the tree is over: SHA-256(salt || entry), 32 bytes."""
        return entry_digest(self.salt, self.entry)


class EntrySeal:
    """Makes and checks the MACs of entries."""

    __slots__ = ("_key",)

    def __init__(self, output: bytes) -> None:
        """Take the root PRF's 64 bytes for `root_messages.entries_message`; the key is the first 32.

        Raises:
            ValueError: not 64 bytes.

        """
        self._key = require_prf_output(output)[:_KEY_LENGTH]

    def seal(self, *, kind: str, id: str, server: str, salt: bytes, entry: bytes) -> SealedEntry:  # noqa: A002 -- the column's name
        """Seal an entry.

        Raises:
            ValueError: a salt of another length.

        """
        if len(salt) != SALT_LENGTH:
            raise ValueError(f"a salt has {SALT_LENGTH} bytes")
        mac = self._mac(kind, id, server, salt, entry)
        return SealedEntry(kind=kind, id=id, server=server, salt=salt, entry=entry, mac=mac)

    def verifies(self, entry: SealedEntry) -> bool:
        """Say whether a server of this KMS made the entry, just so; in constant time."""
        expected = self._mac(entry.kind, entry.id, entry.server, entry.salt, entry.entry)
        return hmac.compare_digest(entry.mac, expected)

    def _mac(self, kind: str, entry_id: str, server: str, salt: bytes, entry: bytes) -> bytes:
        fields = frame(kind.encode(), entry_id.encode(), server.encode(), salt, entry)
        return hmac.digest(self._key, labelled(ENTRY, fields), sha256)

    @override
    def __repr__(self) -> str:
        return "EntrySeal()"
