"""Files that an operator names, one after the other: whatever lies in a folder can be read, and is bounded.

What may lie there: links out of the folder, named pipes that never answer, devices without an end, names that
a terminal obeys. None of it stops or hangs an import; each is said.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

LARGEST_FILE: Final = 4 << 20  # bytes: a PEM file with the certificates of some 2000 chips
LARGEST_BUNDLE: Final = 4 << 30  # bytes; read member by member
MOST_FILES: Final = 200_000

_MOST_SHOWN: Final = 300  # characters of a name


@dataclass(frozen=True, slots=True)
class Piece:
    """A file's content, and the name under which an operator finds it."""

    name: str
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Unread:
    """What was not read, and why. `refused` where it was not wanted, else it could not be read."""

    name: str
    reason: str
    refused: bool = False


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A regular file that was found; `open` gives its descriptor.

    Raises:
        OSError: it cannot be opened any more, or is no regular file any more.

    """

    path: str
    follow: bool

    @property
    def name(self) -> str:
        """Its name for people."""
        return shown(self.path)

    def open(self) -> int:
        """Open it without waiting for anybody: what was a file a moment ago may be a pipe now."""
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if self.follow else os.O_NOFOLLOW)
        descriptor = os.open(self.path, flags)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(0, "not a regular file")
        return descriptor


def files_of(path: Path) -> Iterator[OpenFile | Unread]:
    """Give a file, or every file below a folder, in the order of names. Nothing is opened yet."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        yield Unread(shown(str(path)), why(error))
        return
    if stat.S_ISDIR(mode):
        yield from _below(path)
    elif stat.S_ISREG(mode):
        yield OpenFile(str(path), follow=True)
    else:
        yield Unread(shown(str(path)), "neither a file nor a folder")


def _below(folder: Path) -> Iterator[OpenFile | Unread]:
    root = os.path.realpath(folder)
    failed: list[OSError] = []
    count = 0
    for place, folders, names in os.walk(folder, onerror=failed.append):
        folders.sort()
        for name in sorted([*names, *(each for each in folders if Path(place, each).is_symlink())]):
            if count == MOST_FILES:
                yield Unread(shown(str(folder)), f"more than {MOST_FILES} files: the rest was left out")
                return
            count += 1
            yield from _entry(os.path.join(place, name), root)  # noqa: PTH118 -- by the hundred thousand
    for error in failed:
        yield Unread(shown(str(error.filename)), why(error))


def _entry(path: str, root: str) -> Iterator[OpenFile | Unread]:
    try:
        mode = os.lstat(path).st_mode
    except OSError as error:
        yield Unread(shown(path), why(error))
        return
    if stat.S_ISREG(mode):
        yield OpenFile(path, follow=False)
    elif not stat.S_ISLNK(mode):
        yield Unread(shown(path), "neither a file nor a folder", refused=True)
    elif not _leads_inside(path, root):
        yield Unread(shown(path), "a link that leads out of the folder, or nowhere", refused=True)
    # What a link inside leads to is found where it is: a mounted Kubernetes secret is made of such links.


def _leads_inside(path: str, root: str) -> bool:
    with suppress(OSError):
        target = os.path.realpath(path, strict=True)
        return os.path.commonpath([root, target]) == root
    return False


def shown(name: str) -> str:
    """Give a name for people: a file's name must not move their cursor, nor fill their screen."""
    if len(name) > _MOST_SHOWN:
        name = f"...{name[-_MOST_SHOWN:]}"
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in name)


def why(error: Exception) -> str:
    """Say why a file could not be read, in the system's words."""
    return (error.strerror if isinstance(error, OSError) else None) or "cannot be read"
