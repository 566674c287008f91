"""Credentials as systemd takes them: a file of one folder, named as its id.

``LoadCredential=NAME`` in a unit finds what is in /run/credstore (systemd.exec(5), "Credentials").
"""

import os
import re
import stat
from pathlib import Path
from typing import Final

from kms import private_files
from kms.errors import ConfigurationError
from kms.guest.secret_file import require_memory, warn_of_swap

CREDENTIAL_STORE: Final = Path("/run/credstore")
_WRITABLE_BY_OTHERS: Final = 0o022
# `credential_name_valid` (systemd, src/shared/creds-util.c): a file's name that is also the name of a file
# descriptor, which is printable ASCII without a colon (`fdname_is_valid`, src/basic/fd-util.c). It takes 255
# bytes; `private_files.replace` needs some of them for the draft beside the file.
_MAX_NAME: Final = 230
_NAME: Final = re.compile(rf"(?!\.{{1,2}}$)[ -.0-9;-~]{{1,{_MAX_NAME}}}")


def credential_name(text: str) -> str:
    """Check the name of a credential and give it. Raises `ValueError`, which does not repeat it."""
    if not _NAME.fullmatch(text):
        raise ValueError(f"a credential's name is 1 to {_MAX_NAME} printable ASCII characters, none : or /")
    return text


def check_credential(name: str, *, folder: Path = CREDENTIAL_STORE, allow_disk: bool) -> None:
    """Check, before anybody is asked for a key, that it could be kept; the folder is made, 0700.

    Raises:
        ConfigurationError: no name of a credential, or others may write to the folder, or it is on a disk.

    """
    try:
        credential_name(name)
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    try:
        private_files.make_folder(folder)
        status = folder.lstat()
    except OSError as error:
        raise ConfigurationError(f"{folder}: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode):
        raise ConfigurationError(f"{folder} is not a folder")
    if status.st_uid not in {0, os.geteuid()} or status.st_mode & _WRITABLE_BY_OTHERS:
        # Whoever may write there can put a key of their own in place of this one.
        raise ConfigurationError(f"others can write to {folder}", remedy=f"chown root {folder}; chmod 700 it")
    if not allow_disk:
        require_memory(folder, status.st_dev)


def write_credential(name: str, secret: bytes, *, folder: Path = CREDENTIAL_STORE, allow_disk: bool) -> Path:
    """Write a credential, 0600, whole or not at all, or replace it: after a rotation there is a new key.

    Raises:
        ConfigurationError: as `check_credential`, or it cannot be written.

    """
    check_credential(name, folder=folder, allow_disk=allow_disk)
    path = folder / name
    try:
        private_files.replace(path, secret)
        warn_of_swap(path)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error
    return path
