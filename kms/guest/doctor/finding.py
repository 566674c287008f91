"""Looking at one part of a guest, whatever is wrong with it."""

from collections.abc import Callable

from kms.errors import KmsError
from kms.findings import Finding, failed, refused, unknown, unlookable, warning


def missing(name: str, detail: str, remedy: str, *, needed: bool) -> Finding:
    """Say what is not there: wrong where this guest needs it, else something to know."""
    return failed(name, detail, remedy) if needed else warning(name, detail, remedy)


def looked_at(name: str, look: Callable[[], Finding]) -> Finding:
    """Look, whatever happens: a doctor who falls over the first broken part never sees the second."""
    try:
        return look()
    except Exception as error:  # noqa: BLE001 -- what is broken may break in any way
        return fallen(name, error)


def fallen(name: str, error: Exception) -> Finding:
    """Say over what a look at something fell: our own code refuses it, or it cannot be looked at."""
    if isinstance(error, KmsError):
        return refused(name, error)
    if isinstance(error, OSError):
        file = "" if error.filename is None else f"{error.filename}: "
        remedy = "run it as root" if isinstance(error, PermissionError) else ""
        return unknown(name, f"it cannot be looked at: {file}{error.strerror or error}", remedy)
    return unlookable(name, error)
