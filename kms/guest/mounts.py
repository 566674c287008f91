"""What is mounted, as the kernel lists it."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Mount(NamedTuple):
    """A mounted file system: `device` is ``MAJOR:MINOR``, `options` are those of the file system itself."""

    device: str
    point: Path
    kind: str
    options: frozenset[str]


def read_mounts(mountinfo: str) -> Iterator[Mount]:
    """Read proc_pid_mountinfo(5), in the order of mounting; what has another form is left out."""
    for line in mountinfo.split("\n"):
        # id parent major:minor root point options [optional]... - type source options
        place, dash, kind = line.partition(" - ")
        fields, words = place.split(" "), kind.split(" ")
        if dash and len(fields) > 4:
            yield Mount(fields[2], Path(fields[4]), words[0], frozenset(words[-1].split(",")))
