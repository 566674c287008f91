"""What `kms guest agent` and `kms guest serve` have in common: a Unix socket, and a log on standard error."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kms.cli.output import WrongUse
from kms.cli.parsers import seconds

if TYPE_CHECKING:
    from kms.guest.local_service import Handle

# What ``--json`` is for a service, which prints nothing while it lives.
ERRORS_AS_JSON: Final = (
    "an error as one JSON document on standard output; a service prints nothing else there"
)


def add_socket_options(command: argparse.ArgumentParser) -> None:
    """Add where to listen, and for how long."""
    command.add_argument(
        "--listen",
        metavar="PATH",
        type=Path,
        help="the Unix socket to make (default: the one that systemd passed to this process)",
    )
    command.add_argument(
        "--idle",
        metavar="SECONDS",
        type=seconds,
        help="end when nobody came for so long; systemd, which keeps the socket, starts it again",
    )


def serve_locally(arguments: argparse.Namespace, handle: "Handle", *, at_most: int, mode: int) -> None:
    """Serve until SIGTERM, SIGINT or `--idle`. `mode` is that of a socket that is made here.

    Raises:
        WrongUse: no socket is named and none was passed, or both.
        ConfigurationError: the socket cannot be had, or memory not be kept private.

    """
    import asyncio
    import os
    from contextlib import ExitStack

    from kms.guest.local_service import LocalService
    from kms.guest.unix_sockets import listening, passed_listener
    from kms.hardening import keep_memory_private

    keep_memory_private()
    _log_to_standard_error()
    with ExitStack() as stack:
        listener = passed_listener(os.environ)
        if listener is not None:
            stack.enter_context(listener)
        if (listener is None) == (arguments.listen is None):
            raise WrongUse("it needs --listen PATH, or a socket of systemd's, and not both")
        if listener is None:
            if arguments.idle is not None:
                raise WrongUse("--idle is for a socket of systemd's: nobody else would start this again")
            listener = stack.enter_context(listening(arguments.listen, mode=mode))
        asyncio.run(LocalService(listener, handle, at_most=at_most, idle=arguments.idle).run())


def _log_to_standard_error() -> None:
    import logging

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))  # the time is the journal's
    log = logging.getLogger("kms.guest")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
