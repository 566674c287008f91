"""Environment files as owners write them: what a guest could not read is found before it is sealed."""

import re
from typing import Final

from kms.cli.output import Unreadable

_VARIABLE: Final = re.compile(rb"([A-Za-z_][A-Za-z0-9_]*)=")


def count_variables(content: bytes) -> int:
    """Check lines of ``NAME=VALUE``, blank lines and comments (``#``), and count the variables.

    Values are any bytes but line ends and NUL, and mean what the guest's reader makes of them: quotes and
    backslashes are left alone.

    Raises:
        Unreadable: no such file. The message has the line's number and nothing of it: it may be a secret.

    """
    if b"\0" in content:
        raise Unreadable("a NUL byte: no environment can hold one")
    found: dict[bytes, int] = {}
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.endswith(b"\r"):
            raise Unreadable(f"line {number} ends in CR LF: the CR would be part of the value")
        if not line.strip() or line.startswith(b"#"):
            continue
        variable = _VARIABLE.match(line)
        if variable is None:
            raise Unreadable(f"line {number} is not NAME=VALUE, with a name of letters, digits and _")
        name = variable[1]
        if name in found:
            raise Unreadable(f"line {number} sets what line {found[name]} sets already")
        found[name] = number
    if not found:
        raise Unreadable("no variable is set")
    return len(found)
