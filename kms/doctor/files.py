"""The files of a server: who may read them, and how much space is left."""

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from kms import private_files
from kms.errors import ConfigurationError
from kms.findings import Finding, failed, ok, refused, unknown, warning
from kms.settings import Settings

_NO_SPACE: Final = 100 << 20  # bytes
_LITTLE_SPACE: Final = 1 << 30
_MIB: Final = 1 << 20


def files(settings: Settings, tls_key: Path) -> Iterator[Finding]:
    """Look at the data folder and at the TLS key."""
    yield _folder(settings.data_dir)
    yield _tls_key(tls_key)


def disk_space(folder: Path) -> Finding:
    """See how much space is left where a folder is, or would be."""
    name = "disk-space"
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    detail = f"{free // _MIB} MiB are free at {folder}"
    if free < _LITTLE_SPACE:
        remedy = "make space: what cannot be recorded is not released"
        return failed(name, detail, remedy) if free < _NO_SPACE else warning(name, detail, remedy)
    return ok(name, detail)


def _folder(folder: Path) -> Finding:
    name = "data-folder"
    try:
        status = folder.stat()
    except FileNotFoundError:
        return warning(name, f"{folder} is not there", "the server makes it; is KMS_DATA_DIR the right one?")
    except OSError as error:
        return failed(name, f"{folder}: {error.strerror}", "run this as the user who runs the server")
    if not stat.S_ISDIR(status.st_mode):
        return failed(name, f"{folder} is no folder", "set KMS_DATA_DIR to a folder")
    if status.st_uid != os.geteuid():
        return warning(
            name,
            f"{folder} belongs to user {status.st_uid}, and this is user {os.geteuid()}",
            "run this as the user who runs the server: what is said of files is true for this user",
        )
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        return failed(name, f"{folder} cannot be written", f"chmod 0700 {folder}; is the disk read-only?")
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        return warning(name, f"{folder} has mode {mode:04o}: others can look into it", f"chmod 0700 {folder}")
    return ok(name, f"{folder} is this user's alone")


def _tls_key(key: Path) -> Finding:
    if not key.exists():
        return unknown("tls-key", f"{key} is not there")
    try:
        private_files.read_secret(key, what="TLS key")
    except ConfigurationError as error:
        return refused("tls-key", error)
    return ok("tls-key", f"{key} is for this user alone")
