"""The anchor: what this server has used last, kept where the owner of the database cannot reach it.

One small file, ``{"policy": {"revision": "sha256:…", "sequence": 9}}``, that only ever goes forward. By it an
older database that was put in the place of a newer one is noticed (`kms.policy_authority`). Other members of
the object are kept as they are: more will be anchored than policies.
"""

import asyncio
import errno
import fcntl
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from kms.errors import ConfigurationError, LedgerUnavailable
from kms.policy.history import Head
from kms.policy_authority import PolicyUntrusted
from kms.strict_json import Fields, JsonError, JsonValue, parse_object

_POLICY: Final = "policy"
_AT_MOST: Final = 1 << 16  # bytes
_FOREIGN_WRITE: Final = 0o022
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(.*)", re.DOTALL)
_LOCK_WITHIN: Final = 10.0  # seconds
_POLL: Final = 0.01
_RESTORE: Final = (
    "Restore it, or copy it from another server of this KMS. Only where there is none: look at the policy in "
    "the database, and remove the file; the server then takes what the database says."
)

T = TypeVar("T")


class AnchorUnusable(PolicyUntrusted):
    """What was used last cannot be told, so nothing that the database says may be used."""

    def __init__(self, detail: str, *, remedy: str) -> None:
        super().__init__(f"{detail}. {remedy}", reason="anchor-unusable")


@dataclass(frozen=True, slots=True)
class FileAnchor:
    """Implements `kms.operator_ports.SeenHead` with a file, shared by the processes of one server."""

    path: Path

    @classmethod
    def from_setting(cls, text: str | None, default: Path) -> "FileAnchor":
        """Read `KMS_LEDGER_ANCHOR`: a path or ``file:PATH``; `default` is the path where it is not set.

        Raises:
            ConfigurationError: something else.

        """
        if text is None:
            return cls(default)
        # The rest of another URI may hold a password: it is not repeated.
        match = _SCHEME.fullmatch(text)
        path = text if match is None else match[2]
        if match is not None and match[1] != "file":
            raise ConfigurationError(
                "KMS_LEDGER_ANCHOR: this version keeps the anchor in a file",
                remedy="Set it to a path or file:PATH, best on another disk than the database.",
            )
        if not path or "\0" in path or (path.startswith("//") and not path.startswith("///")):
            raise ConfigurationError(
                "KMS_LEDGER_ANCHOR needs the path of a file on this machine",
                remedy="Write /var/lib/kms-anchor/anchor.json or file:///var/lib/kms-anchor/anchor.json.",
            )
        return cls(Path(path))

    async def read(self) -> Head | None:
        """Give what was used last; None where there is no file, so that nothing ever was.

        Raises:
            AnchorUnusable: the file is damaged, others can write it, or its folder is not there. That
                never counts as "nothing was used".

        """
        return await asyncio.to_thread(lambda: _head(self._members(), self.path))

    async def remember(self, head: Head) -> None:
        """Keep what is used from now on. It is on disk when this returns, so call it before.

        Raises:
            PolicyUntrusted: something newer was used, or another revision under this number.
            AnchorUnusable: as `read`.
            LedgerUnavailable: it could not be written.

        """
        await asyncio.to_thread(self._remember, head)

    def _remember(self, head: Head) -> None:
        with self._alone():
            members = self._members()
            seen = _head(members, self.path)
            if seen == head:
                return
            if seen is not None and head.sequence <= seen.sequence:
                raise PolicyUntrusted(f"{head} cannot be used: this server has used {seen}")
            policy: JsonValue = {"revision": head.revision, "sequence": head.sequence}
            content = json.dumps({**(members or {}), _POLICY: policy}, sort_keys=True).encode() + b"\n"
            self._on_disk(lambda: _replace(self.path, content))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Be the only process that reads, compares and writes. The lock ends with the process."""
        # A file of its own: the anchor itself is replaced, and a lock on what was replaced locks nothing.
        path = self.path.with_name(f"{self.path.name}.lock")
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = self._on_disk(lambda: os.open(path, flags, 0o600))
        try:
            self._on_disk(lambda: _leave_to_owner_of(path.parent, descriptor))
            self._on_disk(lambda: _lock(descriptor))
            yield
        finally:
            os.close(descriptor)

    def _on_disk(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except OSError as error:
            raise LedgerUnavailable(f"the anchor {self.path} cannot be written: {error.strerror}") from error

    def _members(self) -> dict[str, JsonValue] | None:
        """Read the file's JSON object; None where there is no file."""
        try:
            content = self._content()
        except FileNotFoundError:
            if self.path.parent.is_dir():
                return None
            raise AnchorUnusable(
                f"the folder of the anchor {self.path} is not there",
                remedy="Make it, or mount the disk that it is on.",
            ) from None
        except OSError as error:
            raise AnchorUnusable(
                f"the anchor {self.path} cannot be read: {error.strerror}",
                remedy="It must be a regular file (not a link) that the user who runs the server can read.",
            ) from None
        if len(content) > _AT_MOST:
            raise _damaged(self.path, f"longer than {_AT_MOST} bytes")
        try:
            return parse_object(content)
        except JsonError as error:
            raise _damaged(self.path, str(error)) from None

    def _content(self) -> bytes:
        # O_NOFOLLOW: writing would replace the link and leave what it names. O_NONBLOCK: a FIFO must not hang
        # the server.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(self.path, flags)
        try:
            self._require_ours(os.fstat(descriptor))
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                return file.read(_AT_MOST + 1)
        finally:
            os.close(descriptor)

    def _require_ours(self, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise _damaged(self.path, "not a regular file")
        # Whoever can write it can bring an old policy back. It holds nothing secret. The folder's owner can
        # replace it whatever its mode is: root works for a server that runs as somebody else.
        owners = {os.geteuid(), 0, self.path.parent.stat().st_uid}
        if status.st_uid not in owners or status.st_mode & _FOREIGN_WRITE:
            raise AnchorUnusable(
                f"the anchor {self.path} can be written by others than the user who runs the server",
                remedy=f"chown it to that user and chmod 0600 {self.path}, if what it says is still right.",
            )


def _head(members: dict[str, JsonValue] | None, path: Path) -> Head | None:
    if members is None:
        return None
    try:
        policy = Fields(members, "the object").object(_POLICY)
        head = Head(policy.integer("sequence", minimum=1), policy.text("revision", at_most=80))
        policy.end()
    except JsonError as error:
        raise _damaged(path, str(error)) from None
    return head


def _lock(descriptor: int) -> None:
    end = time.monotonic() + _LOCK_WITHIN
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise TimeoutError(errno.ETIMEDOUT, "another process holds its lock") from None
            time.sleep(_POLL)
        else:
            return


def _replace(path: Path, content: bytes) -> None:
    """Put a file in place, whole or not at all; on disk when this returns: a power cut takes nothing back."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            _leave_to_owner_of(path if path.exists() else path.parent, descriptor)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _leave_to_owner_of(path: Path, descriptor: int) -> None:
    """Let a command of root's not take a file away from the server, which may run as somebody else."""
    if os.geteuid() == 0:
        owner = path.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def _damaged(path: Path, why: str) -> AnchorUnusable:
    return AnchorUnusable(f"the anchor {path} is damaged: {why}", remedy=_RESTORE)
