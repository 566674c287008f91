"""``kms env``: secrets for an app, sealed by its owner; nobody but its guests can open them."""

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kms.cli.asking import add_server_options, pinned_identity, say_followed, telling_refusals
from kms.cli.env_file import count_variables
from kms.cli.output import OK, Unreadable, WrongUse, print_json, read_file
from kms.cli.parsers import Group, Parser, integer, run_group

if TYPE_CHECKING:
    from kms.keys.env_key import EnvKey

_MODE: Final = 0o644  # what is sealed is no secret
_EXCHANGE: Final = 15.0  # seconds


def main(argv: list[str]) -> int:
    """Run ``kms env`` and give the exit status."""
    return run_group(parser(), argv)


def parser() -> Parser:
    """Give the parser of this group of commands."""
    group = Group("kms env", "Secrets for an app: its owner seals them, and only its guests open them.")
    command = group.add(
        "seal",
        summary="seal an environment file to an app",
        description="Fetch the app's public env key, check that the KMS signed it just now, and seal a file"
        " of NAME=VALUE lines to it. This takes no token, and the server does not see the file. `kms guest"
        " env` opens it. Exit status: 0 sealed, 1 an answer that must not be used, 2 wrong use, no such app,"
        " not an environment file, or no server.",
        example="kms env seal --app 86e59625be93207bc2351c4d1bba20037cec8e16 --server https://kms:8443"
        " --ca ca.pem --identity @kms.id --output app.env.sealed app.env",
    )
    add = command.add_argument
    add("file", metavar="FILE", help="NAME=VALUE lines, blank lines and # comments; - for standard input")
    add("--app", metavar="ID", required=True, help="the app's id: 40 or 64 hex digits")
    add("--epoch", metavar="N", type=integer, help="seal to this epoch (default: the one that guests get)")
    add("--output", metavar="FILE", type=Path, help="write or replace this file (default: standard output)")
    add("--raw", action="store_true", help="seal any bytes, not only an environment file")
    add_server_options(command, pin_from="From the operator of the KMS, not from the server itself")
    command.set_defaults(run=telling_refusals("kms env", _seal))
    return group.parser


def _seal(arguments: argparse.Namespace) -> int:
    from kms.encoding import b64url
    from kms.keys.env_sealing import SealedEnv

    content = _read(arguments)
    key = _fetch_key(arguments)
    file = SealedEnv.seal(content, key).to_json()
    if arguments.output is None:
        sys.stdout.write(file.decode("ascii"))
        return OK
    _write(arguments.output, file)
    if arguments.json:
        print_json(
            {
                "app_id": key.app_id.hex(),
                "epoch": key.epoch,
                "identity": b64url(key.identity),
                "output": str(arguments.output),
            }
        )
    else:
        sys.stdout.write(f"sealed to app {key.app_id.hex()}, epoch {key.epoch}: {arguments.output}\n")
    return OK


def _read(arguments: argparse.Namespace) -> bytes:
    from kms.keys.env_sealing import MAX_ENV

    if arguments.file == "-":
        content = sys.stdin.buffer.read(MAX_ENV + 1)
        if len(content) > MAX_ENV:
            raise Unreadable(f"standard input: longer than {MAX_ENV} bytes")
    else:
        content = read_file(arguments.file, at_most=MAX_ENV)
    if not arguments.raw:
        try:
            count_variables(content)
        except Unreadable as error:
            raise Unreadable(f"{arguments.file}: {error.detail} (--raw seals any bytes)") from None
    return content


def _fetch_key(arguments: argparse.Namespace) -> "EnvKey":
    from kms.guest.patience import Patience
    from kms.guest.published import fetch_env_key
    from kms.guest.transport import Connection
    from kms.identifiers import AppId

    try:
        app_id = AppId.from_hex(arguments.app)
    except ValueError:
        raise WrongUse("--app takes 40 or 64 lowercase hex digits") from None
    if arguments.epoch is not None and arguments.epoch < 1:
        raise WrongUse("--epoch takes a number, 1 or more")
    pinned = pinned_identity(arguments)
    with Connection(arguments.server, ca_file=arguments.ca, timeout=_EXCHANGE) as connection:
        server = Patience(connection, deadline=arguments.deadline)
        key = server.persist(
            lambda: fetch_env_key(server, app_id, arguments.epoch, pinned=pinned, now=datetime.now(UTC))
        )
    say_followed("kms env", pinned, key.identity)
    return key


def _write(path: Path, content: bytes) -> None:
    from kms import private_files

    try:
        private_files.replace(path, content, mode=_MODE)
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from error
