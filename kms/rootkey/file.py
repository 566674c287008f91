"""The ``file:`` provider: the secrets of all epochs in one file (`kms.rootkey.root_file`) and in memory.

For one server, and for trying things out: whoever reads the file, and knows its passphrase if it has one, has
every key of every app.
"""

import asyncio
import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final, Self

from typing_extensions import override

from kms.errors import ConfigurationError, RootKeyUnavailable
from kms.keys.root_messages import FOUNDING_EPOCH, SECRET_LENGTH, Mode, root_prf
from kms.keys.wiping import wipe
from kms.rootkey.provider import Opener, RootAccess, RootKeyMissing
from kms.rootkey.root_document import RootDocument
from kms.rootkey.root_file import RootFile


class FileRootKey:
    """Implements `kms.rootkey.provider.RootProvider`. An epoch in memory is never forgotten.

    Guests get its keys even where the file was lost meanwhile; `versions`, `ensure` and `secrets` say that it
    was. Reading and writing happen in threads, everything else in the event loop.
    """

    __slots__ = ("_closed", "_digest", "_file", "_secrets")

    def __init__(self, file: RootFile | None, secrets: Mapping[int, bytes]) -> None:
        self._file = file
        self._secrets = {epoch: bytearray(secret) for epoch, secret in secrets.items()}
        self._digest = b""  # SHA-256 of the file's text that agreed with memory last
        self._closed = False

    @classmethod
    def of(cls, secrets: Mapping[int, bytes]) -> Self:
        """Give a root of these secrets (32 bytes each) that is in memory only."""
        return cls(None, secrets)

    @classmethod
    async def open(cls, file: RootFile) -> Self:
        """Open a file.

        Raises:
            RootKeyMissing: there is no such file.
            ConfigurationError: not a regular file of ours with mode 0600, damaged, of the other mode, or
                (not) encrypted under this passphrase.

        """
        root = cls(file, {})
        await root._look(file)
        return root

    @property
    def marked(self) -> bool:
        """The document has the mode."""
        return True

    async def outputs(self, epoch: int, messages: Sequence[bytes]) -> tuple[bytes, ...]:
        """Give HMAC-SHA-512 of each message; see `RootProvider.outputs`."""
        if epoch not in self._secrets:
            await self._catch_up()  # another process may have made it
        secret = self._secrets.get(epoch)
        if secret is None:
            raise RootKeyUnavailable(f"the root key has no epoch {epoch}", reason="root-epoch-missing")
        return tuple(root_prf(secret, message) for message in messages)

    async def versions(self) -> tuple[int, ...]:
        """Give the epochs that exist, oldest first, after a look at the file.

        Raises:
            RootKeyUnavailable: reason ``root-key-missing``, the file is gone; ``root-key-damaged``, it cannot
                be used any more, or lost or changed an epoch that is in use.

        """
        await self._catch_up()
        return tuple(self._secrets)

    async def ensure(self, epoch: int, random: Callable[[int], bytes]) -> None:
        """Make sure that `epoch` exists, durably; see `RootProvider.ensure`. Errors also as `versions`."""
        await self._catch_up()
        if self._file is not None:
            in_use = dict(self._secrets)
            document = await asyncio.to_thread(
                self._file.add_epoch, epoch, random, lambda found: _require_agreement(in_use, found)
            )
            self._require_open()
            self._adopt(document, b"")
        elif epoch == len(self._secrets) + 1:
            self._secrets[epoch] = bytearray(random(SECRET_LENGTH))
        elif epoch not in self._secrets:
            raise ConfigurationError(f"epoch {epoch} is not the next one")

    async def secrets(self) -> Mapping[int, bytes]:
        """Give the secret of each epoch, for a backup. Errors as `versions`."""
        await self._catch_up()
        return {epoch: bytes(secret) for epoch, secret in self._secrets.items()}

    def start(self) -> None:
        """Begin nothing: there is nothing to renew."""

    async def close(self) -> None:
        """Overwrite the secrets. Copies that reading the file made (JSON texts, bytes) are beyond reach."""
        self._closed = True
        for secret in self._secrets.values():
            wipe(secret)
        self._secrets.clear()

    async def _catch_up(self) -> None:
        """Hold the file against memory, and take the epochs that another process made meanwhile."""
        self._require_open()
        if self._file is not None:
            try:
                await self._look(self._file)
            except ConfigurationError as error:
                reason = "root-key-missing" if isinstance(error, RootKeyMissing) else "root-key-damaged"
                raise RootKeyUnavailable(error.detail, reason=reason) from error

    async def _look(self, file: RootFile) -> None:
        # As of before the look: what another look or `ensure` adds meanwhile need not be in an older text.
        in_use = dict(self._secrets)
        digest, document = await asyncio.to_thread(self._changed, file)
        self._require_open()
        if document is not None:
            _require_agreement(in_use, document)
            self._adopt(document, digest)

    def _changed(self, file: RootFile) -> tuple[bytes, RootDocument | None]:
        """Give the SHA-256 of the file's text, and what it says, None where it is the text of the last time.

        Deriving the key of a passphrase again each time would cost every look tenths of a second.
        """
        content = file.content()
        digest = hashlib.sha256(content).digest()
        if digest == self._digest:
            wipe(content)
            return digest, None
        return digest, file.parse(content)

    def _adopt(self, document: RootDocument, digest: bytes) -> None:
        for epoch, secret in document.secrets.items():
            self._secrets.setdefault(epoch, bytearray(secret))
        # Not that of an older text: by it, an older file in this one's place would look unchanged.
        self._digest = digest if len(document.secrets) == len(self._secrets) else b""

    def _require_open(self) -> None:
        if self._closed:
            raise RootKeyUnavailable("the root key was closed")

    @override
    def __repr__(self) -> str:
        return f"FileRootKey(epochs={len(self._secrets)})"


class FileOpener:
    """Implements `kms.rootkey.provider.Opener` for ``file:PATH``."""

    def check(self, rest: str, access: RootAccess) -> None:
        """Check that there is a path."""
        _file(rest, access)

    async def open(self, rest: str, access: RootAccess) -> FileRootKey:
        """Open an existing file; errors as `FileRootKey.open`."""
        return await FileRootKey.open(_file(rest, access))

    async def create(
        self, rest: str, access: RootAccess, *, now: datetime, random: Callable[[int], bytes]
    ) -> FileRootKey:
        """Make a file with epoch 1, and open it. Raises `ConfigurationError` as `RootFile.make`."""
        return await self.restore(rest, access, {FOUNDING_EPOCH: random(SECRET_LENGTH)}, now=now)

    async def restore(
        self, rest: str, access: RootAccess, secrets: Mapping[int, bytes], *, now: datetime
    ) -> FileRootKey:
        """Make a file of these secrets, and open it.

        Raises:
            ConfigurationError: as `RootFile.make`.
            ValueError: they are no root's secrets, or `now` is naive.

        """
        file = _file(rest, access)
        document = RootDocument(access.mode, now, dict(sorted(secrets.items())))
        await asyncio.to_thread(file.make, document)
        return await FileRootKey.open(file)


OPENER: Final[Opener] = FileOpener()


def reseal(path: Path, mode: Mode, old: Callable[[], bytes] | None, new: Callable[[], bytes] | None) -> None:
    """Put an existing file under another passphrase; None stands for none.

    The blocks of the disk that held the old file are not overwritten (no file system can promise that): where
    others may have had the disk while it was not encrypted, its keys are known to them.

    Raises:
        RootKeyMissing: there is no such file.
        ConfigurationError: as `FileRootKey.open`; or the new passphrase is short, or it cannot be written.

    """
    RootFile(path, mode, old).reseal(new)


def _file(rest: str, access: RootAccess) -> RootFile:
    if not rest or "\0" in rest or (rest.startswith("//") and not rest.startswith("///")):
        raise ConfigurationError(
            "KMS_ROOT_KEY=file: needs the path of a file on this machine",
            remedy="Write file:/var/lib/kms/root.key or file:///var/lib/kms/root.key.",
        )
    return RootFile(Path(rest), access.mode, access.passphrase)


def _require_agreement(in_use: Mapping[int, bytearray], document: RootDocument) -> None:
    for epoch, secret in in_use.items():
        if not hmac.compare_digest(secret, document.secrets.get(epoch, b"")):
            raise RootKeyUnavailable(
                f"the root key file lost or changed epoch {epoch}, which is in use", reason="root-key-damaged"
            )
