"""``kms guest serve``: keys for this machine's containers, over HTTP on a Unix socket."""

import argparse
from typing import TYPE_CHECKING, Final

from kms.cli.asking import telling_refusals
from kms.cli.guest_local import ERRORS_AS_JSON, add_socket_options, serve_locally
from kms.cli.guest_machine import add_machine_options, guest_config
from kms.cli.output import OK, WrongUse
from kms.cli.parsers import Group, seconds

if TYPE_CHECKING:
    from kms.guest.config import ServedKey

# Anybody may connect: who gets which key is decided by who the kernel says they are.
_ANYBODY: Final = 0o666
_KEEP: Final = 10.0  # seconds


def add_serve(group: Group) -> None:
    """Add ``kms guest serve``."""
    command = group.add(
        "serve",
        summary="serve keys to this machine's containers",
        description="HTTP on a Unix socket: GET /keys/NAME?scope=SCOPE&epoch=N is a key's bytes (tls as PEM),"
        " with Accept: application/json its entry; GET /healthz says that this lives. Only users and groups"
        " that [[serve.allow]] in the configuration, or --allow, names for a key get it, as the kernel knows"
        " them: containers' users are those that this machine sees. Exit status: 0 told to end, or idle,"
        " 2 wrong use.",
        as_json=ERRORS_AS_JSON,
        example="kms guest serve --listen /run/attested-kms/keys.sock --allow custom:db/main=uid:1000",
    )
    add = command.add_argument
    add(
        "--allow",
        metavar="NAME[@SCOPE]=WHO",
        action="append",
        default=[],
        help="uid:N and gid:N, joined by commas, may have this key; repeat for more",
    )
    add(
        "--keep",
        metavar="SECONDS",
        type=seconds,
        default=_KEEP,
        help="how long a key, or a refusal, is remembered: a container that starts again and again does not"
        " ask the hardware each time (default 10)",
    )
    add_socket_options(command)
    add_machine_options(command)
    command.set_defaults(run=telling_refusals("kms guest", _serve))


def _serve(arguments: argparse.Namespace) -> int:
    from kms.errors import ConfigurationError
    from kms.guest.key_memory import KeyMemory
    from kms.guest.machine import GuestMachine
    from kms.guest.peer_allowlist import PeerAllowlist
    from kms.guest.sidecar import Sidecar

    config = guest_config(arguments)
    served = [*config.served, *map(_allowed, arguments.allow)]
    if not served:
        raise ConfigurationError(
            "there is nothing to serve", remedy="name keys as [[serve.allow]], or with --allow"
        )
    keys = KeyMemory(GuestMachine(config).fetch, keep=arguments.keep)
    sidecar = Sidecar(PeerAllowlist(served), keys)
    try:
        serve_locally(arguments, sidecar.answer, at_most=sidecar.at_most, mode=_ANYBODY)
    finally:
        keys.forget_all()
    return OK


def _allowed(text: str) -> "ServedKey":
    """Read ``NAME[@SCOPE]=uid:1000,gid:100``. Raises `WrongUse`."""
    from kms.guest.config import ServedKey
    from kms.guest.key_words import parse_key
    from kms.guest.toml_tables import MAX_ID

    key_text, _, who = text.partition("=")
    try:
        key = parse_key(key_text)
        ids: dict[str, set[int]] = {"uid": set(), "gid": set()}
        for each in who.split(","):
            kind, _, number = each.partition(":")
            if kind not in ids or not (number.isascii() and number.isdigit() and int(number) <= MAX_ID):
                raise ValueError("who may have it is uid:N or gid:N, joined by commas")
            ids[kind].add(int(number))
        if key.epoch is not None:
            raise ValueError("a key is served in every epoch")
    except ValueError as error:
        raise WrongUse(f"--allow: {error}") from None
    return ServedKey(key=key.name, scope=key.scope, uids=frozenset(ids["uid"]), gids=frozenset(ids["gid"]))
