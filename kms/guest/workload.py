"""What this machine is to run, held against the hash that it was launched for."""

import os
import stat
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Final

from kms.errors import ConfigurationError, MalformedEvidence
from kms.evidence.app_document import bind_document, host_data_of
from kms.guest.errors import AppDocumentRefused, RefusedHere
from kms.guest.secret_file import require_memory
from kms.identifiers import ComposeHash
from kms.measurement.images import Binding

MAX_WORKLOAD: Final = 1 << 30  # bytes
_PART: Final = 1 << 20


class WorkloadRefused(RefusedHere):
    """The workload is not the one that the app's document or command line names. Nothing was asked.

    Reason: ``compose-hash-differs``.
    """

    code = "workload-refused"


def check_workload(path: Path, compose_hash: ComposeHash) -> None:
    """Check that SHA-256 of a file, or of a whole block device, is `compose_hash`.

    It says nothing of what is read there later: a host can change what is on its devices, so what runs must
    be a copy in memory that was checked (`copy_workload`).

    Raises:
        WorkloadRefused: it is another one.
        ConfigurationError: it cannot be read, or is longer than `MAX_WORKLOAD`.

    """
    digest = sha256()
    _read(path, digest.update)
    _compare(path, digest.digest(), compose_hash)


def copy_workload(path: Path, copy: Path, compose_hash: ComposeHash) -> None:
    """Copy a workload into memory, mode 0600, and check the copy; it is there only if it is the right one.

    One that is there already is checked and left: it may be running.

    Raises:
        WorkloadRefused: it is another one, or what is at `copy` is.
        ConfigurationError: as `check_workload`; or `copy` is on a disk, or cannot be written.

    """
    if copy.exists():
        check_workload(copy, compose_hash)
        return
    digest, draft = sha256(), copy.with_name(f".{copy.name}.draft")
    try:
        require_memory(
            copy,
            copy.parent.stat().st_dev,
            why="which is the host's to change",
            remedy="copy the workload to a tmpfs, as /run is",
        )
        draft.unlink(missing_ok=True)  # of one that was killed
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:

                def take(part: bytes) -> None:
                    digest.update(part)
                    file.write(part)

                _read(path, take)
            _compare(path, digest.digest(), compose_hash)
            draft.rename(copy)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{copy}: {error.strerror}") from error


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


def _read(path: Path, take: Callable[[bytes], None]) -> None:
    """Hand a file or a block device over in parts. Raises `ConfigurationError`."""
    try:
        # O_NONBLOCK: a pipe in the file's place must not hang the boot.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            mode = os.fstat(descriptor).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
                raise ConfigurationError(f"{path} is neither a file nor a block device")
            length = 0
            while part := file.read(_PART):
                length += len(part)
                if length > MAX_WORKLOAD:
                    raise ConfigurationError(f"{path} is longer than {MAX_WORKLOAD} bytes")
                take(part)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error
