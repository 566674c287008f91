"""This machine as its files show it, below a root that tests replace."""

import io
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kms.guest.mounts import Mount, read_mounts

_MOST: Final = 4 << 20  # bytes; the longest file here is a kernel's list of modules
_PROGRAMS: Final = ("/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin")
_ANSWERS_WITHIN: Final = 10.0  # seconds
# Bytes at a time: more than a record of the kernel's log (Documentation/ABI/testing/dev-kmsg), and no more
# than /proc/sys takes memory for (fs/proc/proc_sysctl.c).
_PAGE: Final = 16384


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A running Linux: `root` is `/`. Paths that are given start with `/` and are found below it.

    `release` and `architecture` are those of uname(2), `now` is its clock (seconds since 1970).
    """

    root: Path = Path("/")
    release: str = field(default_factory=platform.release)
    architecture: str = field(default_factory=platform.machine)
    superuser: bool = field(default_factory=lambda: os.geteuid() == 0)
    now: Callable[[], float] = time.time

    def at(self, path: str) -> Path:
        """Give where a path of this system is."""
        return self.root / path.lstrip("/")

    def bytes(self, path: str) -> bytes | None:
        """Read the beginning of a file, 4 MiB at most; None where there is none. Raises `OSError`."""
        try:
            with self.at(path).open("rb", buffering=0) as file:
                return _read(file)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def text(self, path: str) -> str | None:
        """Read a file as `bytes` does, as text without the white space around it."""
        data = self.bytes(path)
        return None if data is None else data.decode("utf-8", "replace").strip()

    def exists(self, path: str) -> bool:
        """Say whether a path is there."""
        return self.at(path).exists()

    def mounts(self) -> Iterator[Mount]:
        """Give what is mounted, in the order in which it was. Raises `OSError`."""
        return read_mounts(self.text("/proc/self/mountinfo") or "")

    def file_system(self, folder: str) -> str | None:
        """Give the type of the file system that a folder is on; None where nothing is known of it."""
        holding = [each for each in self.mounts() if Path(folder).is_relative_to(each.point)]
        # The last one of the deepest: a later mount hides an earlier one in the same place.
        best = max(enumerate(holding), key=lambda each: (len(each[1].point.parts), each[0]), default=None)
        return None if best is None else best[1].kind

    def kernel_log(self) -> str | None:
        """Read what is left of the kernel's log; None where it has none. Raises `OSError`."""
        try:
            # Non-blocking, it ends; each read gives a record, whose message stands after the semicolon.
            descriptor = os.open(self.at("/dev/kmsg"), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        log = bytearray()
        try:
            while len(log) < _MOST:
                try:
                    record = os.read(descriptor, _PAGE)
                except BrokenPipeError:  # overwritten while we read: the next one is read next
                    continue
                except BlockingIOError:
                    break
                if not record:
                    break
                log += record
        finally:
            os.close(descriptor)
        return log.decode("utf-8", "replace")

    def program(self, name: str) -> Path | None:
        """Find a program where systems have them; a root's PATH may leave out the folders for root."""
        places = (self.at(folder) / name for folder in _PROGRAMS)
        return next((place for place in places if os.access(place, os.X_OK)), None)

    def version_of(self, program: Path) -> str:
        """Give the first line that ``PROGRAM --version`` says. Raises `OSError`."""
        try:
            done = subprocess.run(  # noqa: S603 -- a program of the system's own folders
                [program, "--version"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_ANSWERS_WITHIN,
                check=False,
                env={"LC_ALL": "C"},
            )
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{program} --version does not end") from None
        return next(iter(done.stdout.decode("utf-8", "replace").splitlines()), "")


def _read(file: io.FileIO) -> bytes:
    data = bytearray()
    while len(data) < _MOST and (part := file.read(_PAGE)):
        data += part
    return bytes(data)
