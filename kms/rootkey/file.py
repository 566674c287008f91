"""The ``file:`` provider: the root secrets of all epochs in one JSON document (``root_document``).

For one server, and for trying things out: whoever reads the file has every key of every app. It is
opened once, without following a link, and judged by what was opened, so that nobody can swap it between
the look and the read.
"""

import contextlib
import hmac
import os
import secrets
import stat
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final, Self

from typing_extensions import override

from kms.errors import ConfigurationError, RootKeyUnavailable
from kms.keys.root_messages import FOUNDING_EPOCH, Mode
from kms.rootkey.root_document import SECRET_LENGTH, RootDocument, RootDocumentError, read, write

_AT_MOST: Final = 1 << 20  # bytes; about 10 000 epochs
_FOREIGN_BITS: Final = 0o077
_RESTORE: Final = "Restore it from a backup; a new one would open no existing disk."


class RootKeyMissing(ConfigurationError):
    """There is no root key where one is configured."""

    code = "root-key-missing"


class FileRootKey:
    """A root key held in this process's memory. See `kms.ports.RootKey`."""

    __slots__ = ("_secrets",)

    def __init__(self, epochs: dict[int, bytes]) -> None:
        self._secrets = {epoch: bytearray(secret) for epoch, secret in epochs.items()}

    @classmethod
    def load(cls, path: Path, mode: Mode) -> Self:
        """Load and verify the file; it must be marked with `mode`.

        Raises:
            RootKeyMissing: there is no such file.
            ConfigurationError: not a regular file of ours with mode 0600, damaged, or of the other mode.

        """
        try:
            document = read(_read_private(path))
        except RootDocumentError as error:
            raise ConfigurationError(f"root key file {path}: {error}", remedy=_RESTORE) from None
        if document.mode is not mode:
            raise ConfigurationError(
                f"root key file {path} was made for {document.mode} mode; this server runs in {mode} mode",
                remedy="Use the data folder of this mode. A root never changes from one mode to the other.",
            )
        return cls(document.secrets)

    async def prf(self, epoch: int, message: bytes) -> bytes:
        """Give HMAC-SHA-512 of `message` under the root of `epoch`: 64 bytes.

        Raises:
            RootKeyUnavailable: the epoch does not exist, or the key was closed.

        """
        secret = self._secrets.get(epoch)
        if secret is None:
            raise RootKeyUnavailable("the root key file has no such epoch", reason="root-epoch-missing")
        return hmac.digest(secret, message, "sha512")

    async def epochs(self) -> tuple[int, ...]:
        """Give the epochs that exist, oldest first."""
        return tuple(self._secrets)

    def close(self) -> None:
        """Overwrite the secrets. Copies that the JSON parser made are beyond reach."""
        for secret in self._secrets.values():
            secret[:] = bytes(len(secret))
        self._secrets.clear()

    @override
    def __repr__(self) -> str:
        return f"FileRootKey(epochs={len(self._secrets)})"


def create(path: Path, mode: Mode, now: datetime, random: Callable[[int], bytes]) -> None:
    """Make a root key file with one epoch. An existing file is never replaced.

    The file appears whole or not at all, and is on disk when this returns: keys must not be released
    under a root that a power cut can take back. Missing folders are made with mode 0700.

    Raises:
        ConfigurationError: something is already there, or it cannot be written.
        ValueError: `random` gave another number of bytes, or `now` is naive.

    """
    content = write(RootDocument(mode, now, {FOUNDING_EPOCH: random(SECRET_LENGTH)}))
    try:
        _make_private(path.parent)
        _write_new(path, content)
    except FileExistsError:
        raise ConfigurationError(
            f"root key file {path}: something is already there, and it is never overwritten",
            remedy="Use what is there, or choose another path.",
        ) from None
    except OSError as error:
        raise ConfigurationError(
            f"root key file {path} cannot be made: {error.strerror}",
            remedy="Choose a folder that this user can write, on a file system with hard links.",
        ) from None


def _read_private(path: Path) -> bytes:
    # O_NONBLOCK: a FIFO in the file's place must not hang the start.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise RootKeyMissing(f"there is no root key file {path}", remedy=_RESTORE) from None
    except OSError as error:
        raise ConfigurationError(
            f"root key file {path} cannot be opened: {error.strerror}",
            remedy="It must be a regular file (not a link) of the user who runs the server.",
        ) from None
    try:
        _require_private(path, os.fstat(descriptor))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(_AT_MOST + 1)
    except OSError as error:
        raise ConfigurationError(f"root key file {path} cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)
    if len(content) > _AT_MOST:
        raise ConfigurationError(f"root key file {path} is longer than {_AT_MOST} bytes", remedy=_RESTORE)
    return content


def _require_private(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ConfigurationError(f"root key {path} is not a regular file", remedy=_RESTORE)
    if status.st_uid != os.geteuid():
        raise ConfigurationError(
            f"root key file {path} belongs to another user",
            remedy="Whoever owns it can change it: chown it to the user who runs the server.",
        )
    if status.st_mode & _FOREIGN_BITS:
        raise ConfigurationError(
            f"root key file {path} has mode {stat.S_IMODE(status.st_mode):04o}: others can use it",
            remedy=f"chmod 0600 {path}; if others may have read it, its keys are known to them.",
        )


def _make_private(folder: Path) -> None:
    """Make the folder and its missing parents, each 0700 and entered durably in its own parent."""
    if folder.is_dir():
        return
    _make_private(folder.parent)
    with contextlib.suppress(FileExistsError):  # another server of ours may be faster
        folder.mkdir(mode=0o700)
    _sync_folder(folder.parent)


def _write_new(path: Path, content: bytes) -> None:
    # link() fails where anything has the name, which rename() would replace: two servers that start at
    # once cannot each make a root and lose one.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
