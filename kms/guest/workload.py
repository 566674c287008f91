"""What this machine is to run, held against the hash that it was launched for."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Final

from kms.errors import ConfigurationError, MalformedEvidence
from kms.evidence.app_document import bind_document, host_data_of
from kms.guest.errors import AppDocumentRefused, RefusedHere
from kms.guest.host_files import read_parts
from kms.guest.secret_file import require_memory
from kms.identifiers import ComposeHash
from kms.measurement.images import Binding

MAX_WORKLOAD: Final = 1 << 30  # bytes
_WRITABLE_BY_OTHERS: Final = 0o022


class WorkloadRefused(RefusedHere):
    """The workload is not the one that the app's document or command line names. Nothing was asked.

    Reason: ``compose-hash-differs``.
    """

    code = "workload-refused"


def check_workload(path: Path, compose_hash: ComposeHash) -> None:
    """Check that SHA-256 of a file, or of a whole block device, is `compose_hash`.

    It says nothing of what is read there later: a host can change what is on its devices, so what runs must
    be a copy in memory that was checked (`workload_copied`).

    Raises:
        WorkloadRefused: it is another one.
        ConfigurationError: it cannot be read, or is longer than `MAX_WORKLOAD`.

    """
    digest = sha256()
    for part in read_parts(path, at_most=MAX_WORKLOAD):
        digest.update(part)
    _compare(path, digest.digest(), compose_hash)


@contextmanager
def workload_copied(path: Path, copy: Path, compose_hash: ComposeHash) -> Iterator[None]:
    """Copy a workload into memory, mode 0600, and check the copy; it is at `copy` when the block ended well.

    Not before: until HOST_DATA was compared, the compose hash is the host's word as the workload is. A copy
    that is there already is checked and left, for it may be running.

    Raises:
        WorkloadRefused: it is another one, or what is at `copy` is.
        ConfigurationError: as `check_workload`; or `copy` is, or would be, where others can change it.

    """
    with _telling(copy):
        _check_place(copy.parent, copy.parent.stat())
        if there := os.path.lexists(copy):
            _check_copy(copy, compose_hash)
    if there:
        yield
        return
    with _telling(copy):
        # Without a name, so that nothing stays of one that is killed.
        file = os.fdopen(os.open(copy.parent, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600), "wb")
    with file:
        with _telling(copy):
            digest = sha256()
            for part in read_parts(path, at_most=MAX_WORKLOAD):
                digest.update(part)
                file.write(part)
            file.flush()
        _compare(path, digest.digest(), compose_hash)
        yield
        with _telling(copy):
            _name(file.fileno(), copy, compose_hash)


@contextmanager
def _telling(copy: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigurationError(f"{copy}: {error.strerror}") from error


def _name(descriptor: int, copy: Path, compose_hash: ComposeHash) -> None:
    """Give a file without a name its name, as open(2) has it under O_TMPFILE."""
    folder = os.open(copy.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # With a folder's descriptor Python calls linkat(2), without one link(2), which follows no link.
        os.link(f"/proc/self/fd/{descriptor}", copy.name, dst_dir_fd=folder, follow_symlinks=True)
    except FileExistsError:  # another fetch was quicker
        _check_copy(copy, compose_hash)
    finally:
        os.close(folder)


def _check_copy(copy: Path, compose_hash: ComposeHash) -> None:
    status = copy.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise ConfigurationError(f"{copy} is no file")
    _check_place(copy, status)
    check_workload(copy, compose_hash)


def _check_place(path: Path, status: os.stat_result) -> None:
    """Refuse a file or folder that anybody but root and this user can change, or that is on a disk."""
    shared = status.st_mode & _WRITABLE_BY_OTHERS and not status.st_mode & stat.S_ISVTX
    if shared or status.st_uid not in {0, os.geteuid()}:
        raise ConfigurationError(f"others can write to {path}", remedy="take a folder of root's in /run")
    require_memory(
        path,
        status.st_dev,
        why="which is the host's to change",
        remedy="copy the workload to a tmpfs, as /run is",
    )


def compose_hash_of(document: bytes) -> ComposeHash:
    """Give the compose hash that an app document states, ours or dstack's; what it is bound to is not asked.

    Raises:
        AppDocumentRefused: it is no app document.

    """
    wrong = "it is no app document"
    for binding in (Binding.HOST_DATA, Binding.DSTACK_MR_CONFIG):
        try:
            identity = bind_document(document, host_data_of(document, binding))
        except MalformedEvidence as error:
            wrong = error.detail
        else:
            if identity is not None:
                return identity.compose_hash
    raise AppDocumentRefused(wrong, reason="app-document-unreadable")


def _compare(path: Path, digest: bytes, compose_hash: ComposeHash) -> None:
    if digest != compose_hash:
        raise WorkloadRefused(
            f"{path} is another workload than this machine was launched for: its SHA-256 is {digest.hex()},"
            f" not {compose_hash.hex()}",
            reason="compose-hash-differs",
        )
