"""Small files that only their owner may read, or only their owner may change: one way to read and write them.

What is read is judged by what was opened, not by what the path names a moment later. What is written appears
whole or not at all, and is on disk when the call returns: a power cut takes nothing back. Everything but
`read_secret` may raise `OSError`; callers say it, and `Unfit`, in their own words.
"""

import contextlib
import errno
import fcntl
import glob
import os
import secrets
import stat
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from kms.errors import ConfigurationError

_SECRET: Final = 64 << 10  # bytes; longer than any token or key
_LOCK_WITHIN: Final = 10.0  # seconds
_POLL: Final = 0.01
_RANDOM_BYTES: Final = 8  # of a temporary file's name


class Unfit(Exception):
    """The file is not as it must be. The text goes on from the file's name; it repeats no content."""


class NotRegular(Unfit):
    """A folder, a pipe, a device."""

    def __init__(self) -> None:
        super().__init__("is not a regular file")


class ForeignOwner(Unfit):
    """Another user owns the file, and can change it whatever its mode is."""

    def __init__(self) -> None:
        super().__init__("belongs to another user")


class ForeignMode(Unfit):
    """The mode lets others in; `mode` are its permission bits."""

    def __init__(self, mode: int) -> None:
        super().__init__(f"has mode {mode:04o}: others can use it")
        self.mode = mode


class TooLong(Unfit):
    """The file is longer than anything of its kind."""

    def __init__(self, at_most: int) -> None:
        super().__init__(f"is longer than {at_most} bytes")


def read(
    path: Path,
    *,
    at_most: int,
    owners: Collection[int] | None,
    foreign: int = 0o077,
    follow: bool = False,
) -> bytearray:
    """Read a file of at most `at_most` bytes, into a buffer that the caller can overwrite.

    `owners` are the user ids that may own it, None for anybody; `foreign` are the permission bits that it
    must not have. A link is only followed with `follow`.

    Raises:
        Unfit: it is not like that.
        OSError: it cannot be opened (a link too: ELOOP) or read.

    """
    # O_NONBLOCK: a pipe in the file's place must not hang the process.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    descriptor = os.open(path, flags)
    try:
        _require_fit(os.fstat(descriptor), owners, foreign)
        content = bytearray(at_most + 1)
        length = 0
        while count := os.readv(descriptor, [memoryview(content)[length:]]):
            length += count
    finally:
        os.close(descriptor)
    if length > at_most:
        raise TooLong(at_most)
    del content[length:]
    return content


def read_secret(
    path: Path, *, what: str, at_most: int = _SECRET, ours: bool = True, foreign: int = 0o077
) -> bytearray:
    """Read a small file with a secret that an operator named; `what` it is, in messages.

    Links are followed, as secrets that Kubernetes mounts are links: the file itself is judged. With `ours`
    it must be this user's or root's, as systemd's credentials are.

    Raises:
        ConfigurationError: it cannot be read, or is not like that.

    """
    if os.environ.get("CREDENTIALS_DIRECTORY") == str(path.parent):
        # systemd lets the service's user in by an ACL where its file system has them, and stat(2) shows the
        # ACL's mask as the group's bits (acl(5)): 0440, though no group may read it.
        foreign &= ~0o040
    try:
        owners = {os.geteuid(), 0} if ours else None
        return read(path, at_most=at_most, owners=owners, foreign=foreign, follow=True)
    except OSError as error:
        why = f"cannot be read: {error.strerror}"
        remedy = "it must be a file that the user who runs this can read"
    except ForeignMode as unfit:
        why, remedy = str(unfit), f"chmod 600 {path}; if others could read it until now, replace the {what}"
    except ForeignOwner as unfit:
        why, remedy = str(unfit), f"chown it to the user who runs this, and chmod 600 {path}"
    except Unfit as unfit:
        why, remedy = str(unfit), f"name a file with the {what}, and nothing else"
    raise ConfigurationError(f"the {what} file {path} {why}", remedy=remedy)


def write_new(path: Path, content: bytes) -> None:
    """Make a file, mode 0600. What is there already, be it a dangling link, is never replaced.

    Raises:
        FileExistsError: something is there.

    """
    with _draft(path, content) as draft:
        # link() fails where anything has the name, which rename() would replace: of two processes at once,
        # one would lose what the other has made.
        os.link(draft, path)
    sync_folder(path.parent)


def replace(path: Path, content: bytes, *, mode: int = 0o600, owner_of: Path | None = None) -> None:
    """Put a file in place of another, or of none. After a failure the old one is there, or the new one.

    If root does it, the file is given to the owner of `owner_of`: a command of root's must not take a file
    away from the server, which may run as somebody else.
    """
    with _draft(path, content, mode=mode, owner_of=owner_of) as draft:
        draft.replace(path)
    sync_folder(path.parent)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Be the only one that reads, compares and replaces `path`. The lock ends with the process.

    What a crash left of an earlier `replace` is removed: it may hold the secrets that the file holds.

    Raises:
        TimeoutError: another process did not give the lock back in time.

    """
    # A file of its own: `path` itself is replaced, and a lock on what was replaced locks nothing. Not the
    # folder: NFS only locks what is open for writing (flock(2)).
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path.with_name(f"{path.name}.lock"), flags, 0o600)
    try:
        _leave_to_owner_of(path.parent, descriptor)
        _lock(descriptor)
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 2 * _RANDOM_BYTES}"):
            leftover.unlink(missing_ok=True)
        yield
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents, each 0700 and entered durably in its own parent."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):  # another process of ours may be faster
        folder.mkdir(mode=0o700)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _require_fit(status: os.stat_result, owners: Collection[int] | None, foreign: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise NotRegular
    if owners is not None and status.st_uid not in owners:
        raise ForeignOwner
    if status.st_mode & foreign:
        raise ForeignMode(stat.S_IMODE(status.st_mode))


@contextmanager
def _draft(path: Path, content: bytes, *, mode: int = 0o600, owner_of: Path | None = None) -> Iterator[Path]:
    """Give a file beside `path` with this content, which is on disk; it is gone afterwards."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(_RANDOM_BYTES)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            if owner_of is not None:
                _leave_to_owner_of(owner_of, descriptor)
            file.write(content)
            file.flush()
            if mode != 0o600:
                os.fchmod(descriptor, mode)  # whatever the umask is
            os.fsync(descriptor)
        yield draft
    finally:
        draft.unlink(missing_ok=True)


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


def _leave_to_owner_of(path: Path, descriptor: int) -> None:
    owner = path.stat()
    if os.geteuid() == 0 and os.fstat(descriptor).st_uid != owner.st_uid:
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
