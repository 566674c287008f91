"""How ``kms ledger`` asks a server as anybody may, and with which key it checks what comes."""

import argparse
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kms.cli.asking import report_refused, telling_refusals
from kms.cli.output import REFUSED, Unreadable, WrongUse, read_file
from kms.cli.parsers import seconds

if TYPE_CHECKING:
    from kms.guest.published_ledger import PublishedLedger
    from kms.ledger.checkpoint import Checkpoint
    from kms.strict_json import JsonValue

COMMAND: Final = "kms ledger"
_MAX_KEY: Final = 1024  # bytes
_MAX_FILE: Final = 64 << 10
_EXCHANGE: Final = 15.0  # seconds
# C2SP signed-note: name, key id, base64 of the algorithm's byte and the key.
_VERIFIER_KEY: Final = re.compile(r"[^\s+]+\+[0-9a-f]{8}\+[A-Za-z0-9+/]+={0,2}")


def add_public_options(command: argparse.ArgumentParser) -> None:
    """Let a command choose: `--config` for the settings' database, or `--server`, without a token."""
    place = command.add_mutually_exclusive_group()
    place.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="path of kms.toml: work on its database (default: KMS_CONFIG, else none)",
    )
    place.add_argument("--server", metavar="URL", help="ask this server instead: https://HOST:PORT")
    command.add_argument("--ca", metavar="FILE", type=Path, help="with --server: PEM of the only CA to trust")
    add_deadline(command)
    command.set_defaults(token_file=None)


def add_deadline(command: argparse.ArgumentParser) -> None:
    """Add for how long the server may be asked."""
    command.add_argument(
        "--deadline",
        metavar="SECONDS",
        type=seconds,
        default=60.0,
        help="with --server: for each answer, tries included (default 60)",
    )


def add_key_options(command: argparse.ArgumentParser, *, key: bool = True) -> None:
    """Add by which key checkpoints are verified that do not come from this machine."""
    pin = command.add_mutually_exclusive_group()
    if key:
        pin.add_argument(
            "--key",
            metavar="VERIFIER_KEY",
            help="the ledger's key, as `kms ledger key` shows it, or @FILE that holds it",
        )
    else:
        command.set_defaults(key=None)
    pin.add_argument(
        "--identity",
        metavar="KEY",
        help="the KMS identity that must have signed the ledger's key: base64url of 32 bytes, or @FILE",
    )


def given_key(arguments: argparse.Namespace) -> str | None:
    """Give the verifier key that `--key` names; None where it is not given.

    Raises:
        WrongUse: it is none.
        Unreadable: the file cannot be read.

    """
    text: str | None = arguments.key
    if text is not None and text.startswith("@"):
        text = read_file(text[1:], at_most=_MAX_KEY).decode("ascii", "replace").strip()
    if text is not None and not _VERIFIER_KEY.fullmatch(text):
        raise WrongUse("--key takes a verifier key, as `kms ledger key` shows it, or @FILE")
    return text


def verifier_key(arguments: argparse.Namespace, ledger: "PublishedLedger") -> str:
    """Give the verifier key that `--key` names, or that `--identity` vouches for on the server.

    Raises:
        WrongUse: neither is given: a server that chose its own key could show any ledger.
        AnswerRejected: the identity does not vouch for it.

    """
    from kms.cli.pins import read_identity

    key = given_key(arguments)
    if key is not None:
        return key
    if arguments.identity is None:
        raise WrongUse("--server needs --key or --identity: whose ledger is it meant to be?")
    return ledger.key(read_identity(arguments.identity)).key


@contextmanager
def public_ledger(arguments: argparse.Namespace) -> "Iterator[PublishedLedger]":
    """Ask the server that the options name, as anybody may.

    Raises:
        ConfigurationError: the address or the CA file cannot be used.

    """
    from kms.guest.patience import Patience
    from kms.guest.published_ledger import PublishedLedger
    from kms.guest.transport import Connection

    with Connection(arguments.server, ca_file=arguments.ca, timeout=_EXCHANGE) as connection:
        yield PublishedLedger(lambda: Patience(connection, deadline=arguments.deadline))


def read_checkpoint(path: Path, key: str) -> "tuple[str, Checkpoint]":
    """Read a file with a checkpoint of this ledger; give the note, and what it says.

    Raises:
        Unreadable: it cannot be read, or is none that this key signed.

    """
    from kms.ledger.checkpoint import CheckpointInvalid, open_checkpoint

    note = read_file(path, at_most=_MAX_FILE).decode("utf-8", "replace")
    try:
        return note, open_checkpoint(note, key)
    except CheckpointInvalid as error:
        raise Unreadable(f"{path}: no checkpoint of this ledger: {error.detail}") from None


def read_document(path: Path) -> "JsonValue":
    """Read a small JSON file. Raises `Unreadable`."""
    from kms.strict_json import JsonError, parse

    try:
        return parse(read_file(path, at_most=_MAX_FILE))
    except JsonError as error:
        raise Unreadable(f"{path}: {error}") from None


def asking(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Make `run` end with an exit status where a server refuses, or where what it shows proves nothing."""

    def checked(arguments: argparse.Namespace) -> int:
        from kms.guest.published_ledger import NotAppendOnly
        from kms.ledger.checkpoint import CheckpointInvalid
        from kms.ledger.proofs import ProofInvalid

        try:
            return run(arguments)
        except (CheckpointInvalid, NotAppendOnly, ProofInvalid) as error:
            report_refused(COMMAND, error, None, as_json=arguments.json)
            return REFUSED

    return telling_refusals(COMMAND, checked)
