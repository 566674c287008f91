"""Reading files that hold what only their owner may know: operators' tokens and signing keys."""

from pathlib import Path
from typing import Final

from kms import private_files
from kms.cli.output import Unreadable
from kms.errors import ConfigurationError

_AT_MOST: Final = 64 << 10  # bytes


def read_private(path: Path, *, what: str) -> bytes:
    """Read a file that nobody but its owner can read; `what` names it in messages.

    Raises:
        Unreadable: it cannot be read, or is too long to be what it should be.
        ConfigurationError: others can read or replace what is in it.

    """
    try:
        # Links are followed: people keep these files where they like, and the file itself is judged.
        return bytes(private_files.read(path, at_most=_AT_MOST, owners=None, follow=True))
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from error
    except private_files.ForeignMode as unfit:
        raise ConfigurationError(
            f"{path}: others than its owner can use this {what} (its mode is {unfit.mode:04o})",
            remedy=f"chmod 600 {path}; if others could read it until now, replace the {what}",
        ) from None
    except private_files.Unfit as unfit:
        raise Unreadable(f"{path}: it {unfit}, so no {what}") from None
