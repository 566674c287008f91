"""Names of policy files, as they travel: what a policy folder can give, and nothing that leads out of one."""

from typing import Final

_SUFFIXES: Final = (".yaml", ".yml")
_MOST: Final = 1024  # characters


def is_policy_file(name: str) -> bool:
    """Say whether a name is one that a policy folder gives: a path below it, with ``/``, and nothing hidden.

    Files are sent to servers, kept, and written again where somebody asks for a revision: whoever could
    choose the name ``../.ssh/authorized_keys`` would own that machine.
    """
    parts_are_plain = all(
        part and not part.startswith(".") and part.isprintable() and "\\" not in part
        for part in name.split("/")
    )
    return parts_are_plain and len(name) <= _MOST and name.endswith(_SUFFIXES)
