"""What is known to be stored, and need not be written again: a rack's guests all bring the same chain."""

from collections import OrderedDict
from hashlib import sha256
from typing import Final, TypeAlias

from kms.ports import StoredCertificate, StoredRevocationList

_MOST: Final = 50_000

Item: TypeAlias = StoredCertificate | StoredRevocationList


class KnownDigests:
    """Digests (32 bytes) of what is stored or waits to be; those not met for longest are forgotten."""

    def __init__(self) -> None:
        self._digests: OrderedDict[bytes, None] = OrderedDict()

    def __contains__(self, digest: bytes) -> bool:
        """Say whether it is known."""
        if digest not in self._digests:
            return False
        self._digests.move_to_end(digest)
        return True

    def add(self, *items: Item) -> None:
        """Take note of items."""
        for item in items:
            self._digests[digest_of(item)] = None
        while len(self._digests) > _MOST:
            self._digests.popitem(last=False)

    def remove(self, *items: Item) -> None:
        """Forget items."""
        for item in items:
            self._digests.pop(digest_of(item), None)


def digest_of(item: Item) -> bytes:
    """Give what names an item, 32 bytes: a hash of its DER, and of a list's line."""
    if isinstance(item, StoredCertificate):
        return item.certificate.fingerprint
    return sha256(item.line.folder.encode("ascii") + b"\x00" + item.list.der).digest()
