"""Listening on Unix sockets of this machine: from systemd or at a path, and who is at the other end.

What the kernel says of a peer is proof (`peer_of`); the name that a peer bound its own socket to is what the
peer wrote there itself (`peer_name`), and proves nothing.
"""

import contextlib
import errno
import os
import socket
import stat
import struct
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kms.errors import ConfigurationError

_FIRST_PASSED: Final = 3  # SD_LISTEN_FDS_START of sd_listen_fds(3)
_BACKLOG: Final = 64
_UCRED: Final = struct.Struct("=iII")  # struct ucred of unix(7): pid, uid, gid
# include/uapi/asm-generic/socket.h, since Linux 4.13; Python 3.11 has no name for it.
_SO_PEERGROUPS: Final = 59
_GID: Final = 4  # bytes of a gid_t
_GROUPS_LENGTH: Final = 1024  # bytes; no `getsockopt` of Python's gives more
_OTHERS_MAY_WRITE: Final = 0o022
_NOBODY: Final = -1
_ALL_MAPPED: Final = ["0", "0", "4294967295"]
_OVERFLOW: Final = 65534  # what the kernel's overflow ids are unless somebody changed them


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Who connected, as the kernel noted it at connect(2), in the ids of this process's user namespace.

    `uid` is -1 for a user that this namespace does not know: the kernel gives all of them the same number.
    `groups` are the group and the supplementary groups; of a peer in more than 256, the group alone. `pid` is
    for logs only: it may be somebody else's by now.
    """

    pid: int
    uid: int
    groups: frozenset[int]


def peer_of(connection: socket.socket) -> Peer:
    """Ask the kernel who is at the other end: SO_PEERCRED of unix(7), and SO_PEERGROUPS.

    Not /proc/PID/status: the process may have ended, and its number be another's. The groups are those at
    connect(2) too (Linux, net/core/sock.c, `sk_getsockopt`).

    Raises:
        OSError: the kernel does not say.

    """
    pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_LENGTH)
    except OSError as error:
        if error.errno != errno.ERANGE:
            raise
        raw = b""
    supplementary = struct.unpack(f"={len(raw) // _GID}I", raw)
    groups = frozenset({gid, *supplementary})
    nobody = _unmapped_ids()
    return Peer(pid=pid, uid=_NOBODY if uid in nobody else uid, groups=groups - nobody)


def _unmapped_ids() -> frozenset[int]:
    """Give the ids that stand for every user or group that this user namespace does not know."""
    try:
        if Path("/proc/self/uid_map").read_text("ascii").split() == _ALL_MAPPED:
            return frozenset()
        # user_namespaces(7), "Unmapped user and group IDs"
        return frozenset(int(Path(f"/proc/sys/kernel/overflow{kind}").read_text()) for kind in ("uid", "gid"))
    except (OSError, ValueError):
        return frozenset({_OVERFLOW})


def peer_name(connection: socket.socket) -> bytes | None:
    """Give the abstract name (without its NUL) that the peer bound its own socket to; None without one.

    The peer chose it. Whoever can connect can choose the same.
    """
    name = connection.getpeername()
    # An abstract name is bytes that begin with NUL; a path is `str`, and a socket without a name is "".
    return name[1:] if isinstance(name, bytes) and name[:1] == b"\0" else None


def passed_listener(environment: MutableMapping[str, str]) -> socket.socket | None:
    """Take the listening socket that systemd passed to this process (sd_listen_fds(3)); None without one.

    The variables are removed: they are not for children.

    Raises:
        ConfigurationError: several sockets, or not a listening Unix stream socket.

    """
    for_pid, count = environment.pop("LISTEN_PID", None), environment.pop("LISTEN_FDS", None)
    environment.pop("LISTEN_FDNAMES", None)
    if for_pid != str(os.getpid()):
        return None
    remedy = "one ListenStream= with a path in the .socket unit, and Accept=no"
    if count != "1":
        raise ConfigurationError("systemd must pass one socket", remedy=remedy)
    try:
        listener = socket.socket(fileno=_FIRST_PASSED)
    except OSError as error:
        raise ConfigurationError(
            f"what systemd passed is no socket: {error.strerror}", remedy=remedy
        ) from error
    listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if listener.family != socket.AF_UNIX or listener.type != socket.SOCK_STREAM or not listening:
        listener.close()
        raise ConfigurationError("systemd passed another kind of socket", remedy=remedy)
    listener.set_inheritable(False)
    return listener


@contextmanager
def listening(path: Path, *, mode: int) -> Iterator[socket.socket]:
    """Listen at a path that only this user and root can change; what is left of an earlier run is replaced.

    `mode` are the permission bits: who may connect (unix(7)). The path is removed at the end.

    Raises:
        ConfigurationError: others could put a socket of theirs in its place, something is there, or somebody
            listens there.

    """
    _require_own_folder(path.parent)
    _remove_stale(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            listener.bind(str(path))
            made = path.lstat()
            # Before `listen`: until then nobody can connect, whatever the mode.
            path.chmod(mode)
            listener.listen(_BACKLOG)
        except OSError as error:
            raise ConfigurationError(f"cannot listen on {path}: {error.strerror or error}") from error
        try:
            yield listener
        finally:
            with contextlib.suppress(OSError):
                if os.path.samestat(path.lstat(), made):
                    path.unlink()


def notify(state: str, environment: MutableMapping[str, str]) -> None:
    """Tell the service manager, if one wants to know, `READY=1` or `STOPPING=1` (sd_notify(3))."""
    address = environment.get("NOTIFY_SOCKET", "")
    if address[:1] not in {"/", "@"}:
        return
    # It is told or it is not: a service does not end over it.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.connect(f"\0{address[1:]}" if address[0] == "@" else address)
        manager.send(state.encode("ascii"))


def _require_own_folder(folder: Path) -> None:
    try:
        status = folder.stat()
    except OSError as error:
        raise ConfigurationError(f"{folder}: {error.strerror}", remedy=f"mkdir -m 755 {folder}") from error
    if status.st_uid not in {0, os.geteuid()} or stat.S_IMODE(status.st_mode) & _OTHERS_MAY_WRITE:
        raise ConfigurationError(
            f"others can write to {folder}, and put a socket of theirs in the place of this one",
            remedy="name a path in a folder that is root's alone to write, as /run/attested-kms",
        )


def _remove_stale(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigurationError(
                f"{path} is there, and no socket", remedy="remove it, or name another path"
            )
        if not _is_answered(path):
            path.unlink()
            return
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror or error}") from error
    raise ConfigurationError(f"somebody listens on {path} already", remedy="stop that, or name another path")


def _is_answered(path: Path) -> bool:
    """Say whether somebody listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.settimeout(1.0)
        try:
            caller.connect(str(path))
        except ConnectionRefusedError:
            return False
    return True
