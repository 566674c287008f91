"""What commands print: for people by default, one JSON document for programs."""

import os
import sys
from typing import Any

from kms.errors import ConfigurationError, KmsError, Malformed

OK = 0
REFUSED = 1
WRONG_USE = 2


class Unreadable(KmsError):
    """A file named on the command line cannot be read, or is not what it should be."""

    code = "unreadable"


class WrongUse(KmsError):
    """The command line makes no sense. `usage` is the command's, where a parser knows it."""

    code = "wrong-use"

    def __init__(self, detail: str, *, usage: str = "") -> None:
        super().__init__(detail)
        self.usage = usage


def print_json(document: Any) -> None:
    """Print one JSON document, and nothing else, to standard output: ASCII, which every locale can print."""
    import json

    sys.stdout.write(json.dumps(document, indent=2) + "\n")


def report_error(command: str, error: KmsError, *, as_json: bool) -> None:
    """Say what went wrong and what to do about it."""
    remedy = error.remedy if isinstance(error, ConfigurationError) else ""
    if as_json:
        body = {"code": error.code, "reason": error.reason, "detail": error.detail}
        print_json({"error": body | ({"remedy": remedy} if remedy else {})})
        return
    if isinstance(error, WrongUse):
        sys.stderr.write(error.usage)
    from kms.cli.saying import printable

    kind = f"{error.code}: " if isinstance(error, Malformed) else ""
    # A detail may repeat what a file or a server says.
    lines = f"{command}: {kind}{error.detail}".splitlines()
    sys.stderr.write("\n".join(map(printable, lines)) + "\n")
    if remedy:
        sys.stderr.write(f"  {printable(remedy)}\n")


def read_file(path: str | os.PathLike[str], *, at_most: int = 1 << 30) -> bytes:
    """Read a file named on the command line.

    Raises:
        Unreadable: it is not there, not readable, not a file, or longer than `at_most` bytes.

    """
    try:
        # Not by `pathlib`: `kms measure` starts faster without it.
        with open(path, "rb") as file:  # noqa: PTH123
            # Not `at_most` at once: the buffer for it would cost more than reading. Pipes have no size.
            size = os.fstat(file.fileno()).st_size or at_most
            data = file.read(min(size, at_most) + 1)
            if len(data) > size:
                data += file.read(at_most + 1 - len(data))
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from error
    if len(data) > at_most:
        raise Unreadable(f"{path}: longer than {at_most} bytes")
    return data
