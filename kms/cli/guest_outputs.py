"""Where `kms guest` commands put secrets: a pipe, a file, a systemd credential, a kernel keyring."""

import argparse
import os
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kms.cli.output import Unreadable, WrongUse


@dataclass(frozen=True, slots=True)
class Destination:
    """A place for a secret. `check` comes before anything is asked; `keep` gives what ``--json`` adds."""

    check: Callable[[], None]
    keep: Callable[[bytes], dict[str, Any]]


def add_disk_option(command: argparse.ArgumentParser) -> None:
    """Add the permission to write secrets to a disk."""
    command.add_argument(
        "--allow-disk", action="store_true", help="let secrets be on a file system that is not in memory"
    )


def add_destinations(command: argparse.ArgumentParser) -> None:
    """Add the places other than standard output; at most one is given."""
    one = command.add_mutually_exclusive_group().add_argument
    one("--output", metavar="FILE", type=Path, help="new file, 0600: raw bytes of one key, JSON of several")
    one(
        "--credential",
        metavar="NAME",
        help="one key as /run/credstore/NAME, 0600, new or replaced: a unit takes it by LoadCredential=NAME",
    )
    one(
        "--keyring",
        metavar="DESCRIPTION",
        help="one key into a kernel keyring, new or replaced, of type user: `cryptsetup token add"
        " --key-description DESCRIPTION` makes a volume look for it",
    )
    add = command.add_argument
    add("--credential-dir", metavar="DIR", type=Path, help="in place of /run/credstore")
    add(
        "--keyring-of",
        metavar="WHOM",
        choices=("user", "session"),
        help="user (default), or the session that runs this command",
    )
    add("--keyring-timeout", metavar="SECONDS", type=int, help="when the kernel forgets the key")
    add_disk_option(command)


def destination(arguments: argparse.Namespace) -> Destination | None:
    """Give the place that was named; None is standard output.

    Raises:
        WrongUse: it takes one key and several are asked for, or an option goes with another place.

    """
    for option, place in (
        ("credential_dir", "credential"),
        ("keyring_of", "keyring"),
        ("keyring_timeout", "keyring"),
    ):
        if getattr(arguments, option) is not None and getattr(arguments, place) is None:
            raise WrongUse(f"--{option.replace('_', '-')} goes with --{place}")
    if arguments.output is not None:
        return _file(arguments.output, allow_disk=arguments.allow_disk)
    if arguments.credential is None and arguments.keyring is None:
        return None
    if len(arguments.key) > 1:
        raise WrongUse("a credential, and a key of a keyring, is one key: run the command for each")
    if arguments.credential is not None:
        return _credential(arguments.credential, arguments.credential_dir, allow_disk=arguments.allow_disk)
    return _keyring(arguments.keyring, arguments.keyring_of, arguments.keyring_timeout)


def check_secret_place(path: Path | None, option: str, *, allow_disk: bool) -> None:
    """Refuse, before anything is asked, what would end with secrets where they must not be."""
    if path is not None:
        _file(path, allow_disk=allow_disk).check()
    else:
        check_pipe(option, allow_disk=allow_disk)


def check_pipe(option: str, *, allow_disk: bool) -> None:
    """Refuse a standard output that shows or keeps secrets: a terminal, the journal, a file on a disk.

    Raises:
        WrongUse: it is one of these, or closed; the message names the option to use instead.
        ConfigurationError: it is a file on a disk.

    """
    from kms.guest.secret_file import require_memory

    if sys.stdout is None:  # that is how Python has it when the descriptor is closed
        raise WrongUse(f"standard output is closed: use a pipe, or {option}")
    status = os.fstat(sys.stdout.fileno())
    if sys.stdout.isatty():
        raise WrongUse(f"secrets are not shown on a terminal: use a pipe, or {option}")
    # systemd.exec(5): device and inode of the stream that goes to the journal.
    if os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}":
        raise WrongUse(f"secrets do not go to the journal: use a pipe, or {option}")
    if _is_file(status) and not allow_disk:
        require_memory(Path("standard output"), status.st_dev)


def _is_file(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode)


def write_to_pipe(secret: bytes) -> None:
    """Write a secret to standard output, whole, or fail: what nobody took was not delivered.

    Raises:
        BrokenPipeError: the reader left.
        Unreadable: it cannot be written for another reason.

    """
    unsent = memoryview(secret)
    try:
        # Not through Python's buffer: what could not be written would be tried again at the end.
        while unsent:
            unsent = unsent[os.write(sys.stdout.fileno(), unsent) :]
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Unreadable(f"standard output: {error.strerror}") from error


def _file(path: Path, *, allow_disk: bool) -> Destination:
    from kms.guest.secret_file import check_place, write_secret

    def keep(secret: bytes) -> dict[str, Any]:
        write_secret(path, secret, allow_disk=allow_disk)
        return {}

    return Destination(lambda: check_place(path, allow_disk=allow_disk), keep)


def _credential(name: str, folder: Path | None, *, allow_disk: bool) -> Destination:
    from kms.guest.credentials import CREDENTIAL_STORE, check_credential, write_credential

    store = folder or CREDENTIAL_STORE

    def keep(secret: bytes) -> dict[str, Any]:
        path = write_credential(name, secret, folder=store, allow_disk=allow_disk)
        return {"credential": str(path)}

    return Destination(lambda: check_credential(name, folder=store, allow_disk=allow_disk), keep)


def _keyring(description: str, whose: str | None, timeout: int | None) -> Destination:
    from kms.guest.keyring import Keyring, add_key, check_keyring

    keyring = Keyring(whose or Keyring.USER)

    def keep(secret: bytes) -> dict[str, Any]:
        return {"keyring_key": add_key(description, secret, keyring=keyring, timeout=timeout)}

    return Destination(lambda: check_keyring(description, timeout=timeout), keep)
