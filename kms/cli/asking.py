"""How a command asks a server as a guest or a stranger does: which server, which KMS, and what it refused."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kms.cli.output import REFUSED, WRONG_USE, print_json
from kms.cli.parsers import seconds
from kms.errors import KmsError

if TYPE_CHECKING:
    from kms.guest.errors import Problem

# What the server's "no" to a genuine question is; everything else is a question that makes no sense to it.
_NO: Final = frozenset({403, 409, 410})


def add_server_options(
    command: argparse.ArgumentParser, *, pin_from: str, configurable: bool = False
) -> None:
    """Add which server to ask, which KMS it must be, and for how long. `pin_from`: where a pin comes from.

    With `configurable`, a file may say all of it, and what is not given is None.
    """
    add = command.add_argument
    add("--server", metavar="URL", required=not configurable, help="https://HOST:PORT")
    add("--ca", metavar="FILE", type=Path, help="PEM of the only CA to trust (default: the system's)")
    pin = command.add_mutually_exclusive_group(required=not configurable)
    pin.add_argument(
        "--identity",
        metavar="KEY",
        help=f"the KMS identity to take keys from: base64url of 32 bytes, or @FILE. {pin_from}",
    )
    pin.add_argument(
        "--trust-any-kms-identity",
        action="store_true",
        help="take keys from whoever the CA lets speak: an impostor's keys are not told from yours",
    )
    add(
        "--deadline",
        metavar="SECONDS",
        type=seconds,
        default=None if configurable else 60.0,
        help="for all tries together (default 60)",
    )


def pinned_identity(arguments: argparse.Namespace) -> bytes | None:
    """Give the KMS identity (32 bytes) that the command line names; None where it trusts any."""
    from kms.cli.pins import read_identity

    return None if arguments.trust_any_kms_identity else read_identity(arguments.identity)


def say_followed(command: str, pinned: bytes | None, identity: bytes) -> None:
    """Say on standard error that the pinned identity handed over to another one, if it did."""
    from kms.encoding import b64url

    if pinned not in {None, identity}:
        sys.stderr.write(
            f"{command}: the pinned KMS identity handed over to {b64url(identity)}: pin that one\n"
        )


def telling_refusals(
    command: str, run: Callable[[argparse.Namespace], int]
) -> Callable[[argparse.Namespace], int]:
    """Make `run` end with status 1 where the server refuses, or this side what it was given."""

    def told(arguments: argparse.Namespace) -> int:
        from kms.guest.errors import AnswerRejected, Refused, RefusedHere, ServerUntrusted
        from kms.keys.env_key import EnvKeyRejected

        try:
            return run(arguments)
        except Refused as error:
            report_refused(command, error, error.problem, as_json=arguments.json)
            return REFUSED if error.problem.status in _NO else WRONG_USE
        except (AnswerRejected, EnvKeyRejected, RefusedHere, ServerUntrusted) as error:
            report_refused(command, error, None, as_json=arguments.json)
            return REFUSED

    return told


def report_refused(command: str, error: KmsError, problem: "Problem | None", *, as_json: bool) -> None:
    """Say what was refused; `problem` is the server's, where it was the server."""
    if not as_json:
        sys.stderr.write(f"{command}: {error.detail}\n")
        return
    body: dict[str, Any] = {"code": error.code, "reason": error.reason, "detail": error.detail}
    if problem is not None:
        body |= {
            "status": problem.status,
            "code": problem.code,
            "reasons": list(problem.reasons),
            "request_id": problem.request_id,
        }
        body.pop("reason")
    print_json({"error": body})
