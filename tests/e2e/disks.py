"""A disk as LUKS makes one, in a file: data under a volume key of its own, which a disk key of the KMS wraps.

The disk key is nowhere in it. So who has no key of the epoch that the disk is of has no data, as in life.
"""

import secrets
from pathlib import Path
from struct import Struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kms import private_files

# epoch, nonce and wrapped volume key (32 bytes and a tag), nonce of the data
_HEADER = Struct(">Q12s48s12s")
_NONCE = 12


class Locked(Exception):
    """This key does not open the disk."""


class Disk:
    """A disk that is of one epoch, and says of which. Keys are 32 bytes."""

    def __init__(self, file: Path) -> None:
        self._file = file

    @property
    def epoch(self) -> int:
        """The epoch of the key that opens it, as its header says: a guest must know what to ask for."""
        with self._file.open("rb") as file:
            return int(_HEADER.unpack(file.read(_HEADER.size))[0])

    def encrypt(self, epoch: int, key: bytes, data: bytes) -> int:
        """Encrypt data under a new volume key, in place of whatever is there; give the bytes written.

        After a power cut the disk is as it was, or as it will be.
        """
        volume_key, wrapping_nonce, nonce = AESGCM.generate_key(256), _nonce(), _nonce()
        wrapped = AESGCM(key).encrypt(wrapping_nonce, volume_key, _bound_to(epoch))
        content = _HEADER.pack(epoch, wrapping_nonce, wrapped, nonce)
        content += AESGCM(volume_key).encrypt(nonce, data, None)
        private_files.replace(self._file, content)
        return len(content)

    def read(self, key: bytes) -> bytes:
        """Decrypt the data. Raises `Locked`."""
        content = self._file.read_bytes()
        epoch, wrapping_nonce, wrapped, nonce = _HEADER.unpack(content[: _HEADER.size])
        try:
            volume_key = AESGCM(key).decrypt(wrapping_nonce, wrapped, _bound_to(epoch))
            return AESGCM(volume_key).decrypt(nonce, content[_HEADER.size :], None)
        except InvalidTag:
            raise Locked from None

    def encrypt_again(self, old: bytes, epoch: int, new: bytes) -> int:
        """Read with the old key, and encrypt under the new one, of this epoch. Raises `Locked`."""
        return self.encrypt(epoch, new, self.read(old))


def _nonce() -> bytes:
    return secrets.token_bytes(_NONCE)


def _bound_to(epoch: int) -> bytes:
    return epoch.to_bytes(8, "big")
