"""Where operators' commands do their work: on this machine's database, or on a server that knows them.

Here they may do all: whoever runs a command beside the database can read the root key and write every row. A
server decides by the token.
"""

import argparse
import getpass
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kms.cli.output import WrongUse
from kms.cli.saying import printable
from kms.operators import Actor, Proof, Role
from kms.private_files import read_secret

if TYPE_CHECKING:
    from kms.administration.office import Office


def add_office_options(command: argparse.ArgumentParser) -> None:
    """Let a command choose: `--config` for the settings' database, or `--server` with `--token-file`."""
    place = command.add_mutually_exclusive_group()
    place.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="path of kms.toml: work on its database (default: KMS_CONFIG, else none)",
    )
    place.add_argument("--server", metavar="URL", help="work on this server instead: https://HOST:PORT")
    command.add_argument(
        "--token-file", metavar="F", type=Path, help="with --server: file with the token, mode 0600"
    )
    command.add_argument("--ca", metavar="FILE", type=Path, help="with --server: PEM of the only CA to trust")


@asynccontextmanager
async def chosen_office(arguments: argparse.Namespace) -> "AsyncIterator[tuple[Office, Actor]]":
    """Open the office that the options name.

    Raises:
        WrongUse: the options do not go together.
        ConfigurationError: it cannot be opened, or others can read the token.

    """
    actor = command_line_actor()
    if arguments.server is None:
        if arguments.token_file is not None or arguments.ca is not None:
            raise WrongUse("--token-file and --ca go with --server")
        from kms.cli.reading import read_settings
        from kms.wiring import open_office

        async with open_office(read_settings(arguments.config)) as office:
            yield office, actor
        return
    if arguments.token_file is None:
        raise WrongUse("--server needs --token-file: the server must know who asks")
    from kms.remote_office import open_remote

    content = read_secret(arguments.token_file, what="token", ours=False)
    token = content.decode("ascii", "replace").strip()
    async with open_remote(arguments.server, token=token, ca=arguments.ca) as office:
        # Who acts is what the server makes of the token; the actor here is only what the interface asks for.
        yield office, actor


def command_line_actor() -> Actor:
    """Give whoever runs this command: on this machine they may do all."""
    return Actor(name=_user(), role=Role.ADMIN, proof=Proof.COMMAND_LINE)


def in_office(arguments: argparse.Namespace, work: "Callable[[Office, Actor], Awaitable[int]]") -> int:
    """Do a command's work in the chosen office, and give its exit status.

    Raises:
        OperatorRefusal: the office says no; `kms.cli` says it with its details.
        KmsError: the office cannot be opened or does not answer.

    """
    import asyncio

    async def run() -> int:
        async with chosen_office(arguments) as (office, actor):
            return await work(office, actor)

    return asyncio.run(run())


def _user() -> str:
    try:
        # From the environment, so whatever somebody wrote there.
        return printable(getpass.getuser())[:128] or f"uid {os.getuid()}"
    except (OSError, KeyError):
        # A container's user without an entry in its password file.
        return f"uid {os.getuid()}"
