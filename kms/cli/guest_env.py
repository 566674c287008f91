"""``kms guest env``: open an environment that the app's owner sealed with ``kms env seal``."""

import argparse
from pathlib import Path
from typing import Any

from kms.cli.asking import report_refused, telling_refusals
from kms.cli.guest_machine import add_machine_options, fetch
from kms.cli.guest_outputs import add_disk_option, check_secret_place, write_to_pipe
from kms.cli.output import OK, REFUSED, print_json, read_file
from kms.cli.parsers import Group


def add_env(group: Group) -> None:
    """Add ``kms guest env``."""
    command = group.add(
        "env",
        summary="open a sealed environment file",
        description="Prove what this machine is, fetch the app's `env` key of the epoch that the file names,"
        " and open the file. The environment goes to standard output, for a pipe, or to --output; it is never"
        " shown on a terminal. That it opens says nothing about who wrote it: compare its digest with a"
        " measured one, or check a signature. Exit status: 0 opened, 1 refused by the server, or the file is"
        " for another app or key, 2 wrong use, no sealed environment, no evidence or no server.",
        example="kms guest env --server https://kms:8443 --ca ca.pem --identity @kms.id"
        " --app-document app.json --output /run/app.env app.env.sealed",
    )
    command.add_argument("file", metavar="FILE", type=Path, help="what `kms env seal` wrote")
    command.add_argument("--output", metavar="FILE", type=Path, help="new file, 0600, in memory")
    add_disk_option(command)
    add_machine_options(command)
    command.set_defaults(run=telling_refusals("kms guest", _env))


def _env(arguments: argparse.Namespace) -> int:
    from kms.keys.env_sealing import MAX_FILE, SealedEnv, SealedEnvRejected
    from kms.keys.names import KeyRequest

    check_secret_place(arguments.output, "--output", allow_disk=arguments.allow_disk)
    sealed = SealedEnv.parse(read_file(arguments.file, at_most=MAX_FILE))
    payload = fetch(arguments, [KeyRequest.parse("env", "app", sealed.epoch)])
    [key] = payload.keys
    try:
        environment = sealed.open(key.secret, app_id=payload.app_id, epoch=key.epoch)
    except SealedEnvRejected as error:
        report_refused("kms guest", error, None, as_json=arguments.json)
        return REFUSED
    shown: dict[str, Any] = {
        "release_id": payload.release_id,
        "app_id": payload.app_id.hex(),
        "epoch": key.epoch,
        "bytes": len(environment),
    }
    if arguments.output is not None:
        from kms.guest.secret_file import write_secret

        write_secret(arguments.output, environment, allow_disk=arguments.allow_disk)
    elif arguments.json:
        from kms.encoding import b64url

        shown["environment"] = b64url(environment)
    else:
        write_to_pipe(environment)
    if arguments.json:
        print_json(shown)
    return OK
