"""``kms guest``: the guest's side."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from kms.cli.asking import telling_refusals
from kms.cli.guest_env import add_env
from kms.cli.guest_machine import add_machine_options, check_secret_place, fetch, value_of, write_to_pipe
from kms.cli.output import OK, Unreadable, WrongUse, read_file
from kms.cli.parsers import Group, Parser, integer, run_group

_MAX_CSR = 16 << 10  # bytes of PEM; the server takes 4096 of DER

if TYPE_CHECKING:
    from kms.keys.envelope import Payload
    from kms.keys.names import KeyRequest


def main(argv: list[str]) -> int:
    """Run ``kms guest`` and give the exit status."""
    return run_group(parser(), argv)


def parser() -> Parser:
    """Give the parser of this group of commands."""
    group = Group("kms guest", "The guest's side: prove what this machine is, get its keys.")
    _add_fetch(group)
    add_env(group)
    return group.parser


def _add_fetch(group: Group) -> None:
    command = group.add(
        "fetch",
        summary="fetch keys",
        description="Prove what this machine is and fetch its keys. One key goes to standard output as raw"
        " bytes, for a pipe (tls as PEM: key, certificate, the two authorities above it); several need"
        " --json or --output. --json prints the keys, unless --output holds them. Keys are never shown on a"
        " terminal. Exit status: 0 keys, 1 refused by the server or an answer that must not be used, 2 wrong"
        " use, no evidence or no server.",
        example="kms guest fetch --server https://kms:8443 --ca ca.pem --identity @kms.id --key disk"
        " --app-document app.json | cryptsetup open /dev/vdb data --key-file -",
    )
    add = command.add_argument
    add(
        "--key",
        metavar="NAME[@SCOPE]",
        action="append",
        required=True,
        help="disk, env, signing, tls, custom:PATH, or dstack:disk@instance, dstack:env, dstack:k256; scope"
        " app (default), instance or chip; repeat for more",
    )
    add(
        "--csr",
        metavar="FILE",
        type=Path,
        help="with --key tls: certificate request (PEM or DER) of this machine's own P-256 key; of it only"
        " the key is used, and what comes are certificates alone",
    )
    add("--epoch", metavar="N", type=integer, help="of every key (default: the app's current one)")
    add("--output", metavar="FILE", type=Path, help="new file, 0600: raw bytes of one key, JSON of several")
    add_machine_options(command)
    command.set_defaults(run=telling_refusals("kms guest", _fetch))


def _fetch(arguments: argparse.Namespace) -> int:
    output = arguments.output
    if output is None and len(arguments.key) > 1 and not arguments.json:
        raise WrongUse("several keys need --json or --output")
    keys = _keys(arguments)
    check_secret_place(output, "--output", allow_disk=arguments.allow_disk)
    payload = fetch(arguments, keys, csr=_certificate_request(arguments))
    raw = value_of(payload.keys[0]) if len(keys) == 1 else _document(payload, values=True)
    if output is not None:
        from kms.guest.secret_file import write_secret

        write_secret(output, raw, allow_disk=arguments.allow_disk)
    if arguments.json:
        sys.stdout.write(_document(payload, values=output is None).decode("ascii"))
    elif output is None:
        write_to_pipe(raw)
    return OK


def _keys(arguments: argparse.Namespace) -> "list[KeyRequest]":
    from kms.keys.names import KeyRequest

    keys = []
    for text in arguments.key:
        name, at, scope = text.partition("@")
        try:
            keys.append(KeyRequest.parse(name, scope if at else "app", arguments.epoch))
        except ValueError as error:
            raise WrongUse(f"--key: {error}") from None
    return keys


def _certificate_request(arguments: argparse.Namespace) -> bytes | None:
    """Give the DER of the file that `--csr` names."""
    if arguments.csr is None:
        return None
    if "tls" not in arguments.key:
        raise WrongUse("--csr goes with --key tls")
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    data = read_file(arguments.csr, at_most=_MAX_CSR)
    if not data.startswith(b"-----"):
        return data
    try:
        return x509.load_pem_x509_csr(data).public_bytes(Encoding.DER)
    except ValueError:
        raise Unreadable(f"{arguments.csr}: not a certificate request") from None


def _document(payload: "Payload", *, values: bool) -> bytes:
    """Give what was released as JSON; with `values` it holds the secrets."""
    import json

    from kms.encoding import b64url

    hidden = set() if values else {"value"}
    document = {
        "release_id": payload.release_id,
        "app_id": payload.app_id.hex(),
        "identity": b64url(payload.identity),
        "keys": [
            {name: value for name, value in key.to_json().items() if name not in hidden}
            for key in payload.keys
        ],
    }
    return (json.dumps(document, indent=2) + "\n").encode("ascii")
