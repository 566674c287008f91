"""Reads a policy folder from disk: every ``*.yaml`` and ``*.yml``, at any depth.

Commands and the server's folder watch read through this one function. What the files say is judged
elsewhere (`kms.policy.lint`); here is only what a file system can do wrong.
"""

import os
import stat
from pathlib import Path
from typing import Final

from kms.errors import ConfigurationError

_SUFFIXES: Final = frozenset({".yaml", ".yml"})
_MAX_FILES: Final = 20_000
_MAX_DEPTH: Final = 32
_MAX_FILE: Final = 32 << 20  # kms.policy.yaml_documents.MAX_FILE_BYTES
_MAX_TOTAL: Final = 128 << 20


def read_folder(path: Path) -> dict[str, bytes]:
    """Give the files by their path under the folder (with ``/``), sorted.

    Names that begin with a dot are left out: editors and version control keep theirs there. A symbolic link
    may stay within the folder (Kubernetes mounts are made of such), but not lead out of it: what is in
    force must be what is in the folder that operators review.

    Raises:
        ConfigurationError: no such folder, an unreadable entry, a link that leads out, or too much of it.

    """
    try:
        root = path.resolve(strict=True)
        if not root.is_dir():
            raise ConfigurationError(f"{path}: not a folder", remedy="Name the folder that holds the policy.")
        files: dict[str, bytes] = {}
        for name, file in sorted(_walk(path, root, "", 0)):
            files[name] = _read(file, sum(map(len, files.values())))
    except OSError as error:
        raise ConfigurationError(
            f"{error.filename or path}: {error.strerror}", remedy="The server must be able to read all of it."
        ) from error
    return files


def _walk(folder: Path, root: Path, prefix: str, depth: int) -> list[tuple[str, Path]]:
    if depth > _MAX_DEPTH:
        raise ConfigurationError(f"{folder}: more than {_MAX_DEPTH} levels deep")
    found: list[tuple[str, Path]] = []
    with os.scandir(folder) as scan:
        entries = list(scan)
    for entry in entries:
        if entry.name.startswith("."):
            continue
        file, name = Path(entry.path), prefix + entry.name
        if entry.is_symlink():
            _refuse_escape(file, root)
        if entry.is_dir():
            found += _walk(file, root, name + "/", depth + 1)
        elif file.suffix in _SUFFIXES:
            found.append((name, file))
        if len(found) > _MAX_FILES:
            raise ConfigurationError(f"{folder}: more than {_MAX_FILES} files")
    return found


def _refuse_escape(link: Path, root: Path) -> None:
    if not link.resolve(strict=True).is_relative_to(root):
        raise ConfigurationError(
            f"{link}: a symbolic link that leads out of the policy folder",
            remedy="Copy the file into the folder, so that it is reviewed with the rest.",
        )


def _read(file: Path, already: int) -> bytes:
    # Not blocking, and no device or pipe: a reader that waits for one would hang the server.
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ConfigurationError(f"{file}: not a regular file")
        data = stream.read(_MAX_FILE + 1)
    if len(data) > _MAX_FILE or already + len(data) > _MAX_TOTAL:
        raise ConfigurationError(
            f"{file}: more than {_MAX_FILE >> 20} MiB in a file, or {_MAX_TOTAL >> 20} MiB in the folder"
        )
    return data
