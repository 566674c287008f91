"""A SIMULATED configfs-tsm: the report interface of a confidential VM's kernel, as a FUSE file system.

The other side of what `kms.guest.tsm` reads, for machines that are not confidential VMs: tests, development,
and a VM under software emulation. It imports the standard library alone, so that this one file can be copied
into an initrd; who signs the reports is an argument.

Behaviour: drivers/virt/coco/guest/report.c, sev-guest.c beside it, and fs/configfs/file.c of Linux 6.12. Wire
format: include/uapi/linux/fuse.h, which is also where the numbers below are from. One thread answers one
request after the other; nothing is cached by the kernel (timeouts of zero, direct IO).
"""

import ctypes
import errno
import os
import select
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

Report = Callable[[bytes, int], tuple[bytes, bytes]]
"""(64 bytes of report data, privilege level) -> (report, certificates, or nothing of them).

An `OSError` of it is what the reader of `outblob` gets.
"""

_TEXT: Final = {"provider": 0o444, "generation": 0o444, "privlevel": 0o200, "privlevel_floor": 0o444}
_BLOBS: Final = {"inblob": 0o200, "outblob": 0o444, "auxblob": 0o444}
_MODES: Final = _TEXT | _BLOBS
_ATTRIBUTES: Final = tuple(_MODES)
_INBLOB_MAX: Final = 64  # TSM_REPORT_INBLOB_MAX, include/linux/tsm.h, as are the next two
_OUTBLOB_MAX: Final = 32 * 1024
_PRIVLEVEL_MAX: Final = 3
_PAGE: Final = 4096

# A node id is the entry's number and, in the low four bits, 0 for its folder or 1 and more for an attribute.
_ROOT: Final = 1
_PLACE_BITS: Final = 4

_MAX_WRITE: Final = 64 * 1024
_BUFFER: Final = _MAX_WRITE + _PAGE
_IN_HEADER: Final = struct.Struct("<IIQQIIIHH")
_OUT_HEADER: Final = struct.Struct("<IiQ")
_INIT_IN: Final = struct.Struct("<IIII")
_INIT_OUT: Final = struct.Struct("<IIIIHHIIHHI28x")
_ATTR: Final = struct.Struct("<QQQQQQIIIIIIIIII")
_ENTRY_OUT: Final = struct.Struct("<QQQQII")
_ATTR_OUT: Final = struct.Struct("<QII")
_OPEN_IN: Final = struct.Struct("<II")
_OPEN_OUT: Final = struct.Struct("<QII")
_READ_IN: Final = struct.Struct("<QQIIQII")
_WRITE_IN: Final = struct.Struct("<QQIIQII")
_WRITE_OUT: Final = struct.Struct("<II")
_HANDLE_IN: Final = struct.Struct("<Q")
_DIRENT: Final = struct.Struct("<QQII")
_STATFS: Final = struct.Struct("<QQQQQIIII24x")
_MAJOR, _MINOR = 7, 31
_DIRECT_IO: Final = 1  # FOPEN_DIRECT_IO
_NO_REPLY: Final = frozenset({2, 36, 42})  # FORGET, INTERRUPT, BATCH_FORGET

_MNT_DETACH: Final = 2
_libc: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What is wrong with this kernel or platform; as it stands, nothing.

    `provider` is the word in the attribute. `generation_step` is what one write adds: 2 is another process
    that wrote too, 0 a kernel that does not count. `busy_for` seconds from the first read of `outblob`,
    reading it gives EBUSY. `cut` is how many bytes of the report are handed out. `auxblob` False: the
    attribute is not there. `other_report_data`: the report is over other bytes than asked. `deny_mkdir`:
    EACCES. `deny_rmdir`: EBUSY. `privlevel_floor`: the lowest privilege level that may be asked for.
    """

    provider: str = "sev_guest"
    generation_step: int = 1
    busy_for: float = 0.0
    cut: int | None = None
    auxblob: bool = True
    other_report_data: bool = False
    deny_mkdir: bool = False
    deny_rmdir: bool = False
    privlevel_floor: int = 0


@dataclass(slots=True)
class _Entry:
    """A folder that a guest made, and the state behind its attributes."""

    name: str
    number: int
    written: int = 0
    """The generation of what was written, and of what `report` answers."""
    answered: int = 0
    inblob: bytes = b""
    privlevel: int = 0
    report: bytes | None = None
    certificates: bytes = b""

    def node(self, attribute: str | None = None) -> int:
        place = 0 if attribute is None else 1 + _ATTRIBUTES.index(attribute)
        return self.number << _PLACE_BITS | place


@dataclass(slots=True)
class _Handle:
    """An open file: its content is taken at the first read, and a blob is stored when it is closed."""

    entry: _Entry
    attribute: str
    content: bytes | None = None
    blob: bytearray = field(default_factory=bytearray)


class SimulatedTsm:
    """A SIMULATED configfs-tsm whose reports are what `report` signs. `faults` may be changed at any time."""

    def __init__(self, report: Report, *, faults: Faults = Faults()) -> None:
        self.faults = faults
        self._report = report
        self._entries: dict[str, _Entry] = {}
        self._made = 0
        self._handles: dict[int, _Handle | tuple[str, ...]] = {}
        self._opened = 0
        self._first_asked: float | None = None
        self._operations: dict[int, Callable[[int, bytes], bytes]] = {
            1: self._lookup,
            3: self._getattr,
            4: self._getattr,  # SETATTR: O_TRUNC and the like change nothing in configfs
            9: self._mkdir,
            11: self._rmdir,
            14: self._open,
            15: self._read,
            16: self._write,
            17: lambda _node, _body: _STATFS.pack(0, 0, 0, 0, 0, _PAGE, 255, _PAGE, 0),
            18: self._release,
            25: self._flush,
            26: self._init,
            27: self._opendir,
            28: self._readdir,
            29: self._release,
            34: lambda _node, _body: b"",  # ACCESS
            35: self._refuse_files,  # CREATE
            8: self._refuse_files,  # MKNOD
            38: lambda _node, _body: b"",  # DESTROY
        }

    @property
    def entries(self) -> tuple[str, ...]:
        """The names of the entries that are there: what a guest made and did not remove."""
        return tuple(self._entries)

    @contextmanager
    def serve(self, mountpoint: Path) -> Iterator[None]:
        """Mount on a folder that exists, and answer in a thread until the end of the block. Takes root.

        Raises:
            OSError: /dev/fuse or mount(2) refused.

        """
        device = _mount(mountpoint)
        end, ended = os.pipe()
        thread = threading.Thread(target=self._answer, args=(device, end), name="simulated-tsm", daemon=True)
        thread.start()
        try:
            yield
        finally:
            _unmount(mountpoint)
            os.close(ended)
            thread.join()
            os.close(end)

    def run(self, mountpoint: Path) -> None:
        """Mount on a folder that exists, and answer until somebody unmounts it, or an exception ends it."""
        device = _mount(mountpoint)
        try:
            self._answer(device)
        finally:
            _unmount(mountpoint)

    def _answer(self, device: int, end: int | None = None) -> None:
        """Answer requests until the file system is unmounted or `end` is closed at its other side."""
        waiting = [device] if end is None else [device, end]
        try:
            while True:
                ready, _, _ = select.select(waiting, [], [])
                if end in ready:
                    return
                try:
                    request = os.read(device, _BUFFER)
                except OSError as error:
                    if error.errno == errno.ENODEV:  # unmounted
                        return
                    if error.errno in (errno.ENOENT, errno.EAGAIN, errno.EINTR):  # an interrupted request
                        continue
                    raise
                reply = self._reply(request)
                if reply is not None:
                    try:
                        os.write(device, reply)
                    except FileNotFoundError:  # who asked is gone
                        continue
        finally:
            # Closing the device fails whatever still waits for an answer: nobody hangs on us.
            os.close(device)

    def _reply(self, request: bytes) -> bytes | None:
        _, opcode, unique, node, *_ = _IN_HEADER.unpack_from(request)
        if opcode in _NO_REPLY:
            return None
        try:
            operation = self._operations.get(opcode)
            if operation is None:
                raise OSError(errno.EPERM if opcode in (10, 12, 45) else errno.ENOSYS, "")  # UNLINK, RENAME
            body = operation(node, request[_IN_HEADER.size :])
        except OSError as error:
            return _OUT_HEADER.pack(_OUT_HEADER.size, -(error.errno or errno.EIO), unique)
        return _OUT_HEADER.pack(_OUT_HEADER.size + len(body), 0, unique) + body

    def _init(self, _node: int, body: bytes) -> bytes:
        _, minor, read_ahead, _ = _INIT_IN.unpack_from(body)
        return _INIT_OUT.pack(_MAJOR, min(minor, _MINOR), read_ahead, 0, 0, 0, _MAX_WRITE, 1, 0, 0, 0)

    # Folders

    def _lookup(self, node: int, body: bytes) -> bytes:
        name = os.fsdecode(body.rstrip(b"\0"))
        if node == _ROOT:
            entry = self._entries.get(name)
            if entry is None:
                raise OSError(errno.ENOENT, name)
            return self._found(entry.node())
        entry, attribute = self._at(node)
        if attribute is not None or name not in self._attributes():
            raise OSError(errno.ENOENT, name)
        return self._found(entry.node(name))

    def _mkdir(self, node: int, body: bytes) -> bytes:
        if node != _ROOT:
            raise OSError(errno.EPERM, "entries have no folders")
        if self.faults.deny_mkdir:
            raise OSError(errno.EACCES, "mkdir")
        name = os.fsdecode(body[8:].rstrip(b"\0"))  # struct fuse_mkdir_in: mode, umask
        if name in self._entries:
            raise OSError(errno.EEXIST, name)
        self._made += 1
        self._entries[name] = _Entry(name, self._made)
        return self._found(self._entries[name].node())

    def _rmdir(self, node: int, body: bytes) -> bytes:
        name = os.fsdecode(body.rstrip(b"\0"))
        if node != _ROOT:
            raise OSError(errno.ENOTDIR, name)
        if name not in self._entries:
            raise OSError(errno.ENOENT, name)
        if self.faults.deny_rmdir:
            raise OSError(errno.EBUSY, name)
        del self._entries[name]
        return b""

    def _refuse_files(self, _node: int, _body: bytes) -> bytes:
        raise OSError(errno.EACCES, "files cannot be made in configfs")

    def _opendir(self, node: int, _body: bytes) -> bytes:
        names = self.entries if node == _ROOT else self._attributes()
        if node != _ROOT:
            self._at(node)
        return self._opened_as(names)

    def _readdir(self, node: int, body: bytes) -> bytes:
        handle, offset, size, *_ = _READ_IN.unpack_from(body)
        names = self._handles[handle]
        if isinstance(names, _Handle):
            raise OSError(errno.ENOTDIR, "")
        kind = stat.S_IFDIR if node == _ROOT else stat.S_IFREG
        listing = bytearray()
        for place, name in enumerate((".", "..", *names)[offset:], offset + 1):
            raw = os.fsencode(name)
            record = _DIRENT.pack(place, place, len(raw), (stat.S_IFDIR if place <= 2 else kind) >> 12) + raw
            record += bytes(-len(record) % 8)
            if len(listing) + len(record) > size:
                break
            listing += record
        return bytes(listing)

    # Attributes

    def _getattr(self, node: int, _body: bytes) -> bytes:
        return _ATTR_OUT.pack(0, 0, 0) + self._attr(node)

    def _open(self, node: int, body: bytes) -> bytes:
        entry, attribute = self._at(node)
        if attribute is None:
            raise OSError(errno.EISDIR, entry.name)
        flags, _ = _OPEN_IN.unpack_from(body)
        access, mode = flags & os.O_ACCMODE, _MODES[attribute]
        # Not even root opens an attribute against its mode: configfs_open_file.
        if (access != os.O_WRONLY and not mode & 0o444) or (access != os.O_RDONLY and not mode & 0o222):
            raise OSError(errno.EACCES, attribute)
        return self._opened_as(_Handle(entry, attribute))

    def _read(self, _node: int, body: bytes) -> bytes:
        number, offset, size, *_ = _READ_IN.unpack_from(body)
        handle = self._file(number)
        if handle.content is None:
            handle.content = self._content(handle.entry, handle.attribute)
        return handle.content[offset : offset + size]

    def _write(self, _node: int, body: bytes) -> bytes:
        number, offset, size, *_ = _WRITE_IN.unpack_from(body)
        handle, data = self._file(number), body[_WRITE_IN.size :][:size]
        if handle.attribute == "inblob":
            if offset + size > _INBLOB_MAX:
                raise OSError(errno.EFBIG, "inblob")
            handle.blob[offset : offset + size] = data
        else:
            self._set_privlevel(handle.entry, data)
        return _WRITE_OUT.pack(size, 0)

    def _flush(self, _node: int, body: bytes) -> bytes:
        """Store what was written to a blob: configfs does so when the file is closed, not before."""
        (number,) = _HANDLE_IN.unpack_from(body)
        handle = self._handles.get(number)
        if isinstance(handle, _Handle) and handle.blob:
            handle.entry.inblob = bytes(handle.blob)
            handle.entry.written += self.faults.generation_step
            handle.blob.clear()
        return b""

    def _release(self, _node: int, body: bytes) -> bytes:
        (number,) = _HANDLE_IN.unpack_from(body)
        self._handles.pop(number, None)
        return b""

    def _set_privlevel(self, entry: _Entry, data: bytes) -> None:
        try:
            level = int(data, 0)
        except ValueError:
            raise OSError(errno.EINVAL, "privlevel") from None
        if not self.faults.privlevel_floor <= level <= _PRIVLEVEL_MAX:
            raise OSError(errno.EINVAL, "privlevel")
        entry.privlevel = level
        entry.written += self.faults.generation_step

    def _content(self, entry: _Entry, attribute: str) -> bytes:
        match attribute:
            case "provider":
                return f"{self.faults.provider}\n".encode()
            case "generation":
                return b"%d\n" % entry.written
            case "privlevel_floor":
                return b"%d\n" % self.faults.privlevel_floor
        if not entry.inblob:
            raise OSError(errno.EINVAL, "nothing was written to inblob")
        if entry.report is None or entry.answered != entry.written:
            self._ask(entry)
        return (entry.report or b"")[: self.faults.cut] if attribute == "outblob" else entry.certificates

    def _ask(self, entry: _Entry) -> None:
        """Have the platform sign a report over what was written last: report_new of the provider."""
        entry.report, entry.certificates = None, b""
        if len(entry.inblob) != _INBLOB_MAX:
            raise OSError(errno.EINVAL, "report data is 64 bytes")
        if entry.privlevel < self.faults.privlevel_floor:
            raise OSError(errno.EINVAL, "a report as more than this guest is")
        now = time.monotonic()
        self._first_asked = now if self._first_asked is None else self._first_asked
        if now < self._first_asked + self.faults.busy_for:
            raise OSError(errno.EBUSY, "busy")
        data = bytes(each ^ 0xFF for each in entry.inblob) if self.faults.other_report_data else entry.inblob
        entry.report, entry.certificates = self._report(data, entry.privlevel)
        entry.answered = entry.written

    # Nodes and handles

    def _attributes(self) -> tuple[str, ...]:
        return tuple(name for name in _ATTRIBUTES if name != "auxblob" or self.faults.auxblob)

    def _at(self, node: int) -> tuple[_Entry, str | None]:
        number, place = node >> _PLACE_BITS, node & (1 << _PLACE_BITS) - 1
        for entry in self._entries.values():
            if entry.number == number:
                return entry, _ATTRIBUTES[place - 1] if place else None
        raise OSError(errno.ENOENT, "the entry is gone")

    def _opened_as(self, handle: "_Handle | tuple[str, ...]") -> bytes:
        self._opened += 1
        self._handles[self._opened] = handle
        return _OPEN_OUT.pack(self._opened, _DIRECT_IO if isinstance(handle, _Handle) else 0, 0)

    def _file(self, number: int) -> _Handle:
        handle = self._handles[number]
        if not isinstance(handle, _Handle):
            raise OSError(errno.EISDIR, "")
        if self._entries.get(handle.entry.name) is not handle.entry:
            raise OSError(errno.ENOENT, "the entry is gone")
        return handle

    def _found(self, node: int) -> bytes:
        return _ENTRY_OUT.pack(node, 0, 0, 0, 0, 0) + self._attr(node)

    def _attr(self, node: int) -> bytes:
        attribute = None if node == _ROOT else self._at(node)[1]
        if attribute is None:
            mode, links, size = stat.S_IFDIR | 0o755, 2, 0
        else:
            size = {"inblob": _INBLOB_MAX, "outblob": _OUTBLOB_MAX, "auxblob": _OUTBLOB_MAX}.get(
                attribute, _PAGE
            )
            mode, links = stat.S_IFREG | _MODES[attribute], 1
        return _ATTR.pack(node, size, 0, 0, 0, 0, 0, 0, 0, mode, links, 0, 0, 0, _PAGE, 0)


def _mount(mountpoint: Path) -> int:
    """Mount a FUSE file system and give the device that it is served on: mount(8) of fuse, "fd=N"."""
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    # default_permissions: the kernel judges by the modes, as it does in configfs: root alone makes entries.
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
    if _libc.mount(b"simulated-tsm", os.fsencode(mountpoint), b"fuse.simulated-tsm", 0, options.encode()):
        number = ctypes.get_errno()
        os.close(device)
        raise OSError(number, os.strerror(number), str(mountpoint))
    return device


def _unmount(mountpoint: Path) -> None:
    """Unmount, if it is still mounted; at once, even where somebody stands in it."""
    _libc.umount2(os.fsencode(mountpoint), _MNT_DETACH)
