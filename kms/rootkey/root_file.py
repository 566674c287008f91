"""The file of the ``file:`` provider: opened, made, grown by an epoch, and put under another passphrase.

It is opened without following a link, and judged by what was opened, so that nobody can swap it between the
look and the read. It is only ever replaced whole, under a lock, by one that holds every epoch that was there.
"""

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from kms import private_files
from kms.errors import ConfigurationError
from kms.keys import passphrase_document
from kms.keys.passphrase_document import (
    SHORTEST_PASSPHRASE,
    NotOpened,
    PassphraseDocumentError,
    PassphraseTooShort,
)
from kms.keys.root_messages import MAX_EPOCHS, SECRET_LENGTH, Mode
from kms.keys.wiping import wipe
from kms.rootkey import root_document
from kms.rootkey.provider import RootKeyMissing
from kms.rootkey.root_document import RootDocument, RootDocumentError

_ENCRYPTED: Final = "attested-kms/root-key-encrypted"
_AT_MOST: Final = 1 << 20  # bytes; more than `MAX_EPOCHS` need
_RESTORE: Final = "Restore it from a backup; a new one would open no existing disk."


@dataclass(frozen=True, slots=True)
class RootFile:
    """A root key file of a mode, and what gives the passphrase that it is encrypted under, if it is."""

    path: Path
    mode: Mode
    passphrase: Callable[[], bytes] | None = field(default=None, repr=False)

    def content(self) -> bytearray:
        """Read the file's text, for `parse`.

        Raises:
            RootKeyMissing: there is no such file.
            ConfigurationError: not a regular file of ours with mode 0600, or it cannot be read.

        """
        try:
            return private_files.read(self.path, at_most=_AT_MOST, owners={os.geteuid()})
        except FileNotFoundError:
            raise RootKeyMissing(f"there is no root key file {self.path}", remedy=_RESTORE) from None
        except OSError as error:
            raise self._unusable(
                f"cannot be opened: {error.strerror}",
                "It must be a regular file (not a link) of the user who runs the server.",
            ) from None
        except private_files.ForeignOwner as unfit:
            raise self._unusable(
                str(unfit), "Whoever owns it can change it: chown it to the user who runs the server."
            ) from None
        except private_files.ForeignMode as unfit:
            raise self._unusable(
                str(unfit),
                f"chmod 0600 {self.path}; if others may have read it, its keys are known to them.",
            ) from None
        except private_files.Unfit as unfit:
            raise self._unusable(str(unfit), _RESTORE) from None

    def parse(self, content: bytearray) -> RootDocument:
        """Read and verify a text, and overwrite it.

        Raises:
            ConfigurationError: damaged, of the other mode, or (not) encrypted under this passphrase.

        """
        try:
            read = self._encrypted if passphrase_document.is_encrypted(content, _ENCRYPTED) else self._bare
            document = read(content)
        except (RootDocumentError, PassphraseDocumentError) as error:
            raise self._unusable(f"is {error}", _RESTORE) from None
        finally:
            wipe(content)
        if document.mode is not self.mode:
            raise self._unusable(
                f"was made for {document.mode} mode; this server runs in {self.mode} mode",
                "Use the data folder of this mode. A root never changes from one mode to the other.",
            )
        return document

    def load(self) -> RootDocument:
        """Read and verify the file; errors as `content` and `parse`."""
        return self.parse(self.content())

    def make(self, document: RootDocument) -> None:
        """Make the file. An existing one is never replaced.

        It appears whole or not at all, and is on disk when this returns: keys must not be released under a
        root that a power cut can take back. Missing folders are made with mode 0700.

        Raises:
            ConfigurationError: something is already there, it cannot be written, or the passphrase is short.

        """
        text = _text(document, self.passphrase)
        try:
            private_files.make_folder(self.path.parent)
            private_files.write_new(self.path, text)
        except FileExistsError:
            raise self._unusable(
                "cannot be made: something is already there, and it is never overwritten",
                "Use what is there, or choose another path.",
            ) from None
        except OSError as error:
            raise self._unusable(
                f"cannot be made: {error.strerror}",
                "Choose a folder that this user can write, on a file system with hard links.",
            ) from None

    def add_epoch(
        self, epoch: int, random: Callable[[int], bytes], check: Callable[[RootDocument], None]
    ) -> RootDocument:
        """Have `epoch` in the file, on disk, and give what the file then holds.

        `check` looks at what is there, before anything is added to it. After a failure the file is what it
        was, or has the epoch: the next call tells.

        Raises:
            ConfigurationError: it is not the next one, or as `load`, or the file cannot be written.

        """
        with self._alone():
            document = self.load()
            check(document)
            if epoch in document.secrets:
                # Whoever put it there may have died before its name was on disk.
                private_files.sync_folder(self.path.parent)
                return document
            newest = max(document.secrets)
            if epoch != newest + 1 or epoch > MAX_EPOCHS:
                raise self._unusable(
                    f"cannot have an epoch {epoch} now: it has 1 to {newest}",
                    f"Epochs are made one after the other, up to {MAX_EPOCHS}.",
                )
            longer = replace(document, secrets={**document.secrets, epoch: random(SECRET_LENGTH)})
            private_files.replace(self.path, _text(longer, self.passphrase))
            return longer

    def reseal(self, passphrase: Callable[[], bytes] | None) -> None:
        """Encrypt the file under another passphrase, or (None) not at all; errors as `add_epoch`."""
        with self._alone():
            private_files.replace(self.path, _text(self.load(), passphrase))

    def _encrypted(self, content: bytearray) -> RootDocument:
        if self.passphrase is None:
            raise self._unusable(
                "is encrypted", "Set KMS_ROOT_KEY_PASSPHRASE_FILE to the file with its passphrase."
            )
        try:
            plaintext = passphrase_document.decrypt(content, self.passphrase(), _ENCRYPTED)
        except NotOpened:
            raise self._unusable(
                "is encrypted: the passphrase does not open it, or the file is damaged",
                f"Give the passphrase that it was encrypted under. {_RESTORE}",
            ) from None
        try:
            return root_document.read(plaintext)
        finally:
            wipe(plaintext)

    def _bare(self, content: bytearray) -> RootDocument:
        document = root_document.read(content)
        if self.passphrase is not None:
            raise self._unusable(
                "is not encrypted, and there is a passphrase for it",
                "Encrypt it with `kms keys passphrase`, or unset KMS_ROOT_KEY_PASSPHRASE_FILE.",
            )
        return document

    @contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            with private_files.locked(self.path):
                yield
        except OSError as error:
            raise self._unusable(
                f"cannot be written: {error.strerror}",
                "This user must be able to write in its folder, with space left.",
            ) from None

    def _unusable(self, why: str, remedy: str) -> ConfigurationError:
        return ConfigurationError(f"root key file {self.path} {why}", remedy=remedy)


def _text(document: RootDocument, passphrase: Callable[[], bytes] | None) -> bytes:
    text = root_document.write(document)
    if passphrase is None:
        return text
    try:
        return passphrase_document.encrypt(text, passphrase(), _ENCRYPTED, random=secrets.token_bytes)
    except PassphraseTooShort:
        raise ConfigurationError(
            f"the passphrase of the root key file has fewer than {SHORTEST_PASSPHRASE} bytes",
            remedy="Choose a longer one: whoever has the file can guess as fast as they can pay for.",
        ) from None
